"""The talker: text and the thinker's hidden states of media -> the first code of each frame (spec section 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.batch import Segment
from lluda.backends.blocks import Projection
from lluda.backends.components import Observer, ResizeProjection
from lluda.backends.weight import Parameters
from lluda.config.talker import TalkerConfig
from lluda.models.components import BY_NAME
from lluda.models.decoder import DecoderStack, stack_parameters
from lluda.models.linear import Embedding
from lluda.parameters import ParameterSpec

PREFIX = BY_NAME["talker"].prefix


class Talker:
    """A mixture-of-experts decoder over rows, with a head over codes and control ids."""

    def __init__(self, config: TalkerConfig, parameters: Parameters, backend: ComputeBackend) -> None:
        self.config = config
        self.backend = backend
        self.decoder = DecoderStack(config.decoder, parameters, backend, f"{PREFIX}model.")
        self.codec_embedding = Embedding(backend, parameters.matrix(f"{PREFIX}model.codec_embedding.weight"))
        self._codec_head = parameters.matrix(f"{PREFIX}codec_head.weight")
        self._text_projection = _resize_projection(parameters, f"{PREFIX}text_projection")
        self._hidden_projection = _resize_projection(parameters, f"{PREFIX}hidden_projection")

    def text_projection(self, x: Tensor) -> Tensor:
        """The thinker's embeddings of tokens: residual rows ``[rows, thinker hidden] -> [rows, hidden]``."""
        return self.backend.resize(self._text_projection, x)

    def hidden_projection(self, x: Tensor) -> Tensor:
        """The thinker's hidden states of media: residual rows ``[rows, thinker hidden] -> [rows, hidden]``."""
        return self.backend.resize(self._hidden_projection, x)

    def __call__(
        self, x: Tensor, positions: Tensor, segments: Sequence[Segment], rows: Tensor, observe: Observer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows ``[n, hidden]`` (may be changed in place) at positions ``[n]`` or ``[3, n]`` -> of the chosen ``rows``
        (int64) the hidden rows after the final norm ``[len(rows), hidden]``, which the code predictor starts from, and
        the logits of codebook 0 ``[len(rows), vocab_size]``, both in the compute dtype."""
        hidden = self.backend.final_norm(self.decoder.run(x, positions, segments, observe)[rows], self.decoder.norm)
        logits = self.backend.logits(hidden, self._codec_head)
        if observe:
            observe("norm", hidden)
            observe("logits", logits)
        return hidden, logits


def _resize_projection(parameters: Parameters, prefix: str) -> ResizeProjection:
    return ResizeProjection(
        *(
            Projection(parameters.matrix(f"{prefix}.{name}.weight"), parameters.vector(f"{prefix}.{name}.bias"))
            for name in ("linear_fc1", "linear_fc2")
        )
    )


def talker_parameters(config: TalkerConfig) -> Iterator[ParameterSpec]:
    """Every tensor of the talker, without its code predictor."""
    decoder, wide = config.decoder, config.thinker_hidden_size
    table = (decoder.vocab_size, decoder.hidden_size)
    yield ParameterSpec(f"{PREFIX}model.codec_embedding.weight", table, "embedding")
    yield from stack_parameters(decoder, f"{PREFIX}model.")
    yield ParameterSpec(f"{PREFIX}codec_head.weight", table, "matrix")
    for name in ("text_projection", "hidden_projection"):
        # transformers gives the inner row intermediate_size columns, which the config keeps for nothing else.
        inner = decoder.intermediate_size
        for layer, (out, into) in {"linear_fc1": (inner, wide), "linear_fc2": (decoder.hidden_size, inner)}.items():
            yield ParameterSpec(f"{PREFIX}{name}.{layer}.weight", (out, into), "matrix")
            yield ParameterSpec(f"{PREFIX}{name}.{layer}.bias", (out,), "bias")
