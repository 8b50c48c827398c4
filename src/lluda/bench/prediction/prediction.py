"""How fast a model will be, from its config and a few figures of the machine: what `lluda plan` says before a
checkpoint is fetched, and `lluda bench` shows beside what it measured.

A step takes what reading its weights takes, or multiplying by them, whichever is longer, and a fixed time for each
layer. The fixed times were measured once for each backend (journal/08-benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lluda.bench.measured.speech import PROMPT_ROWS
from lluda.bench.prediction.arithmetic import (
    DecoderWeights,
    attention_flops,
    cache_bytes,
    chosen_share,
    read_share,
    vocoder_flops,
    vocoder_weights,
)
from lluda.bench.prediction.products import Products
from lluda.bench.process.job import DECODE_PROMPT
from lluda.config.decoder import DecoderConfig
from lluda.config.model import ModelConfig
from lluda.config.omni import SpeechConfig

FRAME_SECONDS = 0.08
_SPOKEN_ROWS = 10
"""Of the talker's prompt for a given text."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What a backend takes beside its products. ``layer``, ``sparse_layer``: seconds of a layer in a step, dense and
    with experts; ``prompt_layer``: of a layer in a prompt, and ``row`` of each of its rows for 1,024 of the hidden size
    (norms, rotation, activations); ``prompt``, ``experts``, ``attention``, ``vocoder``: shares of the products' FLOP/s
    that a prompt's dense products, its experts', its attention and code2wav's convolutions reach; ``experts_read``,
    ``read_again``: shares of their bandwidth that experts are read with, and what the code predictor reads 15 times a
    frame, which a CPU's last-level cache may hold."""

    layer: float
    sparse_layer: float
    prompt_layer: float
    row: float
    prompt: float
    experts: float
    attention: float
    vocoder: float
    experts_read: float = 1.0
    read_again: float = 1.0


_FIXED = {
    "cpu": _Fixed(
        layer=30e-6,
        sparse_layer=60e-6,
        prompt_layer=100e-6,
        row=18e-6,
        prompt=1.0,
        experts=1.0,
        attention=0.6,
        vocoder=0.53,
        read_again=1.15,
    ),
    "cuda": _Fixed(
        layer=13e-6,
        sparse_layer=22e-6,
        prompt_layer=70e-6,
        row=0.0,
        prompt=0.6,
        experts=0.45,
        attention=0.74,
        vocoder=0.0135,
        experts_read=1.25,
    ),
    "wgpu": _Fixed(
        layer=35e-6,
        sparse_layer=55e-6,
        prompt_layer=3e-4,
        row=20e-6,
        prompt=0.6,
        experts=0.6,
        attention=0.25,
        vocoder=0.25,
    ),
}
"""Of the wgpu backend only a dense layer's was measured, on one GPU; one with experts has half as many kernels more."""

_UNKNOWN = _Fixed(
    layer=100e-6,
    sparse_layer=200e-6,
    prompt_layer=3e-4,
    row=20e-6,
    prompt=0.6,
    experts=0.6,
    attention=0.25,
    vocoder=0.25,
)
"""Of the reference backend and of GPUs that were not at hand."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """One test of `lluda bench`: what it would give."""

    test: str
    value: float
    unit: str


class Prediction:
    """Of a model in one format on one backend."""

    def __init__(self, config: ModelConfig, products: Products, bytes_per_weight: float, backend: str) -> None:
        """``bytes_per_weight`` of the format; ``backend`` by its name."""
        self._config, self._products, self._bytes = config, products, bytes_per_weight
        self._backend, self._fixed = backend, _FIXED.get(backend, _UNKNOWN)

    def step(self, config: DecoderConfig, positions: int = 0, bandwidth: float = 1.0) -> float:
        """Seconds of a decode step of one sequence behind ``positions``, whose weights are read with ``bandwidth``
        times that of the products."""
        weights = DecoderWeights.of(config)
        chosen, others = chosen_share(config) * weights.experts, weights.dense + weights.head
        read = others + chosen / self._fixed.experts_read
        products = max(
            read * self._bytes / (bandwidth * self._products.read), 2 * (others + chosen) / self._products.flops
        )
        caches = cache_bytes(config, positions) / self._products.read
        layer = self._fixed.sparse_layer if config.moe else self._fixed.layer
        return products + caches + layer * config.num_hidden_layers

    def prefill(self, config: DecoderConfig, rows: int) -> float:
        """Seconds of a prompt of ``rows`` rows and the logits of its last one."""
        weights, read, fixed = DecoderWeights.of(config), self._products.read, self._fixed
        flops = self._products.flops
        dense = max(2 * rows * weights.dense / (fixed.prompt * flops), weights.dense * self._bytes / read)
        multiplied = 2 * rows * chosen_share(config) * weights.experts / (fixed.experts * flops)
        met = read_share(config, rows) * weights.experts * self._bytes / (fixed.experts_read * read)
        experts = max(multiplied, met)
        attention = attention_flops(config, rows, 0) / (fixed.attention * self._products.flops)
        head = weights.head * self._bytes / read
        layer = fixed.prompt_layer + fixed.row * rows * config.hidden_size / 1024
        return dense + experts + attention + head + layer * config.num_hidden_layers

    def code_predictor(self, speech: SpeechConfig) -> float:
        """Seconds of a frame: all its passes and heads."""
        passes = speech.talker.num_code_groups - 1
        return passes * self.step(speech.talker.code_predictor, bandwidth=self._fixed.read_again)

    def talker(self, speech: SpeechConfig) -> float:
        """Seconds of a step."""
        return self.step(speech.talker.decoder, PROMPT_ROWS)

    def code2wav(self, speech: SpeechConfig, frames: int = 1) -> float:
        """Seconds of a push of ``frames``."""
        config = speech.code2wav
        read = vocoder_weights(config) * 2 / self._products.read
        multiplied = frames * vocoder_flops(config) / (self._fixed.vocoder * self._products.bf16_flops)
        return max(read, multiplied) + self._fixed.layer * config.transformer.num_hidden_layers

    def rows(self, prompts: tuple[int, ...], generate: int) -> Iterator[Predicted]:
        """Tests of text, then of speech where the model speaks."""
        text = self._config.text
        yield Predicted(f"tg{generate}", 1 / self.step(text, DECODE_PROMPT + generate // 2), "tok/s")
        for length in prompts:
            yield Predicted(f"pp{length}", length / self.prefill(text, length), "tok/s")
        if self._config.omni is not None and self._config.omni.speech is not None:
            yield from self._speech(self._config.omni.speech)

    def _speech(self, speech: SpeechConfig) -> Iterator[Predicted]:
        talker, predictor, vocoder = self.talker(speech), self.code_predictor(speech), self.code2wav(speech)
        yield Predicted("code_predictor", 1e3 * predictor, "ms")
        yield Predicted("talker", 1e3 * talker, "ms")
        yield Predicted("speech_frame", 1e3 * (talker + predictor), "ms")
        yield Predicted("code2wav1", 1e3 * vocoder, "ms")
        if self._backend == "cpu":
            # Elsewhere it is mostly what the host does meanwhile, of which nothing is known here.
            first = self.prefill(speech.talker.decoder, _SPOKEN_ROWS) + predictor + vocoder
            yield Predicted("first_audio", first, "s")
        yield Predicted("rtf", (talker + predictor + vocoder) / FRAME_SECONDS, "of real time")
