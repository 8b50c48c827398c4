"""What all bodies have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

IGNORED = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prompt_cache_options", "prediction", "verbosity", "moderation"),
        *("web_search_options",),
    }
)
"""Fields of OpenAI's that mean nothing here: taken out of a body before it is checked."""


class WireModel(BaseModel):
    """A JSON object of a request: types are strict (no ``"3"`` for 3), unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class FormModel(WireModel):
    """The fields of a form, which come as text: numbers and switches are read from it."""

    model_config = ConfigDict(strict=False, allow_inf_nan=False)
