"""The truth that BF16 runs are measured against is no matter of whose float64 it is."""

from __future__ import annotations

import pytest

from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.evaluation.inputs import random_ids
from lluda.evaluation.lluda_components import load_decoder
from lluda.evaluation.trace import trace
from lluda.evaluation.transformers_components import text_decoder
from lluda.evaluation.transformers_loading import widened
from tests.evaluation.conftest import TINY


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
def test_lluda_and_transformers_agree_in_float64_far_below_bf16_rounding(raw, checkpoint):
    path = checkpoint(raw)
    ids = random_ids(512, 40, 3)
    ours = trace(load_decoder(ModelFiles.find(path), LoadOptions(dtype="f64"))[0], ids, len(ids)).stages
    reference = text_decoder(path, "bf16")
    rounded = trace(reference, ids, len(ids)).stages
    with widened(reference.module):
        truth = trace(reference, ids, len(ids)).stages
    for stage in truth:
        between = (ours[stage] - truth[stage]).abs().mean()
        noise = (rounded[stage].double() - truth[stage]).abs().mean()
        if stage == "embeddings":
            assert between == noise == 0
        else:
            # What is left is transformers' float32 in its norms, angles and router.
            assert 0 < between < 1e-3 * noise, stage
            assert between < 1e-6 * truth[stage].abs().max(), stage
