"""``lluda speak``: text to speech, streamed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.console import byte_progress, say
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.text_input import read_text_argument
from lluda.cli.verbs.generate import PROMPT_HELP
from lluda.engine.speech.speech_guard import SpeechGuard
from lluda.errors import InvalidRequest
from lluda.outputs.audio_sink import ENCODINGS, AudioSink, open_audio_sink

if TYPE_CHECKING:
    from lluda.engine.request import SpeechCompletion, SpeechEvent
    from lluda.engine.speech.speech_params import SpeechParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("text", help=PROMPT_HELP.format("what is said"))
    options.add_model(parser, required=False)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .wav or .flac file, - for stdout, or speakers"
    )
    add_speech(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document about the speech on stdout")
    options.add_loading(parser)


def add_speech(parser: argparse.ArgumentParser) -> None:
    """How to speak."""
    group = parser.add_argument_group("speech (defaults: generation_config.json)")
    group.add_argument("--speaker", metavar="NAME", help="a speaker of the config (default: its first)")
    group.add_argument("--encoding", default="pcm16", metavar="E", help=f"{' or '.join(ENCODINGS)} (default pcm16)")
    group.add_argument("--speech-temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--speech-seed", type=int, metavar="N", help="repeat the same draw")
    group.add_argument("--speech-top-k", type=int, metavar="K", help="keep the K most likely codes; 0 is off")
    group.add_argument("--speech-top-p", type=float, metavar="X", help="keep the most likely codes of this probability")
    group.add_argument("--speech-repetition-penalty", type=float, metavar="X", help="for codes already used; 1 is off")
    group.add_argument("--max-frames", type=int, metavar="N", help="80 ms each (default 4096)")
    group.add_argument(
        "--speech-guard", metavar="S,S", default=SpeechGuard().option,
        help="seconds that any speech may take, and more for each token of its text, after which a talker that does "
        f"not come to its end is stopped (default {SpeechGuard().option}; off: never)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load the model, speak, report times on stderr."""
    if args.json and args.output == "-":
        raise InvalidRequest("--json and -o - both want stdout; write the speech to a file")
    text, params = read_text_argument(args.text, "the text"), speech_params(args)
    source = options.find_model(options.model_or_tiny_omni(args.model), args)
    with heavy_imports():
        from lluda.api.speech_model import load_speech
    with byte_progress("loading") as progress:
        model = load_speech(source, progress=progress, **options.load_options(args))
    say(model.describe())
    say_guard(params)
    events = model.speak(text, params, speaker=args.speaker)
    with open_audio_sink(args.output, model.sample_rate, args.encoding) as sink:
        completion = write_speech(events, sink)
    if args.json:
        made = {"model": str(source.path), "run": model.describe(), "output": args.output}
        options.print_json({**made, **asdict(completion)})
    else:
        say(speech_summary(completion, model.sample_rate))
    return 0


def speech_params(args: argparse.Namespace) -> SpeechParams:
    """What was asked for; the rest is left to the model's defaults. InvalidRequest: a value out of its range."""
    from lluda.engine.sampling.sampling_params import SamplingParams
    from lluda.engine.speech.speech_params import SpeechParams

    sampling = SamplingParams(
        temperature=args.speech_temperature,
        seed=args.speech_seed,
        top_k=args.speech_top_k,
        top_p=args.speech_top_p,
        repetition_penalty=args.speech_repetition_penalty,
    )
    return SpeechParams(sampling=sampling, max_frames=args.max_frames, guard=SpeechGuard.parse(args.speech_guard))


def say_guard(params: SpeechParams) -> None:
    """What bounds the speech, on stderr."""
    if params.guard is not None:
        say(f"speech may take {params.guard.describe()} (--speech-guard)")


def write_speech(events: Iterable[SpeechEvent], sink: AudioSink) -> SpeechCompletion:
    """Hand all samples to ``sink`` as they come."""
    from lluda.engine.request import SpeechChunk, SpeechCompletion

    for event in events:
        if isinstance(event, SpeechChunk):
            sink.write(event.samples)
        elif isinstance(event, SpeechCompletion):
            return event
    raise AssertionError("the speech ended without a SpeechCompletion")


_ENDED = {
    "length": " (stopped: max_frames)",
    "runaway": " (stopped: the talker did not come to its end; --speech-guard allows more)",
}


def speech_summary(completion: SpeechCompletion, rate: int) -> str:
    """Duration, speed and finish reason in one line."""
    if not completion.frames:
        return "nothing was spoken: the answer has no text"
    ended = _ENDED.get(completion.finish_reason, "")
    audio_seconds = completion.samples / rate
    factor, first = completion.seconds / audio_seconds, completion.first_audio_seconds or 0.0
    return (
        f"{audio_seconds:.2f} s of speech in {completion.seconds:.2f} s ({factor:.2f} of real time), "
        f"the first sound after {first:.2f} s{ended}"
    )
