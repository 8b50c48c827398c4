"""``lluda ask``: one question about recordings, images and videos, the answer streamed to stdout, and spoken."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.cli import options
from lluda.cli.chat_input import add_chat_options, add_messages, chat_options, conversation
from lluda.cli.console import byte_progress, say
from lluda.cli.text_input import read_text_argument
from lluda.cli.verbs.generate import (
    PROMPT_HELP,
    document,
    load_model,
    print_stream,
    rates,
    require_json_for_logprobs,
)
from lluda.cli.verbs.speak import add_speech, say_guard, speech_params, speech_summary
from lluda.errors import InvalidRequest
from lluda.inputs.media.media_parts import check_file
from lluda.outputs.audio_sink import open_audio_sink
from lluda.weights.bundled import TINY_OMNI

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.engine.request import SpeechEvent

_FORMATS = {
    "audio": "wav, flac, mp3, m4a, ogg, webm, …",
    "image": "jpeg, png, webp, gif, tiff, …",
    "video": "mp4, webm, mkv, mov, …",
}


class _Attach(argparse.Action):
    """Collects media of all kinds in the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002  (argparse's interface)
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        namespace.media = [*namespace.media, (self.dest, values)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("question", nargs="?", help=PROMPT_HELP.format("the question (none: the media alone)"))
    options.add_model(parser, required=False)
    add_media(parser)
    add_chat_options(parser)
    add_messages(parser)
    parser.add_argument("--speak", metavar="FILE", help="speak the answer too: a .wav or .flac file, or speakers")
    add_speech(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of streamed text")
    parser.add_argument("--logprobs", type=int, metavar="N", help="with --json: every token with N alternatives")
    options.add_sampling(parser)
    options.add_loading(parser)
    options.add_ranks(parser)
    options.add_rope_scaling(parser)


def add_media(parser: argparse.ArgumentParser) -> None:
    """Recordings, images and videos; ``media_content`` makes parts of a message of them."""
    group = parser.add_argument_group("media (repeatable; given to the model in this order, before the question)")
    group.set_defaults(media=[])
    for kind, examples in {
        "audio": "wav, flac, mp3, m4a, ogg, webm",
        "image": "jpeg, png, webp",
        "video": "mp4, webm",
    }.items():
        group.add_argument(
            f"--{kind}", action=_Attach, default=argparse.SUPPRESS, metavar="FILE", help=f"{examples}, …"
        )
    group.add_argument("--fps", type=float, metavar="X", help="frames taken from a second of video (default 2)")
    group.add_argument("--use-audio", action="store_true", help="use the audio tracks of the videos too")


def run(args: argparse.Namespace) -> int:
    """Load, read the media, answer, report rates on stderr."""
    if args.speak and args.json:
        raise InvalidRequest("--json has no place for speech; leave it out, or --speak")
    if args.speak == "-":
        raise InvalidRequest("stdout is the text's; write the speech to a file, or to speakers")
    require_json_for_logprobs(args)
    question = None if args.question is None else read_text_argument(args.question, "the question")
    content = [*media_content(args), *([] if question is None else [{"type": "text", "text": question}])]
    messages, chat = conversation(args, content or None), chat_options(args)
    params = options.sampling_params(args)
    speech = speech_params(args) if args.speak else None
    args.model = options.model_or_tiny_omni(args.model)
    if args.model == TINY_OMNI and any(kind != "audio" for kind, _ in args.media):
        say(f"warning: {TINY_OMNI} was trained without pictures; what it says of them means nothing")
    model = load_model(args)
    if speech is not None:
        with byte_progress("loading speech") as progress:
            stack = model.speech_stack(progress)
        stack.prompts.speaker_id(args.speaker)
        say_guard(speech)
        return _print_spoken(model, model.speak(messages, params, speech, speaker=args.speaker, **chat), args)
    completion = print_stream(model.chat_stream(messages, params, **chat), quiet=args.json)
    if args.json:
        options.print_json(document(model, messages if question is None else question, completion))
    else:
        say(rates(model, completion))
    return 0


def _print_spoken(model: Model, events: Iterator[SpeechEvent], args: argparse.Namespace) -> int:
    """Text to stdout and speech to the sink, both as they are made."""
    from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, Token

    rate = model.speech_stack().sample_rate
    with open_audio_sink(args.speak, rate, args.encoding) as sink:
        for event in events:
            match event:
                case Token():
                    print(event.text, end="", flush=True)
                case Completion():
                    print(flush=True)
                    say(rates(model, event))
                case SpeechCompletion():
                    say(speech_summary(event, rate))
                case SpeechChunk():
                    sink.write(event.samples)
    return 0


def media_content(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The media as parts of a message. InvalidRequest, CorruptFile: options of videos without a video, an address, a
    folder or a file that is not there: found out before the model is loaded."""
    video = {"fps": args.fps, "use_audio": args.use_audio or None}
    if any(value is not None for value in video.values()) and not any(kind == "video" for kind, _ in args.media):
        raise InvalidRequest("--fps and --use-audio are about videos; give one with --video")
    for kind, path in args.media:
        check_file(kind, path)
        if not Path(path).is_file():
            raise InvalidRequest(f"--{kind} {path}: there is no such file")
    return [{"type": kind, "path": path, **(video if kind == "video" else {})} for kind, path in args.media]
