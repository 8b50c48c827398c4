"""The code predictor: from the talker's row and codebook 0 to a frame's other codes, one by one (spec section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.batch import KeyValueStore, Segment
from lluda.backends.components import CodePredictorSteps, Observer
from lluda.backends.weight import Parameters, Weight
from lluda.config.talker import TalkerConfig
from lluda.models.components import BY_NAME
from lluda.models.decoder import DecoderStack, stack_parameters
from lluda.models.linear import Embedding
from lluda.parameters import ParameterSpec

PREFIX = BY_NAME["code_predictor"].prefix


class CodePredictor:
    """A small decoder with a table of embeddings and a head for each codebook after the first.

    Pass g (0, 1, …) takes the rows [talker's hidden row, embedding of code 0] for g = 0, else the embedding of code g,
    and gives the logits of code g + 1. Each frame starts from an empty cache.
    """

    def __init__(self, config: TalkerConfig, parameters: Parameters, backend: ComputeBackend) -> None:
        self.config = config.code_predictor
        self.passes = config.num_code_groups - 1
        self.backend = backend
        self.decoder = DecoderStack(self.config, parameters, backend, f"{PREFIX}model.")
        names = range(self.passes)
        self._embeddings = [
            Embedding(backend, parameters.matrix(f"{PREFIX}model.codec_embedding.{g}.weight")) for g in names
        ]
        self._heads = [parameters.matrix(f"{PREFIX}lm_head.{g}.weight") for g in names]
        tables = [embedding.weight for embedding in self._embeddings]
        self._whole = CodePredictorSteps(self.decoder.layers, self.decoder.norm, self._heads, tables)

    def table(self, group: int) -> Weight:
        """The embeddings of codebook ``group`` (from 1), ``[codes, hidden]``."""
        return self._embeddings[group - 1].weight

    def embed(self, group: int, codes: Tensor) -> Tensor:
        """Residual rows ``[n, hidden]`` of int64 ``codes [n]`` of codebook ``group`` (from 1)."""
        return self._embeddings[group - 1](codes)

    def frames(
        self, x: Tensor, stores: Sequence[KeyValueStore], choose: Sequence[Callable[[Tensor], int]], total: Tensor
    ) -> list[list[int]]:
        """All passes of a frame of each sequence: rows ``[sequences, 2, hidden]`` (may be changed in place) and empty
        ``stores`` -> its codes of each codebook after the first, which its own of ``choose`` takes of their logits
        ``[vocab]``. The codes' embeddings are added to ``total [sequences, hidden]``, in order. Rows are in the
        residual dtype."""
        return self.backend.predict_codes(x, self._whole, stores, choose, total)

    def __call__(
        self, x: Tensor, positions: Tensor, segments: Sequence[Segment], group: int, observe: Observer | None = None
    ) -> Tensor:
        """Rows ``[n, hidden]`` (may be changed in place) at int64 positions ``[n]`` -> logits ``[segments, vocab]`` of
        codebook ``group`` (from 1) after the last row of each segment."""
        counts = {segment.rows for segment in segments}
        rows = self.decoder.run(x, positions, segments, observe)
        if len(counts) == 1:
            # A view: a list of rows would go to a GPU by way of the host.
            rows = rows.view(len(segments), counts.pop(), -1)[:, -1]
        else:
            rows = rows[[segment.start + segment.rows - 1 for segment in segments]]
        return self.backend.head(rows, self.decoder.norm, self._heads[group - 1])


def code_predictor_parameters(config: TalkerConfig) -> Iterator[ParameterSpec]:
    """Every tensor of the code predictor."""
    table = (config.code_predictor.vocab_size, config.code_predictor.hidden_size)
    names = range(config.num_code_groups - 1)
    for group in names:
        yield ParameterSpec(f"{PREFIX}model.codec_embedding.{group}.weight", table, "embedding")
    yield from stack_parameters(config.code_predictor, f"{PREFIX}model.")
    for group in names:
        yield ParameterSpec(f"{PREFIX}lm_head.{group}.weight", table, "matrix")
