"""``lluda chat``: a conversation in the terminal. Ctrl-C stops an answer; Ctrl-D or /exit ends."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.generate import load_model, rates
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.engine.model import Conversation, Model

_HELP = "/reset forgets the conversation, /system TEXT starts anew with a system message, /exit or Ctrl-D ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser, required=False)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--thinking", dest="thinking", action="store_true", default=None, help="Qwen3 thinks first")
    thinking.add_argument("--no-thinking", dest="thinking", action="store_false", help="Qwen3 answers at once")
    options.add_sampling(parser)
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Read lines until the end of input. A refused request is reported and the conversation goes on."""
    model = load_model(options.model_or_demo(args.model), args)
    if model.chat_template is None:
        model.chat_prompt([])
    print(f"lluda: {_HELP}", file=sys.stderr)
    conversation = model.conversation(args.system)
    while True:
        try:
            line = _read_line()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        if line in ("/exit", "/quit"):
            return 0
        conversation = _handle(model, conversation, line, args)


def _read_line() -> str:
    """The next line; the mark is shown on stderr so that stdout holds only answers."""
    print("> ", end="", file=sys.stderr, flush=True)
    return input().strip()


def _handle(model: Model, conversation: Conversation, line: str, args: argparse.Namespace) -> Conversation:
    command, _, rest = line.partition(" ")
    if command == "/reset":
        return model.conversation(args.system)
    if command == "/system":
        return model.conversation(rest.strip() or None)
    if line.startswith("/"):
        print(f"lluda: {_HELP}", file=sys.stderr)
    elif line:
        try:
            _answer(conversation, line, args)
        except InvalidRequest as error:
            print(f"lluda: {' '.join(str(error).split())}", file=sys.stderr)
    return conversation


def _answer(conversation: Conversation, text: str, args: argparse.Namespace) -> None:
    from lluda.engine.generation import Token

    events = conversation.ask(text, enable_thinking=args.thinking, **options.sampling_options(args))
    try:
        for event in events:
            if isinstance(event, Token):
                print(event.text, end="", flush=True)
            else:
                print(flush=True)
                print(rates(event), file=sys.stderr)
    except KeyboardInterrupt:
        print(flush=True)
        print("lluda: stopped", file=sys.stderr)
    finally:
        events.close()  # type: ignore[attr-defined]
