"""``lluda validate --device wgpu``: what it observes is what the device computes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lluda.cli.main import main
from tests.evaluation.conftest import TINY, checkpoint, damage

__all__ = ["checkpoint", "damage"]  # fixtures


@pytest.fixture
def arguments(adapter, checkpoint) -> list[str]:
    # Heads and rows that there are kernels for.
    folder = checkpoint(TINY["qwen3"] | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32})
    return ["validate", "-m", str(folder), "--device", adapter.device, "--dtype", "bf16", "--greedy", "2", "--json"]


@pytest.fixture
def torch_layers(monkeypatch):
    """Layers that the host computed."""
    from lluda.backends.executor.executor import TorchExecutor

    counted: list[int] = []
    run = TorchExecutor.run_layers

    def counting(self, layers, x, *rest, **named):
        if self.name == "wgpu":
            counted.append(len(x))
        return run(self, layers, x, *rest, **named)

    monkeypatch.setattr(TorchExecutor, "run_layers", counting)
    return counted


@pytest.mark.parametrize("mode", [["--tokens", "40"], ["--tokens", "24", "--cached"]], ids=["whole", "cached"])
def test_the_devices_layers_pass(arguments, torch_layers, capsys, mode):
    assert main([*arguments, *mode]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True and not torch_layers
    assert document["tokens"] == int(mode[1])


@pytest.fixture
def wrong_scores(monkeypatch):
    """Scores that are not scaled by the root of the head's width."""
    from lluda.backends.wgpu.steps import step
    from lluda.backends.wgpu.wgsl import attention

    right = attention.attention

    def wrong(*given, **named):
        shader = right(*given, **named)
        assert str(32**-0.5) in shader.code
        return replace(shader, code=shader.code.replace(str(32**-0.5), "1.7"))

    monkeypatch.setattr(attention, "attention", wrong)
    step._attention_of.cache_clear()
    yield
    step._attention_of.cache_clear()


@pytest.mark.usefixtures("wrong_scores")
def test_a_wrong_kernel_fails(arguments, capsys):
    assert main([*arguments, "--tokens", "40"]) == 1
    assert "FAILED" in capsys.readouterr().err
