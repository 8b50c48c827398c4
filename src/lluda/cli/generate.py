"""``lluda generate``: one prompt, one answer, streamed to stdout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lluda.cli import options
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.engine.generation import Completion, Token
    from lluda.engine.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("prompt", help="the prompt, or - to read it from stdin")
    options.add_model(parser, required=False)
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--thinking", dest="thinking", action="store_true", default=None, help="Qwen3 thinks first")
    thinking.add_argument("--no-thinking", dest="thinking", action="store_false", help="Qwen3 answers at once")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of streamed text")
    options.add_sampling(parser)
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Load, answer, report rates on stderr."""
    prompt = read_prompt(args.prompt)
    name = options.model_or_demo(args.model)
    model = load_model(name, args)
    completion = _print_stream(_events(model, prompt, args), quiet=args.json)
    if args.json:
        options.print_json({"model": model.describe(), "prompt": prompt, **asdict(completion)})
    else:
        print(rates(completion), file=sys.stderr)
    return 0


def read_prompt(text: str) -> str:
    """The prompt itself, or stdin's text for ``-``. InvalidRequest for bytes that are not UTF-8, or nothing at all."""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the prompt on stdin is not UTF-8: bad byte at offset {error.start}") from None
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("the prompt is not valid UTF-8: the argument holds bytes that are no text")
    if not text:
        raise InvalidRequest("the prompt is empty: give at least one character")
    return text


def load_model(name: str, args: argparse.Namespace) -> Model:
    """Load with a progress bar; what was chosen, and warnings about the weights, go to stderr."""
    import lluda

    with options.byte_progress("loading") as progress:
        model = lluda.load(name, progress=progress, **options.load_options(args))
    print(f"lluda: {model.describe()}", file=sys.stderr)
    for warning in model.report.suspicious:
        print(f"lluda: warning: {warning}", file=sys.stderr)
    return model


def rates(completion: Completion) -> str:
    """How long it took, in one line."""
    ended = "" if completion.finish_reason == "stop" else " (stopped by --max-tokens)"
    return (
        f"lluda: prompt {completion.prompt_tokens} tokens in {completion.prefill_seconds:.2f} s, "
        f"answer {len(completion.token_ids)} tokens at {completion.tokens_per_second:.1f} tok/s{ended}"
    )


def _events(model: Model, prompt: str, args: argparse.Namespace) -> Iterator[Token | Completion]:
    sampling: dict[str, Any] = options.sampling_options(args)
    if args.raw or model.chat_template is None:
        return model.stream(prompt, **sampling)
    system = [{"role": "system", "content": args.system}] if args.system else []
    messages = [*system, {"role": "user", "content": prompt}]
    return model.chat_stream(messages, enable_thinking=args.thinking, **sampling)


def _print_stream(events: Iterator[Token | Completion], *, quiet: bool) -> Completion:
    """Write text as it becomes safe; returns the Completion that ends it."""
    from lluda.engine.generation import Completion

    for event in events:
        if isinstance(event, Completion):
            if not quiet:
                print(flush=True)
            return event
        if not quiet:
            print(event.text, end="", flush=True)
    raise AssertionError("the stream ended without a Completion")
