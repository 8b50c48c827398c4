"""How many floating-point operations a component takes: two for each multiply-add of its matrix products, convolutions
and attention. Norms, activations and rotations are not counted."""

from __future__ import annotations

from dataclasses import dataclass

from lluda.config.code2wav import Code2WavConfig
from lluda.config.decoder import DecoderConfig
from lluda.models.causal_lm import causal_lm_parameters
from lluda.models.code2wav import DILATIONS, EXPANSION, TAPS, code2wav_parameters


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Weights (numbers) of a decoder. ``dense``: those of its layers that every row multiplies, routers and shared
    experts included; ``experts``: all routed ones; ``head``: the matrix of the logits."""

    dense: float
    experts: float
    head: float

    @classmethod
    def of(cls, config: DecoderConfig) -> DecoderWeights:
        """Counted from the tensors of a causal language model of this config."""
        dense = experts = 0
        for spec in causal_lm_parameters(config):
            if ".experts." in spec.name:
                experts += spec.elements
            elif spec.role in ("matrix", "router") and ".layers." in spec.name:
                dense += spec.elements
        return cls(dense, experts, config.vocab_size * config.hidden_size)


def chosen_share(config: DecoderConfig) -> float:
    """Of the routed experts, those that one row multiplies."""
    return config.moe.num_experts_per_tok / config.moe.num_experts if config.moe else 0.0


def read_share(config: DecoderConfig, rows: int) -> float:
    """Of the routed experts, those that at least one of ``rows`` rows chooses, if all are chosen alike."""
    return 1 - (1 - chosen_share(config)) ** rows


def attention_flops(config: DecoderConfig, rows: int, behind: int) -> float:
    """Scores and weighted sums of ``rows`` rows behind ``behind`` positions, each seeing those up to itself."""
    seen = rows * behind + rows * (rows + 1) / 2
    return 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seen


def cache_bytes(config: DecoderConfig, positions: int) -> float:
    """Keys and values of ``positions`` positions in BF16, which a step reads."""
    return 2.0 * config.kv_elements_per_token * positions


def vocoder_weights(config: Code2WavConfig) -> float:
    """Weights of code2wav's matrices and kernels, which each push of frames reads once."""
    return sum(spec.elements for spec in code2wav_parameters(config) if spec.role in ("matrix", "kernel"))


def vocoder_flops(config: Code2WavConfig) -> float:
    """Of one frame: the transformer, then what multiplies the rows (spec section 8), each convolution's weights times
    the rows it makes."""
    layers = DecoderWeights.of(config.transformer)
    multiplied, rows, width = layers.dense, 1, config.transformer.hidden_size
    for ratio in config.upsampling_ratios:
        multiplied += rows * width * width * ratio
        rows *= ratio
        multiplied += rows * width * (TAPS + 2 * EXPANSION * width)
    multiplied += rows * width * config.decoder_dim * TAPS
    width = config.decoder_dim
    for rate in config.upsample_rates:
        multiplied += rows * width * (width // 2) * 2 * rate
        rows, width = rows * rate, width // 2
        multiplied += rows * width * width * (TAPS + 1) * len(DILATIONS)
    return 2.0 * (multiplied + rows * width * TAPS) + attention_flops(config.transformer, 1, config.window)
