"""Ranges of the values that choose tokens, and their checks: one rule for a request and for generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from lluda.errors import InvalidRequest

MAX_LOGPROBS = 64
INT32_MAX = (1 << 31) - 1
_MAX_ITEMS = {
    "stop": 64,
    "stop_token_ids": 64,
    "suppress_tokens": 1 << 20,
    "begin_suppress_tokens": 1 << 20,
    "logit_bias": 1 << 20,
}
MAX_BIAS = 100

# Inclusive ranges. Penalties of 0.01 to 100 keep every finite logit of a model finite in float32.
NUMBERS = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
INTEGERS = {
    "top_k": (0, INT32_MAX),
    "seed": (0, (1 << 64) - 1),
    "max_tokens": (1, INT32_MAX),
    "max_length": (1, INT32_MAX),
    "min_tokens": (0, INT32_MAX),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_NOTES = {"temperature": "; 0 is greedy", "top_k": "; 0 is off"}


def checked_number(field: str, value: object, label: str = "") -> float | int:
    """The value of `NUMBERS` or `INTEGERS` if it keeps its field's rule, else InvalidRequest; ``label`` names it there
    instead of ``field``."""
    integer = field in INTEGERS
    minimum, maximum = INTEGERS[field] if integer else NUMBERS[field]
    kind = Integral if integer else Real
    # A comparison with NaN is false, so NaN fails it.
    if isinstance(value, kind) and not isinstance(value, bool) and minimum <= value <= maximum:  # type: ignore[operator]
        return int(value) if integer else float(value)  # type: ignore[call-overload]
    raise InvalidRequest(
        f"{label or field} must be {'an integer' if integer else 'a number'} from {minimum} to {maximum}"
        f"{_NOTES.get(field, '')}; got {shown(value)}"
    )


def stop_strings(value: object, label: str = "stop") -> tuple[str, ...]:
    """Strings that end an answer, one given by itself or several. InvalidRequest: others."""
    strings = _items("stop", "a string or a list of strings", (value,) if isinstance(value, str) else value, label)
    for one in strings:
        if not isinstance(one, str) or not one:
            raise InvalidRequest(f"{label} must hold strings that are not empty; got {shown(one)}")
    return strings


def token_ids(field: str, value: object, label: str = "") -> tuple[int, ...]:
    """Token ids of ``field``. InvalidRequest: others."""
    ids = _items(field, "a list of token ids", value, label or field)
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) <= INT32_MAX:
            raise InvalidRequest(f"{label or field} must hold integers from 0 to {INT32_MAX}; got {shown(one)}")
    return tuple(int(one) for one in ids)


def biases(value: object) -> tuple[tuple[int, float], ...]:
    """``logit_bias``, a mapping or its pairs: ids and what to add to their logits. InvalidRequest: others."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidRequest(f"logit_bias must map token ids to numbers; got {shown(value)}")
    ids = token_ids("logit_bias", [number for number, _ in pairs])
    for _, bias in pairs:
        if isinstance(bias, bool) or not isinstance(bias, Real) or not abs(bias) <= MAX_BIAS:  # type: ignore[operator]
            raise InvalidRequest(f"logit_bias must hold numbers from -{MAX_BIAS} to {MAX_BIAS}; got {shown(bias)}")
    return tuple((number, float(bias)) for number, (_, bias) in zip(ids, pairs, strict=True))


def _items(field: str, rule: str, value: object, label: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidRequest(f"{label} must be {rule}; got {shown(value)}")
    if len(value) > _MAX_ITEMS[field]:
        raise InvalidRequest(f"{label} must hold at most {_MAX_ITEMS[field]} items; got {len(value)}")
    return tuple(value)


def shown(value: object) -> str:
    """The value on one line of bounded length. Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.80}"
