"""How many weights, and bytes of them, one decode step reads: the numerator of a row's share of the machine's
bandwidth."""

from __future__ import annotations

from collections.abc import Mapping

from lluda.bench.prediction.arithmetic import chosen_share
from lluda.config.decoder import DecoderConfig
from lluda.config.talker import TalkerConfig
from lluda.models.causal_lm import causal_lm_parameters
from lluda.models.code_predictor import code_predictor_parameters
from lluda.models.talker import talker_parameters


def weights_per_step(config: DecoderConfig) -> float:
    """Weights (numbers, not bytes) that a step of one row must read: each matrix once, the head even if it is tied, of
    the experts only the chosen ones, of the embedding one row. The KV cache is not counted."""
    return sum(
        spec.elements * _share_read(config, spec.name, spec.role == "embedding")
        for spec in causal_lm_parameters(config)
    )


def bytes_per_step(config: DecoderConfig, sizes: Mapping[str, int]) -> float:
    """The bytes of those weights, ``sizes`` being what each tensor takes in memory (a tied one may be left out)."""
    return sum(
        sizes[spec.tied_to or spec.name] * _share_read(config, spec.name, spec.role == "embedding")
        for spec in causal_lm_parameters(config)
    )


def talker_bytes(config: TalkerConfig, sizes: Mapping[str, int]) -> float:
    """The bytes that one step of the talker reads; the projections make its rows before it."""
    return sum(
        sizes[spec.name] * _share_read(config.decoder, spec.name, spec.role == "embedding")
        for spec in talker_parameters(config)
        if "_projection." not in spec.name
    )


def code_predictor_bytes(config: TalkerConfig, sizes: Mapping[str, int]) -> float:
    """The bytes that the code predictor reads for a frame: its layers in each pass, each head and one row of each table
    once."""
    total = 0.0
    for spec in code_predictor_parameters(config):
        is_head = spec.role == "matrix" and ".lm_head." in spec.name
        times = _share_read(config.code_predictor, spec.name, spec.role == "embedding")
        total += sizes[spec.name] * times * (1 if is_head or spec.role == "embedding" else config.num_code_groups - 1)
    return total


def _share_read(config: DecoderConfig, name: str, is_embedding: bool) -> float:
    if is_embedding:
        return 1 / config.vocab_size
    return chosen_share(config) if ".experts." in name else 1.0
