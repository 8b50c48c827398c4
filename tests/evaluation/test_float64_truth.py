"""The truth that BF16 runs are measured against is no matter of whose float64 it is."""

from __future__ import annotations

import pytest

from lluda.engine.loading import LoadOptions, ModelFiles
from lluda.evaluation.lluda_network import LludaNetwork
from lluda.evaluation.trace import trace
from lluda.evaluation.transformers_reference import TransformersReference
from lluda.evaluation.validation_run import random_ids
from tests.evaluation.conftest import TINY


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
def test_lluda_and_transformers_agree_in_float64_far_below_bf16_rounding(raw, checkpoint):
    path = checkpoint(raw)
    ids = random_ids(512, 40, 3)
    ours = trace(LludaNetwork(ModelFiles.find(path), LoadOptions(dtype="f64")), ids, len(ids)).stages
    reference = TransformersReference(path, "bf16")
    rounded = trace(reference, ids, len(ids)).stages
    with reference.in_float64() as exact:
        truth = trace(exact, ids, len(ids)).stages
    for stage in truth:
        between = (ours[stage] - truth[stage]).abs().mean()
        noise = (rounded[stage].double() - truth[stage]).abs().mean()
        if stage == "embeddings":
            assert between == noise == 0
        else:
            # What is left is transformers' float32 in its norms, angles and router.
            assert 0 < between < 1e-3 * noise, stage
            assert between < 1e-6 * truth[stage].abs().max(), stage
