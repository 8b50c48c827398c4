"""``lluda talk``: a spoken conversation in the terminal, with this computer's microphone and loudspeaker."""

from __future__ import annotations

import argparse
from contextlib import closing

from lluda.cli import options
from lluda.cli.chat_input import add_chat_options, chat_options
from lluda.cli.console import byte_progress, say
from lluda.cli.text_input import require_text
from lluda.cli.verbs.generate import load_model
from lluda.cli.verbs.speak import add_speech, say_guard, speech_params
from lluda.outputs.audio_sink import DEVICE, open_audio_sink

EAGERNESS = ("low", "medium", "high")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.epilog = (
        "Speak to interrupt an answer; Ctrl-C ends. Nothing takes the loudspeaker's sound out of the microphone's: use "
        "headphones, or --no-interrupting."
    )
    options.add_model(parser, required=False)
    group = parser.add_argument_group("sound")
    group.add_argument("--microphone", metavar="FILE", help="a recording in place of the microphone; it ends the talk")
    group.add_argument(
        "-o", "--output", default=DEVICE, metavar="FILE", help=f"a .wav or .flac file of what was heard, or {DEVICE}"
    )
    group.add_argument(
        "--eagerness", choices=EAGERNESS, default="medium", help="how soon a pause ends your turn (default medium)"
    )
    group.add_argument(
        "--no-interrupting", dest="interrupts", action="store_false",
        help="do not listen while an answer is made or sounds: for loudspeakers, which the microphone hears too",
    )  # fmt: skip
    add_chat_options(parser)
    add_speech(parser)
    options.add_sampling(parser)
    options.add_loading(parser)
    options.add_ranks(parser)
    options.add_rope_scaling(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until Ctrl-C, or until a recording in place of the microphone is over."""
    from lluda.inputs.media.microphone import microphone
    from lluda.outputs.player import Player

    require_text(args.system or "", "--system")
    params, asked, speech = options.sampling_params(args), chat_options(args), speech_params(args)
    blocks = microphone(args.microphone)
    args.model = options.model_or_tiny_omni(args.model)
    model = load_model(args)
    with byte_progress("loading speech") as progress:
        stack = model.speech_stack(progress)
    say_guard(speech)
    stack.prompts.speaker_id(args.speaker)

    from lluda.cli.talk_session import TalkOptions, TalkSession

    how = TalkOptions(params, speech, args.speaker, asked, args.interrupts)

    with Player(open_audio_sink(args.output, stack.sample_rate, args.encoding), stack.sample_rate) as player:
        session = TalkSession(model, player, how, system=args.system, eagerness=args.eagerness)
        interrupting = "speak to interrupt (with headphones)" if args.interrupts else "an answer is not interrupted"
        say(f"speak now; {interrupting}; Ctrl-C ends")
        with session, closing(blocks):
            try:
                for block in blocks:
                    session.hear(block)
                session.wait()
            except KeyboardInterrupt:
                say("ended")
    return 0
