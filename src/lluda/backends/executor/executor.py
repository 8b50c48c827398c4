"""All components together."""

from __future__ import annotations

from lluda.backends.executor.encoder import EncoderExecutor
from lluda.backends.executor.vocoder import VocoderExecutor


class TorchExecutor(VocoderExecutor, EncoderExecutor):
    """Every component in torch operations; `ReferenceBackend` is this, others override what they have kernels for."""
