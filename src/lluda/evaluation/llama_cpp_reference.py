"""llama.cpp on the same .gguf file: a second reference, written by other people in another language.

Only its logits can be observed. For block formats its CPU kernels round activations to 8 bits, so it is judged by how
alike the two distributions are, not by float32's threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lluda.errors import LludaError, UnsupportedModel
from lluda.evaluation.trace import Observe, Step
from lluda.extras import missing
from lluda.weights.checkpoint import is_gguf

_GGML_TYPE_F32 = 0


class LlamaCppReference:
    """Implements ``Implementation`` with the one stage ``logits``. The KV cache is float32."""

    name = "llama.cpp"

    def __init__(self, path: Path, max_length: int, threads: int | None = None) -> None:
        """Open ``path`` (the first part of a split file) for sequences of ``max_length`` positions.

        Raises:
            MissingDependency: llama-cpp-python is not installed.
            UnsupportedModel: not a .gguf file, or one that llama.cpp refuses.
        """
        llama_cpp = require_llama_cpp(path)
        self.version = str(llama_cpp.__version__)
        try:
            self._model = llama_cpp.Llama(
                str(path),
                n_ctx=max_length,
                n_batch=max_length,
                n_threads=threads or torch.get_num_threads(),
                n_threads_batch=threads or torch.get_num_threads(),
                logits_all=True,
                type_k=_GGML_TYPE_F32,
                type_v=_GGML_TYPE_F32,
                verbose=False,
            )
        except ValueError as error:
            raise UnsupportedModel(f"{path}: llama.cpp cannot load it: {error}") from error
        self._max_length = max_length

    def start(self, observe: Observe | None = None) -> Step:
        """See ``Implementation.start``. One sequence at a time: a new one ends the one before."""
        self._model.reset()

        def step(ids: Sequence[int]) -> Tensor:
            start = self._model.n_tokens
            assert start + len(ids) <= self._max_length, "llama.cpp was opened for fewer positions"
            try:
                self._model.eval(list(ids))
            except RuntimeError as error:
                raise LludaError(f"llama.cpp failed at position {start}: {error}") from error
            logits = torch.from_numpy(self._model.scores[start : start + len(ids)].copy())
            if observe:
                observe("logits", logits)
            return logits

        return step


def require_llama_cpp(path: Path) -> Any:
    """The package, for a file it can read. Errors as ``LlamaCppReference``."""
    if not is_gguf(path):
        raise UnsupportedModel(f"{path}: llama.cpp reads only .gguf files; use --reference transformers")
    try:
        import llama_cpp
    except ImportError as error:
        raise missing("the reference", "llama_cpp", reason=f"cannot be imported ({error})") from None
    return llama_cpp
