"""The other tensor types of the ggml project: their blocks, decoded by its ``gguf`` package. No kernel multiplies with
them, and lluda does not write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lluda.errors import UnsupportedModel
from lluda.formats.format import BlockFormat
from lluda.formats.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch


class GGMLFormat(BlockFormat):
    """Blocks that the ``gguf`` package decodes to float32, where it has the code."""

    def decode(self, stored: StoredTensor) -> torch.Tensor:
        """Float32."""
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        rows = stored.data.cpu().numpy().reshape(*stored.shape[:-1], self.row_bytes(stored.shape[-1]))
        try:
            with np.errstate(all="ignore"):  # NaN and infinite scales are data
                values = dequantize(rows, GGMLQuantizationType[self.name])
        except (KeyError, NotImplementedError) as error:
            raise UnsupportedModel(
                f"{stored.where} is stored as {self.name}, which neither lluda nor the installed gguf package decodes; "
                "quantise the model as Q8_0 or another common type"
            ) from error
        return torch.from_numpy(values).to(stored.data.device)


_BLOCKS = (
    ("Q4_0", 32, 18),
    ("Q4_1", 32, 20),
    ("Q5_0", 32, 22),
    ("Q5_1", 32, 24),
    ("Q2_K", 256, 84),
    ("Q3_K", 256, 110),
    ("Q4_K", 256, 144),
    ("Q5_K", 256, 176),
    ("Q6_K", 256, 210),
    ("IQ2_XXS", 256, 66),
    ("IQ2_XS", 256, 74),
    ("IQ3_XXS", 256, 98),
    ("IQ1_S", 256, 50),
    ("IQ4_NL", 32, 18),
    ("IQ3_S", 256, 110),
    ("IQ2_S", 256, 82),
    ("IQ4_XS", 256, 136),
    ("IQ1_M", 256, 56),
    ("TQ1_0", 256, 54),
    ("TQ2_0", 256, 66),
    ("MXFP4", 32, 17),
    ("NVFP4", 64, 36),
    ("Q1_0", 128, 18),
)

GGML_FORMATS = tuple(GGMLFormat(*blocks) for blocks in _BLOCKS)
