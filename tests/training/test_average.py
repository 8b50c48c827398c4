"""The mean of runs: by their shares, of one stage's weights alone."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.average import average, main


@pytest.fixture
def runs(tmp_path):
    paths = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for path, value in zip(paths, (1.0, 5.0), strict=True):
        save_file({"a": torch.full((2, 3), value), "b": torch.arange(4.0) * value}, path)
    return paths


def test_a_mean_is_by_shares(runs, tmp_path):
    out = tmp_path / "mean.safetensors"
    assert main([f"{runs[0]}=0.75", f"{runs[1]}=0.25", "--out", str(out)]) == 0
    found = load_file(out)
    torch.testing.assert_close(found["a"], torch.full((2, 3), 2.0))
    torch.testing.assert_close(found["b"], torch.arange(4.0) * 2)


def test_shares_that_are_no_mean_are_refused(runs):
    with pytest.raises(ValueError, match=r"sum to 1\.25: they must sum to 1"):
        average({runs[0]: 0.75, runs[1]: 0.5})


def test_another_stage_s_weights_are_refused(runs, tmp_path):
    save_file({"c": torch.zeros(1)}, tmp_path / "talker.safetensors")
    with pytest.raises(ValueError, match="average runs of one stage"):
        average({runs[0]: 0.5, tmp_path / "talker.safetensors": 0.5})
