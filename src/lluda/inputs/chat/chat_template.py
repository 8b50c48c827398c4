"""ChatTemplate: the checkpoint's template, rendered in a child process that is bounded in time, memory and output."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, TemplateError, UnsupportedModel
from lluda.files.gguf_keys import GGUFKeys
from lluda.inputs.chat import template_worker
from lluda.inputs.chat.chat_template_files import MAX_SOURCE, find_chat_template
from lluda.inputs.child.child_messages import framed
from lluda.inputs.child.child_process import ChildFailed, ChildProcess
from lluda.inputs.text.gguf_tokenizer import special_token_texts
from lluda.inputs.text.special_tokens import read_special_tokens

MAX_SECONDS = 2.0
"""Time a rendering may take, compiling included; not the start of the process (about 0.2 s, once)."""

MAX_OUTPUT = 2**22
"""Characters a rendering may produce."""

MAX_REQUEST = 2**25
"""Bytes of the messages and tools of one rendering."""

_MAX_ANSWER = 8 * MAX_OUTPUT  # JSON writes a character in up to six bytes, one beyond U+FFFF in twelve for two
_START_SECONDS = 20.0


class ChatTemplate:
    """A Jinja template and the special tokens it may name. May be used from several threads, one rendering at a time.

    ``source`` is the template, ``tool_source`` another for conversations with tools where the checkpoint has one;
    ``path`` names the file in errors; ``special_tokens`` are variables such as ``bos_token``. The process starts with
    the first rendering (or `start`) and stays for the next; it ends with the object, the interpreter, or `close`.
    """

    def __init__(
        self,
        source: str,
        path: Path,
        special_tokens: Mapping[str, str] | None = None,
        *,
        tool_source: str | None = None,
    ) -> None:
        self.source = source
        self.tool_source = tool_source
        self.path = path
        self.special_tokens = dict(special_tokens or {})
        self._lock = threading.Lock()
        self._worker: ChildProcess | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """From the file of ``folder`` that counts (`chat_template_files`); None if there is no template.

        CorruptFile: a file breaks its format. UnsupportedModel: two files that contradict each other, or named
        templates, none of them ``default``.
        """
        found = find_chat_template(Path(folder))
        if found is None:
            return None
        source, tool_source = _default_and_tool(*found)
        return cls(source, found[1], read_special_tokens(folder).named, tool_source=tool_source)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: Path) -> ChatTemplate | None:
        """From ``tokenizer.chat_template`` (and ``….tool_use``); None if there is none. CorruptFile: not a string."""
        names = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
        keys = GGUFKeys.of(metadata, Path(path))
        found = {name: keys.text(key) for name, key in names.items() if key in keys}
        if "default" not in found:
            return None
        source, tool_source = _default_and_tool(found, Path(path))
        return cls(source, Path(path), special_token_texts(metadata, Path(path)), tool_source=tool_source)

    def source_for(self, has_tools: bool) -> str:
        """The template of conversations with tools, or without."""
        return self.tool_source if has_tools and self.tool_source is not None else self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text. ``variables`` are passed to the template as they are (JSON values).

        TemplateError: the template does not compile (with its line), fails or refuses the messages, or takes over
        `MAX_SECONDS`, `MAX_OUTPUT` or the worker's memory. LimitExceeded: the messages exceed `MAX_REQUEST`.
        """
        request: dict[str, Any] = {
            "source": self.source_for(bool(tools)),
            "seconds": MAX_SECONDS,
            "max_output": MAX_OUTPUT,
            "variables": {
                "tools": None if tools is None else list(tools),
                "documents": None if documents is None else list(documents),
                **self.special_tokens,
                **(variables or {}),
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
            },
        }
        with self._lock:
            answer = _ask(self._started(), request)
        if isinstance(answer.get("text"), str):
            return str(answer["text"])
        line = f" in line {answer['line']}" if answer.get("line") else ""
        raise TemplateError(f"{self.path}: template_error: the chat template failed{line}: {answer.get('error')}")

    def start(self) -> None:
        """Start the process now, so that the first rendering need not wait for it. TemplateError: it does not start."""
        with self._lock:
            self._started()

    def close(self) -> None:
        """End the process. A later rendering starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()

    def _started(self) -> ChildProcess:
        if self._worker is not None and self._worker.usable:
            return self._worker
        try:
            worker = ChildProcess(template_worker.__file__)
            answer = _exchange(worker, b"", _START_SECONDS)
        except ChildFailed as failed:
            answer = {"error": str(failed)}
        if not answer.get("ready"):
            raise TemplateError(f"template_error: chat templates cannot be rendered: {answer.get('error')}")
        self._worker = worker
        return worker


def _ask(worker: ChildProcess, request: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's answer, or what became of it as ``{"error": …}``."""
    try:
        message = framed(request)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest("messages, tools and template variables must be JSON values") from None
    if len(message) > MAX_REQUEST:
        raise LimitExceeded(f"the messages take {len(message)} bytes as JSON; at most {MAX_REQUEST} are rendered")
    return _exchange(worker, message, float(request["seconds"]))


def _exchange(worker: ChildProcess, message: bytes, seconds: float) -> dict[str, Any]:
    worker.allow(seconds)
    try:
        worker.send(message)
        answer = worker.receive(_MAX_ANSWER)
    except ChildFailed as failed:
        return {"error": str(failed)}
    if answer.get("unusable"):
        worker.close()
    return answer


def _default_and_tool(found: Any, path: Path) -> tuple[str, str | None]:
    """The templates in ``found``: one string, a list of ``{"name", "template"}``, or a mapping of names."""
    if isinstance(found, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in found):
            raise CorruptFile(path, "chat_template must be a string or a list of named templates", found=found)
        found = {entry["name"]: entry.get("template") for entry in found}
    named = found if isinstance(found, dict) else {"default": found}
    if "default" not in named:
        raise UnsupportedModel(f"{path}: of its chat templates ({', '.join(named):.80}) none is named default")
    for name, source in named.items():
        if not isinstance(source, str):
            raise CorruptFile(path, f"the chat template {name[:40]!a} must be a string", found=type(source).__name__)
        if len(source) > MAX_SOURCE:
            rule = f"the chat template {name[:40]!a} is too long"
            raise CorruptFile(path, rule, expected=f"at most {MAX_SOURCE} characters", found=len(source))
    return named["default"], named.get("tool_use")
