"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lluda.serving.wire.wire_model import WireModel


class TokenizeRequest(WireModel):
    """A text, or a conversation through the chat template."""

    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1024)] | None = None
    add_special_tokens: bool = True
    model: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(WireModel):
    """Token ids."""

    tokens: Annotated[list[int], Field(max_length=1 << 20)]
    model: str | None = None
