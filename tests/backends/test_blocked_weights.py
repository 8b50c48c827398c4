"""oneDNN's blocked copy of a matrix in the reference backend: the same product, lookups from the stored values."""

import pytest
import torch

from lluda.backends import select_backend
from lluda.backends.backend import Precision
from lluda.backends.reference.backend import BlockedWeight, ReferenceBackend, can_block
from lluda.errors import InvalidRequest
from lluda.formats.plain import plain_tensor
from tests.conftest import taken

CPU, BF16 = torch.device("cpu"), Precision.of("bf16")

pytestmark = pytest.mark.skipif(not can_block(CPU, BF16), reason="this torch has no BF16 product over oneDNN blocks")


@pytest.mark.parametrize("rows", [0, 1, 2, 16, 17, 130])
@pytest.mark.parametrize(("out_features", "in_features"), [(64, 64), (33, 70), (1, 5), (512, 1024)])
def test_a_product_is_the_plain_one_within_rounding(rows, out_features, in_features):
    torch.manual_seed(rows)
    values = torch.randn(out_features, in_features).bfloat16()
    x, bias = torch.randn(rows, in_features).bfloat16(), torch.randn(out_features)
    backend = ReferenceBackend(CPU, BF16, blocked=True)
    weight, reads_stored = backend.take(plain_tensor(values), "matrix")
    assert isinstance(weight, BlockedWeight) and not reads_stored
    exact = x.double() @ values.double().T
    for addend in (None, bias):
        wanted = exact if addend is None else exact + addend.bfloat16().double()
        product = backend.linear(x, weight, addend)
        assert product.dtype is torch.bfloat16 and product.shape == (rows, out_features)
        torch.testing.assert_close(product.double(), wanted, rtol=2**-8, atol=1e-4 * in_features**0.5)


def test_rows_are_looked_up_in_the_stored_values():
    values = torch.randn(10, 48).bfloat16()
    backend = ReferenceBackend(CPU, BF16, blocked=True)
    weight = taken(backend, values)
    assert torch.equal(backend.embedding(weight, torch.tensor([3, 3, 9])), values[[3, 3, 9]].float())


def test_auto_blocks_for_the_reference_alone():
    assert "oneDNN blocks" in select_backend("reference", "cpu", "bf16").describe()
    assert "oneDNN blocks" in select_backend("auto", "cpu", "bf16", "blocked").describe()
    assert "oneDNN blocks" not in select_backend("reference", "cpu", "bf16", "bf16").describe()
    assert "oneDNN blocks" not in select_backend("reference", "cpu", "f32").describe()


def test_where_it_cannot_be_it_is_refused():
    with pytest.raises(InvalidRequest, match="blocked weights need BF16 on a CPU"):
        select_backend("reference", "cpu", "f32", "blocked")
    with pytest.raises(InvalidRequest, match="blocked weights need the reference backend"):
        select_backend("cpu", "cpu", "bf16", "blocked")
