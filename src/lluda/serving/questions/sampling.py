"""How the tokens of an answer are to be chosen."""

from __future__ import annotations

from dataclasses import replace

from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.limits import Limits
from lluda.serving.wire.sampling import Sampling

_ID_DIGITS = 10  # of the largest id there can be


def sampling_params(
    body: Sampling,
    limits: Limits,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    stop_ids: tuple[int, ...] = (),
) -> SamplingParams:
    """The body's fields; what it leaves out is the model's default. ``stop_ids`` end the answer too. More
    ``max_tokens`` than there is room for mean all the room there is."""
    return SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=None if body.seed is None else body.seed % 2**64,
        stop=stop_strings(body, limits),
        stop_token_ids=(*(body.stop_token_ids or ()), *stop_ids),
        max_tokens=None if max_tokens is None else min(max_tokens, 2**31 - 1),
        min_tokens=body.min_tokens,
        logit_bias=_logit_bias(body, limits),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        ignore_eos=bool(body.ignore_eos),
        clamp_max_tokens=True,
    )


def seeded(params: SamplingParams, index: int) -> SamplingParams:
    """``params`` for choice ``index`` of one prompt: the seeds follow each other."""
    return params if params.seed is None or not index else replace(params, seed=(params.seed + index) % 2**64)


def choices(body: Sampling, limits: Limits) -> int:
    """How many answers to one prompt."""
    count = body.n or 1
    return within(count, limits.choices, "n")


def within(value: int, limit: int, param: str) -> int:
    """``value``; ApiError 400: it is over its limit."""
    if value > limit:
        raise invalid(f"{param} must be at most {limit}, not {value}", param)
    return value


def stop_strings(body: Sampling, limits: Limits) -> tuple[str, ...] | None:
    """The strings that end an answer; None: the model's own."""
    if body.stop is None:
        return None
    given = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if len(given) > limits.stop_strings:
        raise invalid(f"stop has {len(given)} texts; at most {limits.stop_strings} are taken", "stop")
    for index, text in enumerate(given):
        param = "stop" if isinstance(body.stop, str) else f"stop[{index}]"
        if not 1 <= len(text) <= limits.stop_characters:
            raise invalid(f"{param} must have 1 to {limits.stop_characters} characters, not {len(text)}", param)
    return given


def _logit_bias(body: Sampling, limits: Limits) -> dict[int, float] | None:
    if not body.logit_bias:
        return None
    if len(body.logit_bias) > limits.logit_bias:
        raise invalid(
            f"logit_bias has {len(body.logit_bias)} entries; at most {limits.logit_bias} are taken", "logit_bias"
        )
    return dict(_bias(name, value) for name, value in body.logit_bias.items())


def _bias(name: str, value: float) -> tuple[int, float]:
    if not (name.isascii() and name.isdigit() and len(name) <= _ID_DIGITS):
        raise _bad_bias(f"its keys must be token ids in digits, not {name[:40]!r}")
    if not -100 <= value <= 100:
        raise _bad_bias(f"the value of {name} must be from -100 to 100, not {value:g}")
    return int(name), value


def _bad_bias(message: str) -> ApiError:
    return invalid(f"logit_bias: {message}", "logit_bias")
