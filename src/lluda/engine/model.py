"""``lluda.load`` and the Model it returns: the public face of the text engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lluda.config import resolve_dtype
from lluda.engine.frames import SpeechParams
from lluda.engine.generation import Completion, Generator, Token
from lluda.engine.kv_cache import KVCache
from lluda.engine.loading import LoadOptions, ModelFiles, load_chat_template, load_network, load_tokenizer, load_voice
from lluda.engine.media import EncodedMedia, MediaReader, read_media
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.speech import SpeechEvent, Voice, speak
from lluda.engine.talker_prompt import MediaRows
from lluda.errors import InvalidRequest, UnsupportedModel
from lluda.inputs.media_parts import take_media
from lluda.inputs.prompt import build_chat_prompt
from lluda.models.thinker import Thinker
from lluda.weights.loader import Progress

_Event = TypeVar("_Event", bound=SpeechEvent)
Message = Mapping[str, Any]
"""``{"role": "user" | "assistant" | "system" | "tool", "content": str or list of parts}``; a part is ``{"type": "text",
"text": …}`` or, for an Omni model, a medium (`lluda.inputs.media_parts.MediaPart`)."""


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
    return Model(ModelFiles.find(name_or_path, allow_unknown_config=chosen.allow_unknown_config), chosen, progress)


class Model:
    """A loaded text model: ``generate``, ``stream`` and ``chat``."""

    def __init__(self, files: ModelFiles, options: LoadOptions, progress: Progress | None = None) -> None:
        self.files = files
        self._options = options
        self._voice: Voice | None = None
        self.config = files.config
        self.dtype = resolve_dtype(options.dtype, files.config.dtype)
        self.tokenizer = load_tokenizer(files.path)
        self.chat_template = load_chat_template(files.path)
        self.tokenizer.check_fits(files.config.text.vocab_size)
        if self.chat_template is not None:
            # The process that renders it starts while the weights are read.
            self.chat_template.start()
        self.network, self.report = load_network(files, options, progress)
        self.media = MediaReader(self.network, files.path) if isinstance(self.network, Thinker) else None
        self.generator = Generator(
            self.network, self.tokenizer, files.eos_ids, files.cache_options(options, self.dtype), options.prefill_rows
        )

    def describe(self) -> str:
        """What was chosen: model, backend, dtype, context."""
        cache = self.generator.cache_options
        return (
            f"{self.files.path.name}: {self.config.model_type}, {self.report.describe()}; "
            f"{self.network.describe()}; "
            f"context {cache.max_length}{self.config.text.rope.describe()}, "
            f"{cache.strategy} KV cache in {cache.dtype}, "
            f"prompts in chunks of {self.generator.prefill_chunk}"
        )

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
    ) -> Iterator[Token | Completion]:
        """The same as events: each Token as it is sampled, each sequence's Completion after its last token."""
        return self.generator.stream(self._encode(prompt), self._sampling(params, sampling))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        enable_thinking: bool | None = None,
        **sampling: Any,
    ) -> Completion:
        """Answer a conversation through the checkpoint's chat template. ``enable_thinking`` is Qwen3's switch."""
        events = self.chat_stream(messages, params, enable_thinking=enable_thinking, **sampling)
        return next(event for event in events if isinstance(event, Completion))

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        enable_thinking: bool | None = None,
        **sampling: Any,
    ) -> Iterator[Token | Completion]:
        """The answer as events."""
        prompt = self.chat_prompt(messages, enable_thinking=enable_thinking)
        return self.generator.stream([prompt], self._sampling(params, sampling))

    def chat_prompt(self, messages: Sequence[Message], *, enable_thinking: bool | None = None) -> PromptRows:
        """The rows of a conversation, ready for the answer, its media encoded. Special tokens typed inside messages
        stay text."""
        return self._read_prompt(messages, enable_thinking, {})[0]

    def _read_prompt(
        self, messages: Sequence[Message], enable_thinking: bool | None, known: Mapping[object, EncodedMedia]
    ) -> tuple[PromptRows, dict[object, EncodedMedia]]:
        """Also the media, for the next turn's ``known``."""
        if self.chat_template is None:
            raise UnsupportedModel(
                f"{self.files.path}: the checkpoint has no chat template; use generate (--raw) for a plain continuation"
            )
        stripped, parts = take_media(messages)
        if parts and self.media is None:
            first, kind = parts[0], self.config.model_type
            raise InvalidRequest(f"{first.where}: a {kind} model takes text only; {first.kind} needs an Omni model")
        ids = build_chat_prompt(self.tokenizer, self.chat_template, stripped, enable_thinking=enable_thinking)
        if self.media is None:
            return PromptRows(ids), {}
        return read_media(self.media, ids, parts, self.generator.cache_options.max_length, known)

    def voice(self, progress: Progress | None = None) -> Voice:
        """What speaks; loaded at the first call. UnsupportedModel: the checkpoint has no talker."""
        if self._voice is None:
            self._voice = load_voice(self.files, self._options, self.network, progress)
        return self._voice

    def speak(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **sampling: Any,
    ) -> Iterator[SpeechEvent]:
        """Answer a conversation in text and speech at once: Tokens and SpeechChunks as they are made, the text's
        Completion, last a SpeechCompletion. ``speaker`` is a name of the config (None: its first)."""
        voice, prompt = self.voice(), self.chat_prompt(messages)
        media = MediaRows(prompt, voice.talker.config.accept_hidden_layer)
        answer = self.generator.stream([prompt], self._sampling(params, sampling), observe=media.observer)
        return self._speech(voice, answer, speech, prompt, media, speaker)

    def _speech(
        self,
        voice: Voice,
        answer: Iterator[Token | Completion],
        speech: SpeechParams | None,
        prompt: PromptRows,
        media: MediaRows,
        speaker: str | None,
    ) -> Iterator[SpeechEvent]:
        chosen = (speech or SpeechParams()).with_defaults(self.files.generation_config)
        return speak(voice, answer, frozenset(self.generator.eos_ids), chosen, prompt, media, speaker)

    def conversation(self, system: str | None = None) -> Conversation:
        """A multi-turn chat that keeps its KV cache from turn to turn."""
        return Conversation(self, [{"role": "system", "content": system}] if system else [])

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

    def _sampling(self, params: SamplingParams | None, sampling: Mapping[str, Any]) -> SamplingParams:
        try:
            chosen = replace(params, **sampling) if params else SamplingParams(**sampling)
        except TypeError as error:
            raise InvalidRequest(f"sampling: {str(error).replace('SamplingParams.__init__() ', '')}") from None
        return chosen.with_defaults(self.files.generation_config)


