"""``generation_config.json``: which of its keys are done, which are refused, and which change no token.

The keys are those of transformers 5.23's ``GenerationConfig``. Keys that it does not have change nothing there, and
nothing here; ``talker_*`` is read by `lluda.engine.speech.frames`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lluda.engine.sampling.sampling_values import checked_number, shown, stop_strings, token_ids
from lluda.errors import InvalidRequest

NAME = "generation_config.json"

DONE = {
    "do_sample": "temperature",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "max_length": "max_length",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "begin_suppress_tokens",
    "eos_token_id": "ends of an answer (engine/sampling/answer_ends.py)",
}
"""What is done, and the field of SamplingParams that does it."""

REFUSED: dict[str, tuple[object, ...]] = {
    "assistant_early_exit": (),
    "bad_words_ids": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ({}, []),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}
"""What would change the answer and is not implemented, with the values beside null that do nothing."""

IGNORED = frozenset(
    {
        # of searches that are refused, or of speculation, which changes how tokens are found and not which
        *("early_stopping", "length_penalty", "low_memory", "use_mtp", "is_assistant", "num_assistant_tokens"),
        *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens"),
        *("max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
        "speculation_type",
        # how it is computed
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
        *("continuous_batching_config", "prefill_chunk_size"),
        # what is returned beside the tokens; logits that are not numbers end the request here
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("renormalize_logits", "remove_invalid_values"),
        # ids that stand before or beside an answer
        *("pad_token_id", "bos_token_id", "decoder_start_token_id"),
        *("_from_model_config", "transformers_version"),
    }
)
"""What changes no token."""

# What a request without a value gets where the model's file has none either. Temperature and top_k depend on do_sample.
_NEUTRAL: dict[str, Any] = {
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "stop": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "logit_bias": (),
}
_SAMPLED = {"temperature": 1.0, "top_k": 50}
_GREEDY = {"temperature": 0.0, "top_k": 0}


def sampling_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of SamplingParams that the file ``raw`` determines or leaves neutral. InvalidRequest: a value that
    breaks its rule, or asks for a method that is not implemented."""
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{NAME}: must be a JSON object; got {type(raw).__name__}")
    _refuse_methods(raw)
    sampled = raw.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise InvalidRequest(f"{NAME}: do_sample must be true or false; got {shown(sampled)}")
    given = {field: _value(field, key, raw[key]) for key, field in _fields() if raw.get(key) is not None}
    if not sampled:
        given["temperature"] = 0.0
    return {**_NEUTRAL, **(_SAMPLED if sampled else _GREEDY), **given}


def _refuse_methods(raw: Mapping[str, Any]) -> None:
    for key, harmless in REFUSED.items():
        value = raw.get(key)
        if value is not None and not any(_same(value, one) for one in harmless):
            raise InvalidRequest(
                f"{NAME}: {key} {shown(value)} asks for a method that is not implemented; remove the key to do without"
            )


def _same(value: object, other: object) -> bool:
    """Equality, but that true is not the number 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _fields() -> list[tuple[str, str]]:
    return [(key, field) for key, field in DONE.items() if key not in ("do_sample", "eos_token_id")]


def _value(field: str, key: str, value: object) -> object:
    label = f"{NAME}: {key}"
    if field == "stop":
        return stop_strings(value, label)
    if field.endswith("suppress_tokens"):
        return token_ids(field, value, label)
    return checked_number(field, value, label)
