"""What a request asks of the choice of tokens, checked, and completed by the model's ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from lluda.errors import InvalidRequest

MAX_LOGPROBS = 64
_MAX_STOPS = 64
_INT32_MAX = (1 << 31) - 1

# Inclusive ranges. Penalties of 0.01 to 100 keep every finite logit of a model finite in float32.
_NUMBERS = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_INTEGERS = {
    "top_k": (0, _INT32_MAX),
    "seed": (0, (1 << 64) - 1),
    "max_tokens": (1, _INT32_MAX),
    "logprobs": (0, MAX_LOGPROBS),
}
_NOTES = {"temperature": "; 0 is greedy", "top_k": "; 0 is off"}

# What a request without a value gets where the model's file has none either. Temperature and top_k depend on do_sample.
_NEUTRAL = {
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_SAMPLED = {"temperature": 1.0, "top_k": 50}
_GREEDY = {"temperature": 0.0, "top_k": 0}

# Keys of generation_config.json that would change the tokens and are not implemented, with the values that do nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "suppress_tokens": (),
    "top_h": (),
    "typical_p": (1,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one answer are chosen and when it ends.

    None means the default of the model's ``generation_config.json``, else lluda's; :meth:`with_defaults` fills it in.

    * ``temperature``: 0 to 100; 0 takes the most likely token (greedy; of equals the lowest id).
    * ``top_k``: keep the k most likely tokens and all that tie with the last of them; 0 is off.
    * ``top_p``: keep the fewest tokens whose probabilities reach top_p, at least one (of equals at the border, the
      lowest ids); 1 is off.
    * ``min_p``: drop tokens less likely than min_p times the most likely one; 0 is off.
    * ``repetition_penalty``: 0.01 to 100; positive logits of tokens in the prompt or the answer are divided by it,
      negative ones multiplied (Keskar et al. 2019, as transformers); 1 is off.
    * ``presence_penalty``, ``frequency_penalty``: -2 to 2; subtracted from the logits of tokens of the answer, once,
      and once for each occurrence (OpenAI's definition; the prompt does not count); 0 is off.
    * ``seed``: 0 to 2**64 - 1; None draws a fresh one.
    * ``stop``: strings that end the answer (one string is accepted and wrapped); ``stop_token_ids``: ids that do,
      beside the model's own end-of-text ids, which ``ignore_eos`` switches off.
    * ``max_tokens``: at least 1; None is bounded by the context alone.
    * ``logprobs``: report the token's log-probability with this many alternatives (0 to 64); None reports none.

    Raises:
        InvalidRequest: a value of a wrong type or out of its range, naming field, rule and value.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for field in (*_NUMBERS, *_INTEGERS):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, _checked(field, value))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _stop_ids(self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos must be true or false; got {_shown(self.ignore_eos)}")

    def with_defaults(self, generation_config: Mapping[str, Any]) -> SamplingParams:
        """These values with each None replaced by the model's default (``{}`` if it ships no file).

        ``do_sample`` false or absent means greedy, as in transformers, whatever ``temperature`` stands beside it; if
        true, ``temperature`` defaults to 1 and ``top_k`` to 50. ``max_new_tokens`` gives ``max_tokens``. ``seed``,
        ``max_tokens`` (without a default in the file) and ``logprobs`` stay None.

        Raises:
            InvalidRequest: a value in the file that breaks its rule, or asks for a method that is not implemented.
        """
        defaults = _model_defaults(generation_config)
        missing: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)


def _model_defaults(raw: Mapping[str, Any]) -> dict[str, float | int]:
    """Every sampling value that ``generation_config.json`` determines or leaves neutral."""
    name = "generation_config.json"
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{name}: must be a JSON object; got {type(raw).__name__}")
    for key, harmless in _UNSUPPORTED.items():
        value = raw.get(key)
        if value is not None and value not in harmless and value != []:
            raise InvalidRequest(
                f"{name}: {key} {_shown(value)} asks for a method that is not implemented; remove the key to do without"
            )
    sampled = raw.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise InvalidRequest(f"{name}: do_sample must be true or false; got {_shown(sampled)}")
    given: dict[str, float | int] = {}
    for field in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens"):
        key = "max_new_tokens" if field == "max_tokens" else field
        if raw.get(key) is not None:
            given[field] = _checked(field, raw[key], f"{name}: {key}")
    if not sampled:
        given["temperature"] = 0.0
    return {**_NEUTRAL, **(_SAMPLED if sampled else _GREEDY), **given}


def _checked(field: str, value: object, label: str = "") -> float | int:
    """The value if it keeps its field's rule; ``label`` names it in the error instead of ``field``."""
    integer = field in _INTEGERS
    minimum, maximum = _INTEGERS[field] if integer else _NUMBERS[field]
    kind = Integral if integer else Real
    # A comparison with NaN is false, so NaN fails it.
    if isinstance(value, kind) and not isinstance(value, bool) and minimum <= value <= maximum:  # type: ignore[operator]
        return int(value) if integer else float(value)  # type: ignore[call-overload]
    raise InvalidRequest(
        f"{label or field} must be {'an integer' if integer else 'a number'} from {minimum} to {maximum}"
        f"{_NOTES.get(field, '')}; got {_shown(value)}"
    )


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = _items("stop", "a string or a list of strings", (value,) if isinstance(value, str) else value)
    for one in strings:
        if not isinstance(one, str) or not one:
            raise InvalidRequest(f"stop must hold strings that are not empty; got {_shown(one)}")
    return strings


def _stop_ids(value: object) -> tuple[int, ...]:
    ids = _items("stop_token_ids", "a list of token ids", value)
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) <= _INT32_MAX:
            raise InvalidRequest(f"stop_token_ids must hold integers from 0 to {_INT32_MAX}; got {_shown(one)}")
    return tuple(int(one) for one in ids)


def _items(field: str, rule: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidRequest(f"{field} must be {rule}; got {_shown(value)}")
    if len(value) > _MAX_STOPS:
        raise InvalidRequest(f"{field} must hold at most {_MAX_STOPS} items; got {len(value)}")
    return tuple(value)


def _shown(value: object) -> str:
    """The value on one line of bounded length. Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.80}"
