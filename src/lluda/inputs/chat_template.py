"""The checkpoint's chat template, rendered in a bounded child process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, TemplateError
from lluda.inputs import template_worker
from lluda.inputs.template_worker import read_message, write_message
from lluda.json_file import read_json_object

MAX_SECONDS = 2.0
MAX_OUTPUT = 4 << 20
MAX_SOURCE = 4 << 20
_START_SECONDS = 20.0


class ChatTemplate:
    """Jinja ``source`` from the file ``origin``; ``tokens`` are variables such as ``eos_token``.

    The child starts with the first rendering, stays for the next, and is killed when a rendering takes longer than
    ``MAX_SECONDS``; its output is at most ``MAX_OUTPUT`` characters.
    """

    def __init__(self, source: str, origin: Path, tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"{origin}: template_error: the chat template is longer than {MAX_SOURCE} characters")
        self.source = source
        self.origin = origin
        self._tokens = dict(tokens or {})
        self._worker: _Worker | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """From ``chat_template.jinja``, ``chat_template.json`` or ``tokenizer_config.json``; None if none has one."""
        config_path = folder / "tokenizer_config.json"
        config = read_json_object(config_path) if config_path.is_file() else {}
        tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        for path in (folder / "chat_template.jinja", folder / "chat_template.json", config_path):
            source = _source(path)
            if source is not None:
                return cls(source, path, {name: text for name, text in tokens.items() if text is not None})
        return None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: Path) -> ChatTemplate | None:
        """From ``tokenizer.chat_template``; None if the file has none."""
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            return None
        if not isinstance(source, str):
            raise CorruptFile(path, "tokenizer.chat_template must be a string")
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
        vocabulary = metadata.get("tokenizer.ggml.tokens", [])
        tokens = {}
        for name, key in names.items():
            token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(token_id, int) and 0 <= token_id < len(vocabulary):
                tokens[name] = vocabulary[token_id]
        return cls(source, path, tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as one string. TemplateError if the template fails or breaks its bounds."""
        request = {
            "template": self.source,
            "max_output": MAX_OUTPUT,
            "variables": {
                **self._tokens,
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
                **variables,
            },
        }
        if self._worker is None or not self._worker.alive:
            self._worker = _Worker()
        answer = self._worker.ask(request)
        if answer is None:
            reason = f"it did not finish within {MAX_SECONDS:g} s, or crashed"
        elif "text" in answer:
            return str(answer["text"])
        else:
            reason = str(answer["error"])[:500]
        raise TemplateError(f"{self.origin}: template_error: the chat template failed: {reason}")


class _Worker:
    """One child process."""

    def __init__(self) -> None:
        # The script itself, isolated: it starts without importing lluda, whatever the caller's path is.
        command = [sys.executable, "-I", template_worker.__file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._end = weakref.finalize(self, _kill, self._process)
        if self._within(_START_SECONDS, lambda: read_message(self._stdout)) is None:
            raise TemplateError("template_error: the process that renders chat templates did not start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer; None, and the process killed, if it takes too long or dies."""
        answer: dict[str, Any] | None = self._within(MAX_SECONDS, lambda: self._exchange(request))
        if answer is None:
            self._end()
        return answer

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _exchange(self, request: Mapping[str, Any]) -> Any:
        try:
            assert self._process.stdin is not None
            write_message(self._process.stdin, request)  # type: ignore[arg-type]
            return read_message(self._stdout)
        except (OSError, ValueError):
            return None

    def _within(self, seconds: float, action: Any) -> Any:
        """Run ``action``, which blocks on the child's pipes; killing the child unblocks it."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            return action()
        finally:
            timer.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _source(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.suffix == ".jinja":
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFile(path, f"not UTF-8 at byte {error.start}") from None
    found = read_json_object(path).get("chat_template")
    if isinstance(found, list):
        # Several named templates: the default one is for conversations.
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise CorruptFile(path, "chat_template must be a string, or a list with one named default")
    return found


def _token(value: Any) -> str | None:
    """A token as tokenizer_config.json has it: a string, or an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
