"""``lluda.load``, the Model it returns, and its conversations."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, cast

from lluda.config.model import resolve_dtype
from lluda.engine.engine import Engine
from lluda.engine.loading.loading import (
    LoadOptions,
    ModelFiles,
    load_chat_template,
    load_network,
    load_speech_stack,
    load_tokenizer,
)
from lluda.engine.media import EncodedMedia, MediaReader, read_media
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Request, Reuse, SpeechEvent, SpokenAnswer, Token
from lluda.engine.runner import Runner
from lluda.engine.sampling.answer_ends import AnswerEnds
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.stream import Stream
from lluda.errors import InvalidRequest, UnsupportedModel
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.inputs.chat.prompt import build_chat_prompt, with_answer
from lluda.inputs.media.media_parts import take_media, with_sources
from lluda.models.thinker import Thinker
from lluda.weights.loader import Progress

_Params = TypeVar("_Params", ChatOptions, SamplingParams)
_Event = TypeVar("_Event", bound=SpeechEvent)
Message = Mapping[str, Any]
"""``{"role": "user" | "assistant" | "system" | "tool", "content": str or list of parts}``; a part is ``{"type": "text",
"text": …}`` or, for an Omni model, a medium (`MediaPart`)."""


def load(name_or_path: str | os.PathLike[str], *, progress: Progress | None = None, **options: Any) -> Model:
    """Load a text model from a folder, a .gguf file or a hub name ``org/name[@revision]``.

    ``options`` are the fields of :class:`LoadOptions`; ``progress`` is called with bytes done and in all.

    Raises:
        ModelNotFound, CorruptFile, UnsupportedModel: the checkpoint cannot be had, read or run.
        OutOfMemory: the plan does not fit; nothing was allocated.
        InvalidRequest: an option out of its range.
    """
    try:
        chosen = LoadOptions(**options)
    except TypeError as error:
        raise InvalidRequest(f"load: {str(error).replace('LoadOptions.__init__() ', '')}") from None
    files = ModelFiles.find(
        name_or_path, allow_unknown_config=chosen.allow_unknown_config, rope_scaling=chosen.rope_scaling
    )
    return Model(files, chosen, progress)


class Model:
    """A loaded model: ``generate``, ``stream``, ``chat``, ``speak``, ``conversation``. Any number of threads may call
    it; `engine` runs what they ask for together."""

    def __init__(self, files: ModelFiles, options: LoadOptions, progress: Progress | None = None) -> None:
        self.files = files
        self._options = options
        self._speech_stack: SpeechStack | None = None
        self._loading_speech = threading.Lock()
        self.config = files.config
        self.dtype = resolve_dtype(options.dtype, files.config.dtype)
        self.tokenizer = load_tokenizer(files.source)
        self.chat_template = load_chat_template(files.source)
        files.release_vocabulary()
        self.tokenizer.check_fits(files.config.text.vocab_size)
        SamplingParams().with_defaults(files.generation_config)  # what is refused there is refused before it is loaded
        if self.chat_template is not None:
            # The process that renders it starts while the weights are read.
            self.chat_template.start()
        self.network, self.report = load_network(files, options, progress)
        self.media = MediaReader(self.network, files.source) if isinstance(self.network, Thinker) else None
        self.ends = AnswerEnds.find(files.eos_ids, self.tokenizer, self.chat_template)
        self.runner = Runner(
            self.network,
            files.cache_options(options, self.dtype),
            options.prefill_rows,
            deterministic=options.deterministic,
        )
        context = self.runner.cache_options.max_length
        self.engine = Engine(
            self.runner,
            self.tokenizer,
            _speech_stack_of(self) if files.config.omni and files.config.omni.speech else None,
            kv_positions=files.sequences(options) * context,
            retained_positions=context,
        )

    def describe(self) -> str:
        """What was chosen: model, backend, dtype, context, ends of an answer."""
        cache = self.runner.cache_options
        return (
            f"{self.files.name}: {self.config.model_type}, {self.report.describe()}; "
            f"{self.network.describe()}; "
            f"context {cache.max_length}{self.config.text.rope.describe()}, "
            f"{cache.strategy} KV cache in {cache.dtype}, "
            f"prompts in chunks of {self.runner.prefill_chunk}, {self.ends.describe(self.tokenizer)}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should be told of this checkpoint."""
        return (*self.report.suspicious, *self.ends.warnings)

    def generate(
        self, prompt: str | Sequence[str] | Sequence[int], params: SamplingParams | None = None, **sampling: Any
    ) -> Completion | list[Completion]:
        """Continue a prompt, or several in one batch: text (taken literally: no special token is recognised in it) or
        one list of token ids. Returns one Completion, or a list in the order of the prompts.

        ``params`` or keyword arguments are the fields of SamplingParams.
        """
        done = [event for event in self.stream(prompt, params, **sampling) if isinstance(event, Completion)]
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        done.sort(key=lambda completion: completion.index)
        return done[0] if single else done

    def stream(
        self, prompt: str | Sequence[str] | Sequence[int], params: SamplingParams | None = None, **sampling: Any
    ) -> Stream[Token | Completion]:
        """The same as events: each Token as it is sampled, each sequence's Completion after its last token. Closing
        the iterator, or letting go of it, ends what has not ended."""
        chosen, ends = self.sampling(params, sampling), frozenset(self.ends.text)
        requests = [
            Request(prompt=PromptRows(ids), sampling=chosen, end_ids=ends, index=index)
            for index, ids in enumerate(self._encode(prompt))
        ]
        return cast("Stream[Token | Completion]", self.engine.submit(*requests))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Completion:
        """Answer a conversation through the checkpoint's chat template. Further arguments are the fields of
        :class:`ChatOptions` (``tools``, ``enable_thinking``, ``continue_final_message``, …) and of SamplingParams."""
        events = self.chat_stream(messages, params, **options)
        return next(event for event in events if isinstance(event, Completion))

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Stream[Token | Completion]:
        """The answer as events."""
        chat, chosen = self.chosen(params, options)
        prompt, _ = self.read_prompt(messages, chat)
        return self.answer(prompt, chosen)

    def chat_prompt(self, messages: Sequence[Message], **options: Any) -> PromptRows:
        """The rows of a conversation, ready for the answer, its media encoded; ``options`` are the fields of
        ChatOptions. Special tokens typed inside messages stay text."""
        return self.read_prompt(messages, _fields(ChatOptions(), options))[0]

    def speak(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **options: Any,
    ) -> Stream[SpeechEvent]:
        """Answer a conversation in text and speech at once: Tokens and SpeechChunks as they are made, the text's
        Completion, last a SpeechCompletion. ``speaker`` is a name of the config (None: its first); ``options`` as in
        `chat`. Of a message that is continued only the rest is spoken."""
        chat, chosen = self.chosen(params, options)
        self.speech_stack().prompts.speaker_id(speaker)
        prompt, _ = self.read_prompt(messages, chat)
        return self.spoken_answer(prompt, chosen, speech, speaker)

    def conversation(self, system: str | None = None, **options: Any) -> Conversation:
        """A multi-turn chat whose turns compute only what is new in them; ``options`` are the fields of ChatOptions for
        all its turns."""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        return Conversation(self, messages, _fields(ChatOptions(), options))

    def speech_stack(self, progress: Progress | None = None) -> SpeechStack:
        """What speaks; loaded at the first call. UnsupportedModel: the checkpoint has no talker."""
        with self._loading_speech:
            if self._speech_stack is None:
                self._speech_stack = load_speech_stack(self.files, self._options, self.network, progress)
            return self._speech_stack

    def close(self) -> None:
        """End the engine: what runs is cancelled, and nothing can be asked any more."""
        self.engine.close()

    # What a Conversation and a server ask with.

    def answer(
        self, prompt: PromptRows, params: SamplingParams, reuse: Reuse | None = None
    ) -> Stream[Token | Completion]:
        """The answer to rows of `read_prompt` as events; ``params`` has no None left."""
        request = Request(prompt=prompt, sampling=params, end_ids=frozenset(self.ends.turn), reuse=reuse)
        return cast("Stream[Token | Completion]", self.engine.submit(request))

    def spoken_answer(
        self,
        prompt: PromptRows,
        params: SamplingParams,
        speech: SpeechParams | None,
        speaker: str | None,
        reuse: Reuse | None = None,
    ) -> Stream[SpeechEvent]:
        """As `answer`, spoken too."""
        self.speech_stack()  # says what is missing where there is none
        spoken = SpokenAnswer((speech or SpeechParams()).with_defaults(self.files.generation_config), speaker)
        ends = frozenset(self.ends.turn)
        return self.engine.submit(Request(prompt=prompt, sampling=params, end_ids=ends, speech=spoken, reuse=reuse))

    def read_prompt(self, messages: Sequence[Message], chat: ChatOptions) -> tuple[PromptRows, list[EncodedMedia]]:
        """The rows of a conversation, and its media encoded, in the order of the messages."""
        if self.chat_template is None:
            raise UnsupportedModel(
                f"{self.files.path}: the checkpoint has no chat template; use generate (--raw) for a plain continuation"
            )
        stripped, parts = take_media(messages)
        if parts and self.media is None:
            first, kind = parts[0], self.config.model_type
            raise InvalidRequest(f"{first.where}: a {kind} model takes text only; {first.kind} needs an Omni model")
        ids = build_chat_prompt(self.tokenizer, self.chat_template, stripped, chat)
        if self.media is None:
            return PromptRows(ids), []
        return read_media(self.media, ids, parts, self.runner.cache_options.max_length, {}, self.engine.call)

    def sampling(self, params: SamplingParams | None, changes: Mapping[str, Any]) -> SamplingParams:
        """``params`` with ``changes`` and the checkpoint's defaults."""
        return _fields(params or SamplingParams(), changes).with_defaults(self.files.generation_config)

    def chosen(
        self, params: SamplingParams | None, options: Mapping[str, Any], chat: ChatOptions | None = None
    ) -> tuple[ChatOptions, SamplingParams]:
        """Keyword arguments of a chat, sorted; ``chat`` has the values that they do not replace."""
        names = {one.name for one in fields(ChatOptions)}
        for_chat = {name: value for name, value in options.items() if name in names}
        sampling = {name: value for name, value in options.items() if name not in names}
        return _fields(chat or ChatOptions(), for_chat), self.sampling(params, sampling)

    def _encode(self, prompt: str | Sequence[str] | Sequence[int]) -> list[list[int]]:
        if not isinstance(prompt, Sequence):
            raise InvalidRequest(
                f"prompt must be a text, a list of texts, or one list of token ids, not {prompt!r:.80}"
            )
        prompts: list[Any] = [prompt] if isinstance(prompt, str) else list(prompt)
        if prompts and all(isinstance(item, int) for item in prompts):
            return [prompts]
        if not prompts or not all(isinstance(item, str) for item in prompts):
            raise InvalidRequest("prompt must be a text, a list of texts, or one list of token ids")
        prefix = list(self.tokenizer.prefix_ids)
        return [prefix + self.tokenizer.encode(text, allow_special=False) for text in prompts]


