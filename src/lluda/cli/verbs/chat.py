"""``lluda chat``: a conversation in the terminal, or over a pipe, one line a turn."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.cli import options
from lluda.cli.chat_input import add_chat_options, chat_options
from lluda.cli.console import byte_progress, say
from lluda.cli.text_input import MARK, require_text
from lluda.cli.verbs.generate import load_model, rates
from lluda.cli.verbs.speak import add_speech, say_guard, speech_params, speech_summary
from lluda.errors import LimitExceeded, LludaError
from lluda.outputs.audio_sink import AudioSink, open_audio_sink

if TYPE_CHECKING:
    from lluda.api.conversation import Conversation
    from lluda.api.model import Model
    from lluda.engine.request import SpeechEvent
    from lluda.engine.sampling.sampling_params import SamplingParams
    from lluda.engine.speech.speech_params import SpeechParams

_GREETING = "Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands"
_NUMBERED = "answer-{:03}.wav"
_MEDIA = {"/audio": "audio", "/image": "image", "/video": "video"}
_COMMANDS = (
    "/audio FILE, /image FILE and /video FILE go with the next line (Omni models); /reset forgets the conversation; "
    "/system TEXT begins anew with a system message (none without TEXT); "
    "/tool TEXT gives the result of a tool that the answer called (--tools); "
    "/speaker NAME changes the speaker of --speak; "
    "/exit or Ctrl-D ends; Ctrl-C stops an answer; a line that begins with a space is no command"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.epilog = f"Inside: {_COMMANDS}."
    options.add_model(parser, required=False)
    add_chat_options(parser)
    parser.add_argument(
        "--speak",
        metavar="FOLDER",
        help="speak the answers too (Omni models): each to a file of the folder, or to the sound device: speakers",
    )
    add_speech(parser)
    options.add_sampling(parser)
    options.add_loading(parser)
    options.add_ranks(parser)
    options.add_rope_scaling(parser)


def run(args: argparse.Namespace) -> int:
    """Read lines until the end of input. A refused turn is reported and the conversation goes on without it."""
    require_text(args.system or "", "--system")
    params, asked = options.sampling_params(args), chat_options(args)
    speech = speech_params(args) if args.speak else None
    if speech is not None:
        args.model = options.model_or_tiny_omni(args.model)
    model = load_model(args)
    speech_output = _SpeechOutput(model, args.speak, speech, args.speaker, args.encoding) if speech else None
    chat = _Chat(model, params, args.system, asked, speech_output)
    say(_GREETING)
    _prepare_input()
    while (line := _next_line()) is not None and chat.take(line):
        pass
    return 0


class _SpeechOutput:
    """Where the spoken answers go, and with which speaker. UnsupportedModel: the model does not speak. InvalidRequest:
    there is no such speaker."""

    def __init__(self, model: Model, target: str, params: SpeechParams, speaker: str | None, encoding: str) -> None:
        with byte_progress("loading speech") as progress:
            self.stack = model.speech_stack(progress)
        say_guard(params)
        self.params, self._target, self._encoding = params, target, encoding
        self.speaker = speaker
        self.stack.prompts.speaker_id(speaker)
        if target != "speakers":
            Path(target).mkdir(parents=True, exist_ok=True)

    def open(self) -> AudioSink:
        """A sink for the next answer: the first numbered file that is not there yet."""
        target = self._target
        if target != "speakers":
            names = (Path(target) / _NUMBERED.format(number) for number in count(1))
            target = str(next(path for path in names if not path.exists()))
            say(f"speaking to {target}")
        return open_audio_sink(target, self.stack.sample_rate, self._encoding)

    def change(self, speaker: str) -> None:
        """Another speaker from the next answer on."""
        self.stack.prompts.speaker_id(speaker)
        self.speaker = speaker


class _Chat:
    """The conversation and the commands that act on it. Errors as `Model.chat_prompt`."""

    def __init__(
        self,
        model: Model,
        params: SamplingParams,
        system: str | None,
        chat_options: Mapping[str, Any],
        speech: _SpeechOutput | None = None,
    ) -> None:
        begin = [{"role": "system", "content": system}] if system else []
        # Options that no turn could be rendered with are refused before the first is typed.
        model.chat_prompt([*begin, {"role": "user", "content": "Hello"}], **chat_options)
        self._model = model
        self._params = params
        self._system = system
        self._chat_options = chat_options
        self._speech = speech
        self._attached: list[dict[str, str]] = []
        self._conversation = self._begin()

    def take(self, line: str) -> bool:
        """Answer a message or run a command; False for the command that ends the chat."""
        command, _, rest = line.rstrip().partition(" ")
        match command:
            case "/exit" | "/quit":
                return False
            case "/audio" | "/image" | "/video":
                self._attach(_MEDIA[command], rest.strip())
            case "/tool":
                self._give_tool_result(rest.strip())
            case "/speaker":
                self._change_speaker(rest.strip())
            case "/reset":
                self._conversation = self._begin()
                say("the conversation is forgotten")
            case "/system":
                self._system = rest.strip() or None
                self._conversation = self._begin()
                say("a new conversation with this system message" if self._system else "a new conversation without one")
            case "/help":
                say(_COMMANDS)
            case _ if command.startswith("/"):
                say(f"{command:.40} is no command: {_COMMANDS}")
            case _ if line.strip():
                self._answer({"role": "user", "content": line.strip()})
        return True

    def _give_tool_result(self, text: str) -> None:
        if not text:
            say("/tool needs the result as a text")
        else:
            self._answer({"role": "tool", "content": text})

    def _change_speaker(self, name: str) -> None:
        if self._speech is None:
            say("nothing is spoken: begin the chat with --speak")
            return
        try:
            self._speech.change(name)
        except LludaError as error:
            say(str(error))
        else:
            say(f"{name} speaks from now on")

    def _attach(self, kind: str, path: str) -> None:
        if not path:
            say(f"/{kind} needs the name of a file")
        elif self._model.media is None:
            say(f"a {self._model.config.model_type} model takes text only; /{kind} needs an Omni model")
        else:
            self._attached.append({"type": kind, "path": path})
            say(f"{path} goes with the next line")

    def _begin(self) -> Conversation:
        self._attached.clear()
        return self._model.conversation(self._system, **self._chat_options)

    def _answer(self, message: dict[str, Any]) -> None:
        """Stream the answer to one message. One that Ctrl-C stops is part of the conversation as far as it came."""
        try:
            require_text(message["content"], "the line")
            self._stream(message)
        except KeyboardInterrupt:
            print(flush=True)
            say("stopped")
        except LludaError as error:
            remedy = "; /reset clears the conversation" if isinstance(error, LimitExceeded) else ""
            say(f"{error}{remedy}")

    def _stream(self, message: dict[str, Any]) -> None:
        # Taken even if the turn is refused: a file that cannot be read would refuse every turn after it.
        attached, self._attached = self._attached, []
        if attached:
            message = message | {"content": [*attached, {"type": "text", "text": message["content"]}]}
        if self._speech is None:
            self._show(self._conversation.send([message], self._params), None)
            return
        output = self._speech
        events = self._conversation.send_spoken([message], self._params, output.params, speaker=output.speaker)
        with output.open() as sink:
            self._show(events, sink)

    def _show(self, events: Iterator[SpeechEvent], sink: AudioSink | None) -> None:
        from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, Token

        try:
            for event in events:
                match event:
                    case Token():
                        print(event.text, end="", flush=True)
                    case Completion():
                        print(flush=True)
                        say(rates(self._model, event))
                    case SpeechChunk():
                        assert sink is not None, "speech nobody asked for"
                        sink.write(event.samples)
                    case SpeechCompletion():
                        assert self._speech is not None, "speech nobody asked for"
                        say(speech_summary(event, self._speech.stack.sample_rate))
        finally:
            # The generator writes the turn into the conversation when it ends; not at some later collection.
            events.close()  # type: ignore[attr-defined]


def _prepare_input() -> None:
    """Bad bytes reach `require_text` instead of ending the chat; a terminal gets line editing and history."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if _is_typed():
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401


def _is_typed() -> bool:
    return sys.stdin.isatty()


def _next_line() -> str | None:
    """The next line without its end; None at the end of input. Ctrl-C at a terminal drops what was typed."""
    while True:
        try:
            return _read_line()
        except EOFError:
            if _is_typed():
                print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not _is_typed():
                raise
            print(file=sys.stderr)
            say(_GREETING)


def _read_line() -> str:
    """One line, after a mark where a person types it. A file that takes stdout gets nothing but answers."""
    if _is_typed() and sys.stdout.isatty():
        return input("> ")
    if _is_typed():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r").removeprefix(MARK)
