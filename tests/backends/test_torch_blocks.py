"""What a backend with kernels of its own leaves to torch operations is counted, and shown."""

from __future__ import annotations

import pytest
import torch

from lluda.backends.backend import Precision
from lluda.backends.blocks import LayerNorm, Projection
from lluda.backends.components import Merger
from lluda.backends.cpu.backend import CpuBackend
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.reference.backend import ReferenceBackend
from lluda.errors import NativeLibraryError
from tests.backends.test_cpu import Runner, ids
from tests.conftest import TINY_MOE, taken

CPU = torch.device("cpu")
BF16 = Precision.of("bf16")


@pytest.fixture
def native() -> CpuBackend:
    try:
        return CpuBackend(CPU, BF16)
    except NativeLibraryError as error:
        pytest.skip(f"the native library is not built: {error}")


def merger(backend: TorchExecutor) -> Merger:
    norm = LayerNorm(taken(backend, torch.ones(8), "norm"), taken(backend, torch.zeros(8), "bias"), 1e-6)
    parts = (Projection(taken(backend, torch.eye(8).bfloat16()), taken(backend, torch.zeros(8), "bias")) for _ in "ab")
    return Merger(norm, *parts)


@torch.inference_mode()
def test_a_block_without_a_kernel_is_counted_and_shown(native):
    assert "torch operations" not in native.describe()
    for _ in range(3):
        native.merge(merger(native), torch.ones(2, 8))
    assert native.torch_blocks == {"merger": 3}
    assert native.describe().endswith("; on torch operations: merger 3")


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 40])
def test_a_decoder_has_kernels_for_all_of_it(native, rows):
    runner = Runner(TINY_MOE, native)
    runner.run([ids(rows)], [runner.cache()])
    assert not native.torch_blocks


@torch.inference_mode()
def test_the_reference_is_torch_operations_and_counts_them_without_a_word():
    backend = ReferenceBackend(CPU, BF16)
    runner = Runner(TINY_MOE, backend)
    runner.run([ids(5)], [runner.cache()])
    layers = TINY_MOE["num_hidden_layers"]
    assert backend.torch_blocks == {"attention": layers, "mixture": layers, "head": 1}
    assert "torch operations" not in backend.describe()
