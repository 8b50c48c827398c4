"""A question to the model as requests to the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lluda.errors import LludaError
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.serving.answers.usage import PromptCounts
from lluda.serving.http.errors import ApiError, from_error, invalid, media_error
from lluda.serving.questions.chat_question import ChatQuestion
from lluda.serving.questions.sampling import seeded
from lluda.serving.reading.answer_reader import AnswerForm
from lluda.serving.reading.marks import Mark, Marks

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.engine.media import EncodedMedia
    from lluda.engine.request import Request
    from lluda.engine.sampling.constraint import Constraint


@dataclass(frozen=True, slots=True)
class EngineRequests:
    """``requests``, one a choice; how their answers are to be read; what of the prompt stands for media, and the media
    themselves, ``encoded`` in the order of the messages."""

    requests: Sequence[Request]
    form: AnswerForm
    media: PromptCounts
    encoded: Sequence[EncodedMedia]


def compiled(model: Model, question: ChatQuestion) -> Constraint | None:
    """The form of the answer, compiled; blocking. ApiError 400: it does not compile, or needs marks that the model's
    vocabulary does not have."""
    marks = Marks.find(model.tokenizer)
    if question.tools.functions and marks.id_of(Mark.CALL) is None:
        message = f"tools: the vocabulary of this model has no {Mark.CALL.value} and {Mark.CALL_END.value}"
        raise invalid(message, "tools", "unsupported_value")
    grammar = question.grammar
    if not grammar.is_needed:
        return None
    grammar = replace(grammar, thinks=grammar.thinks and _has_switch(model, marks))
    return grammar.constraint(model.grammars, marks, question.form_path if question.schema is not None else "tools")


def engine_requests(
    model: Model,
    question: ChatQuestion,
    messages: Sequence[Mapping[str, Any]],
    constraint: Constraint | None,
    priority: int = 0,
) -> EngineRequests:
    """The requests of a question whose ``messages`` have their media as bytes; blocking. ``priority``: lower goes
    first. ApiError 400: what model, template or media refuse, with the path of the message."""
    marks = Marks.find(model.tokenizer)
    thinking = question.thinking
    if constraint is not None and thinking is None:
        thinking = False  # the grammar begins with the first token, and has no room for a thought
    options = ChatOptions(enable_thinking=thinking, tools=question.tools.for_template)
    try:
        prompt, encoded = model.read_prompt(messages, options)
    except LludaError as error:
        raise _placed(error, question.paths) from None
    params = question.sampling
    closing = marks.id_of(Mark.CALL_END)
    if question.tools.functions and not question.tools.parallel and closing is not None:
        params = replace(params, stop_token_ids=(*params.stop_token_ids, closing))
    speech = question.speech
    requests = [
        model.request(
            prompt,
            seeded(params, index),
            speech=speech.params if speech else None,
            speaker=speech.speaker if speech else None,
            spoken=speech is not None,
            constraint=constraint,
            index=index,
            priority=priority,
        )
        for index in range(question.choices)
    ]
    opened = constraint is None and marks.thought_is_open(prompt.ids, model.tokenizer.id_of("<|im_start|>"))
    form = AnswerForm(
        vocabulary=model.tokenizer,
        marks=marks,
        end_ids=requests[0].end_ids.union(requests[0].sampling.stop_token_ids),
        functions=frozenset(question.tools.functions),
        in_thought=opened,
        spoken=speech is not None,
        logprobs=question.logprobs is not None,
    )
    return EngineRequests(requests, form, _media_counts(model, prompt.ids), encoded)


def _has_switch(model: Model, marks: Marks) -> bool:
    """Whether the model thinks when its template is told to."""
    template = model.chat_template
    return template is not None and "enable_thinking" in template.source and marks.id_of(Mark.THINK) is not None


def _media_counts(model: Model, ids: Sequence[int]) -> PromptCounts:
    omni = model.config.omni
    if omni is None:
        return PromptCounts()
    tokens = omni.tokens
    return PromptCounts(
        audio=sum(number == tokens.audio_pad for number in ids),
        image=sum(number in (tokens.image_pad, tokens.video_pad) for number in ids),
    )


def _placed(error: LludaError, paths: Sequence[str]) -> ApiError:
    """The error with the message's path in the body. One that names no message is about the model's own files."""
    for written, path in _written(paths):
        if str(error).startswith(written):
            found = media_error(error)
            param, colon, _ = found.message.removeprefix(written).partition(":")
            place = path + param if colon and len(param) < 60 else path
            return ApiError(found.status, found.code, path + found.message.removeprefix(written), param=place)
    return from_error(error)


def _written(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """How the model calls a message, and its path, the last first: ``messages[1]`` begins like ``messages[12]``."""
    return ((f"messages[{index}]", path) for index, path in reversed(list(enumerate(paths))))
