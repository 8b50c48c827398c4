"""``lluda generate``: one prompt, one answer, streamed to stdout."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lluda.cli import options
from lluda.cli.chat_input import add_chat_options, add_messages, chat_options, conversation, uses_template
from lluda.cli.console import byte_progress, say
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.text_input import read_text_argument
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.engine.request import Completion, Token

PROMPT_HELP = "{}, or - to read it from stdin (UTF-8; a byte order mark and the end of the last line are no part of it)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("prompt", nargs="?", help=PROMPT_HELP.format("the prompt"))
    options.add_model(parser, required=False)
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, that of stdin too, without a template"
    )
    add_chat_options(parser)
    add_messages(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of streamed text")
    parser.add_argument("--logprobs", type=int, metavar="N", help="with --json: every token with N alternatives")
    options.add_sampling(parser)
    options.add_loading(parser)
    options.add_ranks(parser)
    options.add_rope_scaling(parser)


def run(args: argparse.Namespace) -> int:
    """Load, answer, report rates on stderr. What can be refused without the model is refused before it is loaded."""
    _check_combinations(args)
    prompt = None if args.prompt is None else read_text_argument(args.prompt, raw=args.raw)
    if args.raw and prompt is None:
        raise InvalidRequest("no prompt given: --raw continues a text; give it, or - to read it from stdin")
    messages = [] if args.raw else conversation(args, prompt)
    params, chat = options.sampling_params(args), chat_options(args)
    model = load_model(args)
    if messages and model.chat_template is None and not uses_template(args):
        say("the checkpoint has no chat template: continuing the text as it is (--raw)")
        messages = []
    events = model.chat_stream(messages, params, **chat) if messages else model.stream(prompt or "", params)
    completion = print_stream(events, quiet=args.json)
    if args.json:
        options.print_json(document(model, messages if prompt is None else prompt, completion))
    else:
        say(rates(model, completion))
    return 0


def load_model(args: argparse.Namespace) -> Model:
    """Load ``-m`` with a progress bar; what was chosen, and warnings about the weights, go to stderr.

    InvalidRequest: a thinking switch for a chat template that has none.
    """
    path = options.find_model(args.model, args, answers=True)
    with heavy_imports():
        from lluda import load
    with byte_progress("loading") as progress:
        model = load(path, progress=progress, **options.load_options(args))
    say(model.describe())
    for warning in model.warnings:
        say(f"warning: {warning}")
    template = model.chat_template
    if args.thinking is not None and template is not None and "enable_thinking" not in template.source:
        raise InvalidRequest(f"{template.path}: the chat template has no thinking switch; leave out --[no-]thinking")
    return model


def rates(model: Model, completion: Completion) -> str:
    """Tokens, speed and finish reason (if not the model's own end) in one line."""
    count = len(completion.token_ids)
    rate = f" at {completion.tokens_per_second:.1f} tok/s" if count > 1 else ""
    context = model.runner.cache_options.max_length
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
    if args.raw and uses_template(args):
        raise InvalidRequest(
            "--raw uses no chat template, so --system, --[no-]thinking, --tools, --documents, --template-arg, "
            "--messages, --prefill and --continue-final-message have no place in it"
        )
    require_json_for_logprobs(args)


def require_json_for_logprobs(args: argparse.Namespace) -> None:
    """InvalidRequest: log-probabilities asked for where they are not shown."""
    if args.logprobs is not None and not args.json:
        raise InvalidRequest("--logprobs is shown in the JSON document only; give --json as well")


def print_stream(events: Iterator[Token | Completion], *, quiet: bool) -> Completion:
    """Write text as it is decoded, and end the line in any case; returns the Completion."""
    from lluda.engine.request import Completion

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


def document(model: Model, prompt: str | Sequence[Any], completion: Completion) -> dict[str, Any]:
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
