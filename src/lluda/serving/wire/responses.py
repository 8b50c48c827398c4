"""The body of POST /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.chat import Effort
from lluda.serving.wire.chat_messages import InputAudio, RefusalPart
from lluda.serving.wire.sampling import text_or_list
from lluda.serving.wire.tools import (
    FunctionName,
    JsonObjectFormat,
    TextFormat,
    ToolMode,
    by_type,
    mode_or_object,
)
from lluda.serving.wire.wire_model import WireModel

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(WireModel):
    """What a user said."""

    type: Literal["input_text"]
    text: str


class OutputText(WireModel):
    """What the assistant said; annotations and logprobs, as they were sent, have no meaning."""

    type: Literal["output_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class InputImage(WireModel):
    """A picture by a data URL, or an address where fetching is allowed."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    file_id: None = None


class InputAudioItem(WireModel):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[
    Annotated[InputText, Tag("#input_text")]
    | Annotated[OutputText, Tag("#output_text")]
    | Annotated[RefusalPart, Tag("#refusal")]
    | Annotated[InputImage, Tag("#input_image")]
    | Annotated[InputAudioItem, Tag("#input_audio")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of input_text, input_image, input_audio, output_text or refusal",
    ),
]


def _text_or_list(value: object) -> str | None:
    return "#content" if isinstance(value, str) else "#parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("#content")] | Annotated[list[Part], Field(min_length=1), Tag("#parts")],
    Discriminator(
        _text_or_list,
        custom_error_type="invalid_value",
        custom_error_message="must be a text or a list of parts",
    ),
]


class MessageItem(WireModel):
    """A message; ``id``, ``status`` and ``phase`` have no meaning here."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCallItem(WireModel):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    namespace: None = None
    caller: Any = None


class FunctionCallOutputItem(WireModel):
    """What the function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("#content")] | Annotated[list[InputText], Field(min_length=1), Tag("#parts")],
        Discriminator(
            _text_or_list,
            custom_error_type="invalid_value",
            custom_error_message="must be a text or a list of parts of type input_text",
        ),
    ]
    id: str | None = None
    status: Status | None = None
    caller: Any = None


class ReasoningItem(WireModel):
    """What was thought before: dropped, as the chat templates drop it."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None
    status: Status | None = None


def _kind_of_item(value: object) -> str | None:
    if isinstance(value, dict) and value.get("type") is None and "role" in value:
        return "#message"
    return by_type(value)


Item = Annotated[
    Annotated[MessageItem, Tag("#message")]
    | Annotated[FunctionCallItem, Tag("#function_call")]
    | Annotated[FunctionCallOutputItem, Tag("#function_call_output")]
    | Annotated[ReasoningItem, Tag("#reasoning")],
    Discriminator(
        _kind_of_item,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of message, function_call, function_call_output or reasoning",
    ),
]
Input = Annotated[
    Annotated[str, Tag("#text")] | Annotated[list[Item], Field(min_length=1), Tag("#list")],
    Discriminator(
        text_or_list,
        custom_error_type="invalid_value",
        custom_error_message="must be a text or a list of items",
    ),
]


class FunctionTool(WireModel):
    """One function in the flat form."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


_Tool = Annotated[
    Annotated[FunctionTool, Tag("#function")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must be of type function: this server hosts no tools",
    ),
]


class NamedFunction(WireModel):
    """The function that must be called."""

    type: Literal["function"]
    name: str


FlatToolChoice = Annotated[
    Annotated[ToolMode, Tag("#mode")] | Annotated[NamedFunction, Tag("#object")],
    Discriminator(
        mode_or_object,
        custom_error_type="invalid_value",
        custom_error_message='must be none, auto, required or {"type": "function", "name": …}',
    ),
]


class FlatJsonSchemaFormat(WireModel):
    """What keeps to a schema."""

    type: Literal["json_schema"]
    name: FunctionName
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextSettings(WireModel):
    """The form of the answer; ``verbosity`` has no meaning here."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("#text")]
            | Annotated[JsonObjectFormat, Tag("#json_object")]
            | Annotated[FlatJsonSchemaFormat, Tag("#json_schema")],
            Discriminator(
                by_type,
                custom_error_type="invalid_value",
                custom_error_message="must have a type of text, json_object or json_schema",
            ),
        ]
        | None
    ) = None
    verbosity: str | None = None


class Reasoning(WireModel):
    """``effort`` as in chat; summaries are not made."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(WireModel):
    """``include_obfuscation`` has no meaning here."""

    include_obfuscation: bool | None = None


class ResponseBody(WireModel):
    """What is not served (`STATELESS`) may be null or false."""

    model: str
    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    tools: list[_Tool] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    include: list[str] | None = None
    truncation: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    max_tool_calls: Any = None


STATELESS = ("previous_response_id", "conversation", "background", "prompt", "max_tool_calls")
"""Fields that need what this server does not keep or host."""
