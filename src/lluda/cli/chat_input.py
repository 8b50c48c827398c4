"""Inputs of the chat template beside the user's message: options of the chat verbs, and their values."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lluda.cli.text_input import require_text
from lluda.errors import InvalidRequest
from lluda.inputs.chat.chat_options import ChatOptions


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """Options of every conversation."""
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", metavar="TEXT", help="a system message first")
    thinking = group.add_mutually_exclusive_group()
    thinking.add_argument("--thinking", dest="thinking", action="store_true", default=None, help="Qwen3 thinks first")
    thinking.add_argument("--no-thinking", dest="thinking", action="store_false", help="Qwen3 answers at once")
    group.add_argument("--tools", metavar="FILE", help="functions the model may call: a JSON list, as OpenAI's tools")
    group.add_argument("--documents", metavar="FILE", help="a JSON list of documents for templates that take them")
    group.add_argument(
        "--template-arg", action="append", metavar="KEY=VALUE", default=[],
        help="a variable of the chat template, its value JSON or else a text (repeatable)",
    )  # fmt: skip


def add_messages(parser: argparse.ArgumentParser) -> None:
    """Options of a conversation that is given whole, and of an answer that is begun."""
    group = parser.add_argument_group("given messages")
    group.add_argument(
        "--messages", metavar="FILE", help="a whole conversation in place of the prompt: a JSON list of messages"
    )
    group.add_argument("--prefill", metavar="TEXT", help="how the answer begins; the model goes on from there")
    group.add_argument(
        "--continue-final-message", action="store_true", help="go on with the last of --messages, not after it"
    )


def chat_options(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of ChatOptions that were asked for. InvalidRequest: a file or a value of another form."""
    chosen: dict[str, Any] = {"enable_thinking": args.thinking}
    for name in ("tools", "documents"):
        path = getattr(args, name)
        if path is not None:
            chosen[name] = _json_list(path, f"--{name}")
    if args.template_arg:
        chosen["chat_template_kwargs"] = dict(_template_argument(text) for text in args.template_arg)
    if getattr(args, "prefill", None) is not None or getattr(args, "continue_final_message", False):
        chosen["continue_final_message"] = True
    ChatOptions(**chosen)  # refuses before a model is loaded
    return {name: value for name, value in chosen.items() if value is not None}


def conversation(args: argparse.Namespace, content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The messages: of ``--messages``, or the system message and the user's ``content``; then how the answer begins.
    InvalidRequest: neither, or options that contradict each other."""
    for name in ("system", "prefill"):
        require_text(getattr(args, name) or "", f"--{name}")
    if args.messages is None:
        if content is None:
            raise InvalidRequest("no prompt given: give a text, - to read it from stdin, or --messages FILE")
        if args.continue_final_message:
            raise InvalidRequest("--continue-final-message goes on with the last of --messages; give --messages FILE")
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        messages = [*system, {"role": "user", "content": content}]
    else:
        if content is not None or args.system is not None:
            raise InvalidRequest("--messages has the whole conversation; leave out the prompt, media and --system")
        messages = _messages(args.messages)
    if args.prefill is None:
        return messages
    if args.continue_final_message:
        raise InvalidRequest("--prefill and --continue-final-message both begin the answer; give one of them")
    return [*messages, {"role": "assistant", "content": args.prefill}]


def uses_template(args: argparse.Namespace) -> bool:
    """Whether an option asks for what only a chat template can do."""
    given = (args.system, args.thinking, args.tools, args.documents, args.messages, args.prefill)
    return any(value is not None for value in given) or bool(args.template_arg) or args.continue_final_message


def _messages(path: str) -> list[dict[str, Any]]:
    from lluda.inputs.chat.prompt import check_messages
    from lluda.inputs.media.media_parts import take_media

    messages = _json_list(path, "--messages")
    check_messages(take_media(messages)[0])  # refuses before a model is loaded
    return messages


def _json_list(path: str, option: str) -> list[Any]:
    from lluda.files.json_file import read_json

    if not Path(path).exists():
        raise InvalidRequest(f"{option} {path}: there is no such file")
    value = read_json(Path(path))
    if not isinstance(value, list):
        raise InvalidRequest(f"{option} {path}: must hold a JSON list, not an object; put it in brackets")
    return value


def _template_argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidRequest(f"--template-arg {text!r:.80} must be KEY=VALUE")
    require_text(text, "--template-arg")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
