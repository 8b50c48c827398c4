"""How tokens are chosen and when an answer ends: fields that chat and completions share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.wire_model import WireModel


def text_or_list(value: object) -> str | None:
    """The tag of a field that takes one text, or several."""
    return "#text" if isinstance(value, str) else "#list" if isinstance(value, list) else None


_StopStrings = Annotated[
    Annotated[str, Tag("#text")] | Annotated[list[str], Tag("#list")],
    Discriminator(
        text_or_list,
        custom_error_type="invalid_value",
        custom_error_message="must be a text or a list of texts",
    ),
]

_Id = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(WireModel):
    """``include_usage``: a last chunk with the usage; ``include_obfuscation`` has no meaning here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(WireModel):
    """Meanings as OpenAI has them; ``top_k``, ``min_p``, ``repetition_penalty``, ``stop_token_ids``, ``ignore_eos`` and
    ``min_tokens`` as vLLM has them. What is None is the model's default."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**64 - 1)
    stop: _StopStrings | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    n: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    stop_token_ids: list[_Id] | None = Field(default=None, max_length=64)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1)
