"""``lluda generate``: one prompt, one answer, streamed to stdout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lluda.cli import options
from lluda.cli.console import byte_progress, plain_interrupt, say
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.engine.generation import Completion, Token
    from lluda.engine.model import Model
    from lluda.engine.sampling_params import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("prompt", help="the prompt, or - to read it from stdin")
    options.add_model(parser, required=False)
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    options.add_conversation(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of streamed text")
    parser.add_argument("--logprobs", type=int, metavar="N", help="with --json: every token with N alternatives")
    options.add_sampling(parser)
    options.add_loading(parser)
    options.add_rope_scaling(parser)


def run(args: argparse.Namespace) -> int:
    """Load, answer, report rates on stderr. What can be refused without the model is refused before it is loaded."""
    _check_combinations(args)
    prompt, params = read_prompt(args.prompt), options.sampling_params(args)
    model = load_model(args)
    completion = print_stream(_events(model, prompt, params, args), quiet=args.json)
    if args.json:
        options.print_json(document(model, prompt, completion))
    else:
        say(rates(model, completion))
    return 0


def read_prompt(text: str) -> str:
    """The prompt itself, or stdin's text for ``-``. InvalidRequest for bytes that are not UTF-8, or nothing at all."""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the prompt on stdin is not UTF-8: bad byte at offset {error.start}") from None
    require_text(text, "the prompt")
    if not text:
        raise InvalidRequest("the prompt is empty: give at least one character")
    return text


def require_text(text: str, what: str) -> None:
    """InvalidRequest if an argument or a line held bytes that are not UTF-8 (Python hands them on as surrogates)."""
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InvalidRequest(f"{what} is not valid UTF-8: a bad byte at character {index}; encode it as UTF-8")


def load_model(args: argparse.Namespace) -> Model:
    """Load ``-m`` with a progress bar; what was chosen, and warnings about the weights, go to stderr.

    InvalidRequest: a thinking switch for a chat template that has none.
    """
    path = options.find_model(args.model, args)
    with plain_interrupt():
        from lluda import load
    with byte_progress("loading") as progress:
        model = load(path, progress=progress, **options.load_options(args))
    say(model.describe())
    for warning in model.report.suspicious:
        say(f"warning: {warning}")
    template = model.chat_template
    if args.thinking is not None and template is not None and "enable_thinking" not in template.source:
        raise InvalidRequest(f"{template.path}: the chat template has no thinking switch; leave out --[no-]thinking")
    return model


def rates(model: Model, completion: Completion) -> str:
    """How long it took, and why it ended if the model would have gone on, in one line."""
    count = len(completion.token_ids)
    rate = f" at {completion.tokens_per_second:.1f} tok/s" if count > 1 else ""
    context = model.generator.cache_options.max_length
    ended = ""
    if completion.finish_reason == "length":
        full = completion.prompt_tokens + count >= context
        ended = f" (stopped: the context of {context} is full)" if full else f" (stopped: max_tokens is {count})"
    return (
        f"prompt {_tokens(completion.prompt_tokens)} in {completion.prefill_seconds:.2f} s, "
        f"answer {_tokens(count)}{rate}{ended}"
    )


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _check_combinations(args: argparse.Namespace) -> None:
    if args.raw and (args.system is not None or args.thinking is not None):
        raise InvalidRequest("--raw uses no chat template, so --system and --[no-]thinking have no place in it")
    if args.logprobs is not None and not args.json:
        raise InvalidRequest("--logprobs is shown in the JSON document only; give --json as well")
    require_text(args.system or "", "--system")


def _events(
    model: Model, prompt: str, params: SamplingParams, args: argparse.Namespace
) -> Iterator[Token | Completion]:
    """The answer; without a chat template a plain continuation, which is said."""
    if args.raw:
        return model.stream(prompt, params)
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    if model.chat_template is None and not system and args.thinking is None:
        say("the checkpoint has no chat template: continuing the text as it is (--raw)")
        return model.stream(prompt, params)
    messages = [*system, {"role": "user", "content": prompt}]
    return model.chat_stream(messages, params, enable_thinking=args.thinking)


def print_stream(events: Iterator[Token | Completion], *, quiet: bool) -> Completion:
    """Write text as it becomes safe, and end its line however it ends; returns the Completion."""
    from lluda.engine.generation import Completion

    begun = False
    try:
        for event in events:
            if isinstance(event, Completion):
                begun = True
                return event
            if not quiet:
                begun = True
                print(event.text, end="", flush=True)
    finally:
        if begun and not quiet:
            print(flush=True)
    raise AssertionError("the stream ended without a Completion")


def document(model: Model, prompt: str, completion: Completion) -> dict[str, Any]:
    """The answer for machines; tokens one by one where log-probabilities were asked for."""
    fields = asdict(completion)
    fields.pop("index")
    tokens = fields.pop("tokens")
    document = {
        "model": str(model.files.path),
        "run": model.describe(),
        "prompt": prompt,
        **fields,
        "tokens_per_second": completion.tokens_per_second,
    }
    if tokens and tokens[0]["logprob"] is not None:
        document["tokens"] = [
            {
                "id": token["id"],
                "text": token["text"],
                "logprob": token["logprob"],
                "top": [{"id": other, "logprob": logprob} for other, logprob in token["top"]],
            }
            for token in tokens
        ]
    return document
