"""Items of a conversation as clients write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.tools import by_type
from lluda.serving.wire.wire_model import WireModel

ItemId = Annotated[str, Field(min_length=1, max_length=128)]


class InputText(WireModel):
    """What a user or the system wrote."""

    type: Literal["input_text"]
    text: str


class InputAudio(WireModel):
    """What a user said: base64 in the session's input format, or a file of sound with a header."""

    type: Literal["input_audio"]
    audio: str | None = None
    transcript: str | None = None


class InputImage(WireModel):
    """A picture as a data URL."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


class OutputText(WireModel):
    """What the assistant wrote."""

    type: Literal["output_text"]
    text: str


class OutputAudio(WireModel):
    """What the assistant said, by its transcript."""

    type: Literal["output_audio"]
    transcript: str | None = None
    audio: Any = None


Part = Annotated[
    Annotated[InputText, Tag("#input_text")]
    | Annotated[InputAudio, Tag("#input_audio")]
    | Annotated[InputImage, Tag("#input_image")]
    | Annotated[OutputText, Tag("#output_text")]
    | Annotated[OutputAudio, Tag("#output_audio")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of input_text, input_audio, input_image, output_text or output_audio",
    ),
]


class _Item(WireModel):
    """``object``, ``status`` and ``phase`` are the server's to say."""

    id: ItemId | None = None
    object: Literal["realtime.item"] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class Message(_Item):
    """A message."""

    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: list[Part]
    phase: Any = None


class FunctionCall(_Item):
    """A call that the assistant made."""

    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: ItemId | None = None


class FunctionCallOutput(_Item):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: str


class ItemReference(WireModel):
    """An item that is there already."""

    type: Literal["item_reference"]
    id: ItemId


ItemFields = Annotated[
    Annotated[Message, Tag("#message")]
    | Annotated[FunctionCall, Tag("#function_call")]
    | Annotated[FunctionCallOutput, Tag("#function_call_output")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of message, function_call or function_call_output",
    ),
]

InputItem = Annotated[
    Annotated[Message, Tag("#message")]
    | Annotated[FunctionCall, Tag("#function_call")]
    | Annotated[FunctionCallOutput, Tag("#function_call_output")]
    | Annotated[ItemReference, Tag("#item_reference")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of message, function_call, function_call_output or item_reference",
    ),
]


class InputItems(WireModel):
    """What one response is to answer."""

    input: list[InputItem]
