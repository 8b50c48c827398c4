"""What a body of /v1/responses asks: its items as messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lluda.serving.answers.spoken_answers import SpokenAnswers
from lluda.serving.http.errors import invalid
from lluda.serving.limits import Limits
from lluda.serving.questions.answer_grammar import ANY_OBJECT
from lluda.serving.questions.chat_question import ChatQuestion, thinks
from lluda.serving.questions.messages import plain_messages
from lluda.serving.questions.sampling import sampling_params, within
from lluda.serving.questions.schemas import check_schema
from lluda.serving.questions.tool_use import tool_use
from lluda.serving.wire.chat_messages import (
    AssistantMessage,
    AudioPart,
    CalledFunction,
    ImagePart,
    ImageUrl,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from lluda.serving.wire.responses import (
    STATELESS,
    FlatJsonSchemaFormat,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    InputAudioItem,
    InputImage,
    InputText,
    MessageItem,
    OutputText,
    ReasoningItem,
    ResponseBody,
)
from lluda.serving.wire.sampling import Sampling
from lluda.serving.wire.tools import Function, FunctionChoice, JsonObjectFormat, NamedTool, Tool, ToolChoice

INCLUDE_LOGPROBS = "message.output_text.logprobs"
_NEVER_THERE = ("reasoning.encrypted_content",)
"""What clients ask for in case there is any."""


def response_question(body: ResponseBody, limits: Limits) -> ChatQuestion:
    """ApiError 400: it asks for what this server does not keep or host, or contradicts itself."""
    for name in STATELESS:
        if getattr(body, name) not in (None, False):
            message = f"{name} is not served: nothing is kept between requests; send the whole conversation as input"
            raise invalid(message, name, "unsupported_value")
    if body.truncation not in (None, "disabled"):
        raise invalid("truncation must be disabled: no input is left out", "truncation", "unsupported_value")
    placed = list(_messages(body))
    logprobs = _logprobs(body, limits)
    sampling = Sampling(temperature=body.temperature, top_p=body.top_p)
    return ChatQuestion(
        messages=plain_messages([message for message, _ in placed], SpokenAnswers(), limits),
        paths=[path for _, path in placed],
        sampling=sampling_params(sampling, limits, max_tokens=body.max_output_tokens, logprobs=logprobs),
        tools=tool_use([_tool(tool) for tool in body.tools or ()], _choice(body), body.parallel_tool_calls, limits),
        schema=_schema(body, limits),
        form_path="text.format",
        thinking=thinks(body.reasoning.effort) if body.reasoning else None,
        logprobs=logprobs,
    )


def _logprobs(body: ResponseBody, limits: Limits) -> int | None:
    for index, name in enumerate(body.include or ()):
        if name not in (INCLUDE_LOGPROBS, *_NEVER_THERE):
            param = f"include[{index}]"
            raise invalid(f"{param} must be {INCLUDE_LOGPROBS}, not {name[:60]!r}", param, "unsupported_value")
    if body.top_logprobs:
        return within(body.top_logprobs, limits.top_logprobs, "top_logprobs")
    return 0 if INCLUDE_LOGPROBS in (body.include or ()) else None


def _schema(body: ResponseBody, limits: Limits) -> Mapping[str, Any] | None:
    match body.text.format if body.text else None:
        case JsonObjectFormat():
            return ANY_OBJECT
        case FlatJsonSchemaFormat(schema_=schema):
            check_schema(schema, limits, "text.format.schema")
            return schema
    return None


def _tool(tool: FunctionTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return Tool(type="function", function=function)


def _choice(body: ResponseBody) -> ToolChoice | None:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    return NamedTool(type="function", function=FunctionChoice(name=choice.name))


def _messages(body: ResponseBody) -> Iterator[tuple[Message, str]]:
    """The messages of a chat, each with the path of what it was made of."""
    if body.instructions is not None:
        yield SystemMessage(role="system", content=body.instructions), "instructions"
    if isinstance(body.input, str):
        yield UserMessage(role="user", content=body.input), "input"
        return
    calls: list[ToolCall] = []
    for index, item in enumerate(body.input):
        if isinstance(item, FunctionCallItem):
            function = CalledFunction(name=item.name, arguments=item.arguments)
            calls.append(ToolCall(id=item.call_id, type="function", function=function))
            # Calls that follow each other are of one answer.
            if index + 1 < len(body.input) and isinstance(body.input[index + 1], FunctionCallItem):
                continue
            yield AssistantMessage(role="assistant", tool_calls=calls), f"input[{index}]"
            calls = []
        elif not isinstance(item, ReasoningItem):
            yield _message(item, f"input[{index}]"), f"input[{index}]"


def _message(item: MessageItem | FunctionCallOutputItem, path: str) -> Message:
    if isinstance(item, FunctionCallOutputItem):
        output = item.output if isinstance(item.output, str) else "".join(part.text for part in item.output)
        return ToolMessage(role="tool", tool_call_id=item.call_id, content=output)
    content = item.content
    match item.role:
        case "user":
            if isinstance(content, str):
                return UserMessage(role="user", content=content)
            return UserMessage(role="user", content=[_user_part(part, path) for part in content])
        case "assistant":
            return AssistantMessage(role="assistant", content=_text(content, path))
    return SystemMessage(role="system", content=_text(content, path))


def _user_part(part: object, path: str) -> TextPart | ImagePart | AudioPart:
    match part:
        case InputText(text=text) | OutputText(text=text):
            return TextPart(type="text", text=text)
        case InputImage(image_url=url):
            return ImagePart(type="image_url", image_url=ImageUrl(url=url))
        case InputAudioItem(input_audio=audio):
            return AudioPart(type="input_audio", input_audio=audio)
    raise invalid(f"{path}.content: a user's message holds input_text, input_image and input_audio", f"{path}.content")


def _text(content: str | Sequence[object], path: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        match part:
            case InputText(text=text) | OutputText(text=text) | RefusalPart(refusal=text):
                texts.append(text)
            case _:
                message = f"{path}.content: only a user's message holds pictures and recordings"
                raise invalid(message, f"{path}.content", "unsupported_value")
    return "".join(texts)