@dataclass(slots=True)
class Conversation:
    """Messages so far and the KV cache of the ids they became. A turn computes only what the cache does not hold."""

    model: Model
    messages: list[Message]
    _cache: KVCache | None = None
    _prompt: PromptRows = field(default_factory=lambda: PromptRows(()))
    _answer_ids: list[int] = field(default_factory=list)
    _media: dict[object, EncodedMedia] = field(default_factory=dict)
    _heard: MediaRows | None = None

    def ask(
        self,
        content: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        enable_thinking: bool | None = None,
        **sampling: Any,
    ) -> Iterator[Token | Completion]:
        """Add a user message, a text or parts with media, and stream the answer. An answer that is broken off (the
        iterator is closed) is kept as far as it came; a request that is refused leaves the conversation as it was."""
        messages, prompt, media = self._next_turn(content, enable_thinking)
        cache = self._reusable_cache(prompt)
        events = self.model.generator.stream([prompt], self.model._sampling(params, sampling), cache)
        self._cache, self._prompt, self._answer_ids, self._media = cache, prompt, [], media
        return self._answer(messages, events)

    def speak(
        self,
        content: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **sampling: Any,
    ) -> Iterator[SpeechEvent]:
        """As `ask`, the answer spoken too: the events of `Model.speak`. Turns may be asked and spoken in any order,
        each by a speaker of its own. Errors as `Model.speak`."""
        voice = self.model.voice()
        voice.prompts.speaker_id(speaker)
        messages, prompt, media = self._next_turn(content, None)
        heard = MediaRows(prompt, voice.talker.config.accept_hidden_layer)
        cache = self._reusable_cache(prompt, heard)
        chosen = self.model._sampling(params, sampling)
        answer = self.model.generator.stream([prompt], chosen, cache, observe=heard.observer)
        self._cache, self._prompt, self._answer_ids, self._media, self._heard = cache, prompt, [], media, heard
        return self._answer(messages, self.model._speech(voice, answer, speech, prompt, heard, speaker))

    def _next_turn(
        self, content: str | Sequence[Mapping[str, Any]], enable_thinking: bool | None
    ) -> tuple[list[Message], PromptRows, dict[object, EncodedMedia]]:
        messages = [*self.messages, {"role": "user", "content": content}]
        return messages, *self.model._read_prompt(messages, enable_thinking, self._media)

    def _answer(self, messages: list[Message], events: Iterator[_Event]) -> Iterator[_Event]:
        parts: list[str] = []
        try:
            for event in events:
                if isinstance(event, Token):
                    parts.append(event.text)
                    self._answer_ids.append(event.id)
                yield event
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(parts)}]

    def _reusable_cache(self, prompt: PromptRows, heard: MediaRows | None = None) -> KVCache:
        """The cache cut back to the longest prefix it shares with ``prompt``, the last id always left to compute.
        ``heard`` takes over what was kept for the talker; media it lacks (of a turn that was not spoken) run again."""
        shared = 0
        if self._cache is not None:
            limit = min(self._cache.length, len(prompt) - 1)
            shared = self._prompt.extended(self._answer_ids).shares_rows(prompt, limit)
        if heard is not None:
            shared = heard.take_over(self._heard, shared)
        elif self._heard is not None:
            self._heard.forget(shared)
        if self._cache is None:
            return self.model.generator.new_cache()
        self._cache.truncate(shared)
        return self._cache
