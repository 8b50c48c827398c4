"""ChatOptions: what a request gives the chat template beside its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lluda.errors import InvalidRequest

_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "enable_thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Names and meanings are those of transformers' ``apply_chat_template``.

    * ``enable_thinking``: Qwen3's switch; None leaves the template its default.
    * ``tools``: functions the model may call, each ``{"type": "function", "function": {…}}`` with a name, a description
      and parameters (JSON schema). ``documents``: objects with ``title`` and ``text``.
    * ``chat_template_kwargs``: further variables of the template, JSON values.
    * ``continue_final_message``: the last message is left open, and the answer goes on where it ends; a text names the
      key of the message that is continued (``content`` if true).

    Raises:
        InvalidRequest: values of another form.
    """

    enable_thinking: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    continue_final_message: bool | str = False

    def __post_init__(self) -> None:
        for name in ("tools", "documents"):
            value = getattr(self, name)
            if value is not None and not _is_list_of_objects(value):
                raise InvalidRequest(f"{name} must be a list of JSON objects, not {value!r:.80}")
        variables = self.chat_template_kwargs
        if variables is not None and not (
            isinstance(variables, Mapping) and all(isinstance(name, str) for name in variables)
        ):
            raise InvalidRequest(
                f"chat_template_kwargs must map names of template variables to values, not {variables!r:.80}"
            )
        for name in _OWN_VARIABLES:
            if name in (variables or ()) and not (name == "enable_thinking" and self.enable_thinking is None):
                raise InvalidRequest(f"chat_template_kwargs must not name {name}; it is an argument of its own")
        if not isinstance(self.continue_final_message, bool | str):
            raise InvalidRequest(
                f"continue_final_message must be true, false or a key of the message, "
                f"not {self.continue_final_message!r:.60}"
            )

    @property
    def continued_key(self) -> str | None:
        """The key of the last message that is continued; None if none is."""
        given = self.continue_final_message
        return given if isinstance(given, str) else "content" if given else None

    def variables(self) -> dict[str, Any]:
        """Variables of the template, ``tools`` and ``documents`` apart."""
        found = dict(self.chat_template_kwargs or {})
        if self.enable_thinking is not None:
            found["enable_thinking"] = self.enable_thinking
        return found


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, Mapping) for one in value)
