"""Text models: a decoder and its vocabulary head. Qwen3 dense, Qwen3-MoE, Llama-shaped, and the Omni thinker's text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.batch import Segment
from lluda.backends.components import Observer
from lluda.backends.group import Group
from lluda.backends.weight import Parameters
from lluda.config.decoder import DecoderConfig
from lluda.models.decoder import Decoder, MultimodalEmbeddings, decoder_parameters
from lluda.parameters import ParameterSpec

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""The two tensors that ``tie_word_embeddings`` makes one, without the model's prefix."""


class CausalLM:
    """``lm_head(norm(decoder(ids)))``; the head shares the embedding's table where the config ties them.

    ``prefix`` is that of all its tensors: ``thinker.`` in an Omni checkpoint. ``experts`` is the backend
    that holds its mixture blocks (`mixture_parameters`), where it is not ``backend``. Where a ``group`` shares it,
    ``parameters`` are this rank's parts (`ParameterSpec.part`), and all ranks run the same steps."""

    def __init__(
        self,
        config: DecoderConfig,
        parameters: Parameters,
        backend: ComputeBackend,
        prefix: str = "",
        experts: ComputeBackend | None = None,
        group: Group | None = None,
    ) -> None:
        self.config = config
        self.backend = backend
        self.experts = experts or backend
        self.group = group
        self.decoder = Decoder(config, parameters, backend, f"{prefix}model.", experts, group)
        tied = config.tie_word_embeddings
        self.lm_head = self.decoder.embed_tokens.weight if tied else parameters.matrix(f"{prefix}{HEAD}")

    @property
    def cached_config(self) -> DecoderConfig:
        """The config as its key-value caches see it: of several ranks, each stores the keys of its own heads."""
        return self.config if self.group is None else self.config.of_rank(self.group.ranks)

    @property
    def on_one_device(self) -> bool:
        """Whether its mixture blocks, if any, are on its own backend."""
        return self.experts is self.backend

    def describe(self) -> str:
        """What computes it."""
        if self.group is not None:
            return f"{self.backend.describe()}, rank {self.group.rank} of {self.group.ranks}"
        if self.on_one_device:
            return self.backend.describe()
        return f"{self.backend.describe()}; experts: {self.experts.describe()}"

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        rows: Tensor | None,
        observe: Observer | None = None,
        injected: MultimodalEmbeddings | None = None,
    ) -> Tensor:
        """Logits ``[len(rows), vocab_size]`` of the chosen ``rows`` (int64; None for all), after running ids int64
        ``[rows]`` at positions ``[rows]`` or ``[3, rows]`` through the decoder. A prefill needs only its last row."""
        x = self.decoder(ids, positions, segments, observe, injected)
        x = x if rows is None else x[rows]
        logits = self.head(x)
        if observe:
            observe("norm", self.backend.final_norm(x, self.decoder.norm))
            observe("logits", logits)
        return logits

    def head(self, x: Tensor) -> Tensor:
        """Logits ``[rows, vocab_size]`` of the decoder's residual rows ``[rows, hidden_size]``."""
        logits = self.backend.head(x, self.decoder.norm, self.lm_head)
        return logits if self.group is None else self.group.side_by_side(logits)


def causal_lm_parameters(config: DecoderConfig, prefix: str = "") -> list[ParameterSpec]:
    """Every tensor of the checkpoint, in order; ``lm_head.weight`` marked as tied where it is."""
    tied_to = f"{prefix}{EMBEDDING}" if config.tie_word_embeddings else None
    head = ParameterSpec(f"{prefix}{HEAD}", (config.vocab_size, config.hidden_size), "matrix", tied_to, split="rows")
    return [*decoder_parameters(config, f"{prefix}model."), head]