@dataclass(slots=True)
class Conversation:
    """The messages so far. A turn begins with the rows that the engine retains of the turn before, and computes only
    what is new.

    In ``messages`` a medium of an earlier turn is what was made of it then (`EncodedMedia`), whatever became of its
    file or array since.
    """

    model: Model
    messages: list[Message]
    options: ChatOptions = field(default_factory=ChatOptions)

    def ask(
        self,
        content: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Iterator[Token | Completion]:
        """Add a user message, a text or parts with media, and stream the answer. An answer that is broken off (the
        iterator is closed) is kept as far as it came; a request that is refused leaves the conversation as it was.
        ``options`` as in `Model.chat`, for this turn alone."""
        return self.send([{"role": "user", "content": content}], params, **options)

    def send(
        self, new: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Iterator[Token | Completion]:
        """As `ask`, for messages of any role: results of tools that the answer before called, or an assistant message
        whose rest is wanted (``continue_final_message``)."""
        chat, chosen = self.model.chosen(params, options, self.options)
        prompt, media = self.model.read_prompt([*self.messages, *new], chat)
        messages = with_sources([*self.messages, *new], media)
        return self._answer(messages, chat, self.model.answer(prompt, chosen, "any"))

    def speak(
        self,
        content: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **options: Any,
    ) -> Iterator[SpeechEvent]:
        """As `ask`, the answer spoken too: the events of `Model.speak`. Turns may be asked and spoken in any order,
        each by a speaker of its own. Errors as `Model.speak`."""
        return self.send_spoken([{"role": "user", "content": content}], params, speech, speaker=speaker, **options)

    def send_spoken(
        self,
        new: Sequence[Message],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **options: Any,
    ) -> Iterator[SpeechEvent]:
        """As `send`, the answer spoken too."""
        self.model.speech_stack().prompts.speaker_id(speaker)
        chat, chosen = self.model.chosen(params, options, self.options)
        prompt, media = self.model.read_prompt([*self.messages, *new], chat)
        messages = with_sources([*self.messages, *new], media)
        return self._answer(messages, chat, self.model.spoken_answer(prompt, chosen, speech, speaker, "any"))

    def _answer(self, messages: list[Message], chat: ChatOptions, events: Iterator[_Event]) -> Iterator[_Event]:
        parts: list[str] = []
        try:
            for event in events:
                if isinstance(event, Token):
                    parts.append(event.text)
                yield event
        finally:
            self.messages = with_answer(messages, "".join(parts), chat.continued_key)


def _speech_stack_of(model: Model) -> Callable[[], SpeechStack]:
    """``model.speech_stack``, without keeping the model in memory."""
    reference = weakref.ref(model)

    def speech_stack() -> SpeechStack:
        found = reference()
        assert found is not None, "a model is there while it is asked"
        return found.speech_stack()

    return speech_stack


def _fields(params: _Params, changes: Mapping[str, Any]) -> _Params:
    """``params`` with ``changes``. InvalidRequest: it has no such field."""
    try:
        return replace(params, **changes)
    except TypeError as error:
        name = type(params).__name__
        raise InvalidRequest(f"{name}: {str(error).replace(f'{name}.__init__() ', '')}") from None
