"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.sampling import Sampling, StreamOptions

_Id = Annotated[int, Field(ge=0, le=2**31 - 1)]


def _kind_of_prompt(value: object) -> str | None:
    if isinstance(value, str):
        return "#text"
    if not isinstance(value, list) or not value:
        return None
    return {str: "#texts", int: "#ids", list: "#lists"}.get(type(value[0]))


Prompt = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[str], Tag("#texts")]
    | Annotated[list[_Id], Tag("#ids")]
    | Annotated[list[Annotated[list[_Id], Field(min_length=1)]], Tag("#lists")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="invalid_value",
        custom_error_message="must be a text, a list of texts, a list of token ids or a list of such lists",
    ),
]


class CompletionBody(Sampling):
    """``echo``: the prompt stands before its continuation, with its log-probabilities where they are asked for; then
    ``max_tokens`` may be 0. ``best_of`` must be ``n``."""

    model: str
    prompt: Prompt
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: int | None = Field(default=None, ge=1)
    suffix: Any = None
