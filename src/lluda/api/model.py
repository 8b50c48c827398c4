"""``lluda.load`` and the Model it returns."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from typing import Any, TypeVar, cast

from lluda.api.conversation import Conversation, Message
from lluda.api.listening import open_listener
from lluda.api.spoken_text import spoken_text
from lluda.api.unclear_answer import find_unclear_answer
from lluda.config.model import resolve_dtype
from lluda.engine.engine import Engine
from lluda.engine.listening.listener import Listener
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, load_speech_stack, make_runner
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.tokenizer import load_chat_template, load_tokenizer
from lluda.engine.media import EncodedMedia, MediaReader, read_media
from lluda.engine.parallel.follower import follow
from lluda.engine.parallel.leader import Leader
from lluda.engine.parallel.limits import require_shareable
from lluda.engine.parallel.ranks import is_follower
from lluda.engine.parallel.ranks_plan import with_other_ranks
from lluda.engine.parallel.setup import CheckpointSetup
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import (
    Completion,
    Request,
    SpeechChunk,
    SpeechCompletion,
    SpeechEvent,
    SpokenAnswer,
    Token,
)
from lluda.engine.sampling.answer_ends import AnswerEnds
from lluda.engine.sampling.grammar import Grammars
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.stream import Stream
from lluda.engine.warm_up import warm_up
from lluda.errors import InvalidRequest, UnsupportedModel
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.inputs.chat.prompt import build_chat_prompt
from lluda.inputs.media.media_parts import take_media
from lluda.models.thinker import Thinker
from lluda.parameters import Share
from lluda.weights.loader import Progress

_SILENT_SPANS = (("<think>", "</think>"),)
_SPEECH_ENDS = ("<tool_call>",)
"""Added tokens of an answer between which, and from which on, nothing is spoken."""

_Params = TypeVar("_Params", ChatOptions, SamplingParams)


def load(name_or_path: str | os.PathLike[str], *, progress: Progress | None = None, **options: Any) -> Model:
    """Load a text model from a folder, a .gguf file or a hub name ``org/name[@revision]``.

    ``options`` are the fields of :class:`LoadOptions`; ``progress`` is called with bytes done and in all.

    Raises:
        ModelNotFound, CorruptFile, UnsupportedModel: the checkpoint cannot be had, read or run.
        OutOfMemory: the plan does not fit; nothing was allocated.
        InvalidRequest: an option out of its range.
        RankLost: with ``tensor_parallel``, a process that was to load a share could not.

    Under torchrun the other ranks stay in here until the first ends them, and then exit.
    """
    if is_follower():
        follow()
        raise SystemExit(0)
    try:
        chosen = LoadOptions(**options)
    except TypeError as error:
        raise InvalidRequest(f"load: {str(error).replace('LoadOptions.__init__() ', '')}") from None
    files = ModelFiles.find(
        name_or_path,
        allow_unknown_config=chosen.allow_unknown_config,
        rope_scaling=chosen.rope_scaling,
        answers=True,
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
        self._leader: Leader | None = None
        if options.tensor_parallel > 1:
            require_shareable(files, options)
            with_other_ranks(files.plan(options), files, options).require_fit()
            self._leader = Leader(CheckpointSetup(str(files.path), options), options.tensor_parallel)
        self._options = options.on_rank()
        try:
            self._load(progress)
        except BaseException:
            if self._leader is not None:
                self._leader.close()
            raise

    def _load(self, progress: Progress | None) -> None:
        files, options, leader = self.files, self._options, self._leader
        share, join = Share(0, options.tensor_parallel), leader.join if leader else None
        self.network, self.report = load_network(files, options, progress, share, join)
        self.media = MediaReader(self.network, files.source) if isinstance(self.network, Thinker) else None
        self.ends = AnswerEnds.find(files.eos_ids, self.tokenizer, self.chat_template)
        self.runner = make_runner(files, options, self.network, leader)
        context = self.runner.cache_options.max_length
        self.engine = Engine(
            self.runner,
            self.tokenizer,
            _speech_stack_of(self) if files.config.omni and files.config.omni.speech else None,
            kv_positions=files.sequences(options) * context,
            retained_positions=context,
        )
        if leader is not None:
            leader.on_lost(self.engine.fail)

    def describe(self) -> str:
        """What was chosen: model, backend, dtype, context, ends of an answer."""
        cache = self.runner.cache_options
        return (
            f"{self.files.name}: {self.config.model_type}, {self.report.describe()}; "
            f"{self.network.describe()}{self._describe_ranks()}; "
            f"context {cache.max_length}{self.config.text.rope.describe()}, "
            f"{cache.strategy} KV cache in {cache.dtype}, "
            f"prompts in chunks of {self.runner.prefill_chunk}, {self.ends.describe(self.tokenizer)}"
        )

    @property
    def rank_bytes(self) -> tuple[int, ...]:
        """Bytes of weights of each process that shares the text model; the first also has the encoders."""
        return tuple(self._leader.bytes_of_ranks.values()) if self._leader else (sum(self.report.sizes.values()),)

    def _describe_ranks(self) -> str:
        if self._leader is None:
            return ""
        sizes = ", ".join(f"{nbytes / 1e9:.2f} GB" for nbytes in self.rank_bytes)
        return f", weights of the ranks {sizes}"

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
        chosen = self.sampling(params, sampling)
        requests = [
            self.request(PromptRows(ids), chosen, turn=False, index=index)
            for index, ids in enumerate(self.encode_prompt(prompt))
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
        return cast("Stream[Token | Completion]", self.engine.submit(self.request(prompt, chosen)))

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
        return self.engine.submit(self.request(prompt, chosen, spoken=True, speech=speech, speaker=speaker))

    def say(
        self, text: str, params: SpeechParams | None = None, *, speaker: str | None = None
    ) -> Stream[Token | SpeechChunk | SpeechCompletion]:
        """``text`` spoken word for word: its tokens and SpeechChunks as they are made, last a SpeechCompletion."""
        request = self.say_request(text, params, speaker=speaker)
        return cast("Stream[Token | SpeechChunk | SpeechCompletion]", self.engine.submit(request))

    def listen(
        self,
        messages: Sequence[Message],
        *,
        spoken: bool = False,
        judged: bool = False,
        salt: bytes = b"",
        **options: Any,
    ) -> Listener:
        """Hear the next turn of a conversation while it is being spoken. `Listener.finish` gives the audio of the
        user's message that follows ``messages``. The answer, asked for with the same ``options`` (fields of
        ChatOptions), then is what it is to the whole recording, only sooner. ``spoken``: it will be spoken too.
        ``judged``: `Listener.first_token` is found where an end is expected. ``salt``: of the prompt (`PromptRows`).

        InvalidRequest: the model does not hear. UnsupportedModel: ``spoken``, and it has no talker.
        """
        return open_listener(self, messages, _fields(ChatOptions(), options), spoken=spoken, judged=judged, salt=salt)

    def conversation(self, system: str | None = None, **options: Any) -> Conversation:
        """A multi-turn chat whose turns compute only what is new in them; ``options`` are the fields of ChatOptions for
        all its turns."""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        return Conversation(self, messages, _fields(ChatOptions(), options))

    def speech_stack(self, progress: Progress | None = None) -> SpeechStack:
        """What speaks; loaded at the first call. UnsupportedModel: the checkpoint has no talker."""
        with self._loading_speech:
            if self._speech_stack is None:
                table = self.runner.table_of_tokens
                self._speech_stack = load_speech_stack(self.files, self._options, table, progress)
            return self._speech_stack

    def warm_up(self, sequences: int = 1) -> float:
        """Compile and capture what up to ``sequences`` answers at once launch on a GPU, before anyone waits for it:
        seconds that it took, 0 where nothing is captured. Of a model that speaks, what speaks is loaded, too."""
        speech = self.config.omni.speech if self.config.omni else None
        layer = speech.talker.accept_hidden_layer if speech else 0
        together = 1 if self.runner.deterministic else sequences
        seconds = warm_up(self.runner, together, stage=f"layers.{layer - 1}" if layer else "")
        if seconds and speech:
            graphs, params = self.speech_stack().graphs, SpeechParams().with_defaults(self.files.generation_config)
            begun = time.perf_counter()
            graphs.warm_up(params, together)
            seconds += time.perf_counter() - begun
        return seconds

    def close(self) -> None:
        """End the engine: what runs is cancelled, and nothing can be asked any more. Other ranks end too."""
        self.engine.close()
        if self._leader is not None:
            self._leader.close()

    # What a Conversation and a server ask with.

    def request(
        self,
        prompt: PromptRows,
        params: SamplingParams,
        *,
        spoken: bool = False,
        speech: SpeechParams | None = None,
        speaker: str | None = None,
        turn: bool = True,
        **options: Any,
    ) -> Request:
        """The request for an answer to rows of `read_prompt`; None in ``params`` becomes the checkpoint's default.

        ``spoken``: in speech too, as ``speech`` and ``speaker`` say; thoughts, and all from a tool call on, are not
        spoken. ``turn`` False: a plain continuation, which what only the chat template names as an end does not end.
        ``options``: further fields of the Request (``constraint``, ``index``, ``reuse``, ``priority``, ``deadline``).
        """
        answer = None
        if spoken:
            self.speech_stack()  # says what is missing where there is none
            chosen = (speech or SpeechParams()).with_defaults(self.files.generation_config)
            answer = SpokenAnswer(chosen, speaker, **self._unspoken)
        return Request(
            prompt=prompt,
            sampling=params.with_defaults(self.files.generation_config),
            end_ids=frozenset(self.ends.turn if turn else self.ends.text),
            speech=answer,
            **options,
        )

    def say_request(
        self, text: str, params: SpeechParams | None = None, *, speaker: str | None = None, **options: Any
    ) -> Request:
        """As `say`, as a request; ``options`` as in `request`."""
        return spoken_text(
            text,
            params,
            speaker,
            tokenizer=self.tokenizer,
            stack=self.speech_stack(),
            generation_config=self.files.generation_config,
            **options,
        )

    @property
    def can_speak(self) -> bool:
        """Whether the checkpoint has a talker."""
        return self.config.omni is not None and self.config.omni.speech is not None

    @property
    def can_hear(self) -> bool:
        """Whether it takes audio, images and videos."""
        return self.media is not None

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names of its voices, the first of which speaks where none is named."""
        omni = self.config.omni
        return tuple(omni.speech.talker.speakers) if omni and omni.speech else ()

    @cached_property
    def unclear_answer(self) -> Token | None:
        """What its answers begin with where it understood nothing (`find_unclear_answer`); asked once, and None too
        where it does not hear."""
        return find_unclear_answer(self) if self.can_hear else None

    @cached_property
    def grammars(self) -> Grammars:
        """What makes constraints for its answers."""
        return Grammars(self.tokenizer, self.config.text.vocab_size)

    @cached_property
    def _unspoken(self) -> dict[str, Any]:
        """Fields of `SpokenAnswer`: what of an answer is not spoken, by the tokens around it."""
        ids = {text: token.id for text, token in self.tokenizer.added_tokens.by_text.items()}
        spans = {ids[start]: ids[end] for start, end in _SILENT_SPANS if start in ids and end in ids}
        return {"silent_spans": spans, "ends_at": frozenset(ids[text] for text in _SPEECH_ENDS if text in ids)}

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
        encode = partial(self.engine.call, kind="encoder")
        return read_media(self.media, ids, parts, self.runner.cache_options.max_length, {}, encode)

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

    def encode_prompt(self, prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
        """The ids of one prompt or several, each a text (taken literally) or ids. InvalidRequest: something else."""
        prompts: list[Any] = [prompt] if isinstance(prompt, str) else list(prompt) if _is_list(prompt) else []
        if prompts and all(isinstance(item, int) for item in prompts):
            return [prompts]
        if prompts and all(_is_list(item) and all(isinstance(one, int) for one in item) for item in prompts):
            return [list(item) for item in prompts]
        if not prompts or not all(isinstance(item, str) for item in prompts):
            raise InvalidRequest(f"prompt must be a text, a list of token ids, or a list of either, not {prompt!r:.80}")
        prefix = list(self.tokenizer.prefix_ids)
        return [prefix + self.tokenizer.encode(text, allow_special=False) for text in prompts]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


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
