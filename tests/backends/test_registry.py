"""Which backends there are, what they support and why not, and the choice among them."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lluda
from lluda.backends import backend_names, best_device, memory_available, register, registry, select_backend
from lluda.backends.backend import Precision
from lluda.backends.capabilities import BackendRequest, Capabilities
from lluda.backends.device import DeviceRuntime, runtime_of
from lluda.backends.entry import BackendEntry
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.registry import support
from lluda.engine.loading.load_options import LoadOptions
from lluda.errors import InvalidRequest, MissingDependency

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
FOREIGN = {"device": CPU, "foreign": "wgpu:1"}
SOURCE = Path(lluda.__file__).parent


class Toy(ReferenceBackend):
    """A backend of another folder."""

    name = "toy"
    CAPABILITIES = Capabilities(("cpu",), ("f32",), ("auto",), ("exact",))


def toy_entry(make=lambda request, _: Toy(request.device, Precision.of(request.dtype))) -> BackendEntry:
    return BackendEntry("toy", Toy.CAPABILITIES, make)


@pytest.fixture(autouse=True)
def _own_entries(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def test_a_registered_backend_is_chosen_by_name_and_by_itself():
    assert select_backend("auto", "cpu", "f32").name == "reference"
    register(toy_entry())
    assert backend_names() == ("cpu", "cuda", "wgpu", "toy", "reference")
    assert select_backend("toy", "cpu", "f32").name == select_backend("auto", "cpu", "f32").name == "toy"
    assert select_backend("auto", "cpu", "f64").name == "reference"  # which it does not do
    with pytest.raises(InvalidRequest, match="choose one of auto, cpu, cuda, reference, toy, wgpu"):
        select_backend("toi", "cpu", "f32")


def test_auto_is_the_first_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("lluda.backends.wgpu.adapter.choose", _no_adapter)
    assert best_device() == "cpu" == LoadOptions(device="auto").device
    monkeypatch.setattr("lluda.backends.wgpu.adapter.choose", lambda _: SimpleNamespace(device="wgpu:1"))
    assert best_device() == "wgpu:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device() == "cuda" == LoadOptions(device="auto").device
    assert LoadOptions().device == "cpu"


def _no_adapter(_: str) -> None:
    raise InvalidRequest("only a software driver was found")


def test_what_cannot_be_had_is_passed_over_and_named():
    def missing(*_):
        raise MissingDependency("the toy backend needs bricks: pip install bricks")

    register(toy_entry(missing))
    chosen = select_backend("auto", "cpu", "f32")
    assert chosen.name == "reference" and "(the toy backend needs bricks" in chosen.describe()
    with pytest.raises(MissingDependency, match="bricks"):
        select_backend("toy", "cpu", "f32")


@pytest.mark.parametrize(
    ("request_", "reasons"),
    [
        (BackendRequest(CPU, "bf16"), {"cpu": None, "reference": None, "cuda": "needs a GPU, not device 'cpu'"}),
        (BackendRequest(CPU, "f64"), {"cpu": "computes in bf16, not in f64", "reference": None}),
        (BackendRequest(GPU, "f32"), {"cpu": "needs the CPU, not device 'cuda:0'", "cuda": None, "reference": None}),
        (BackendRequest(GPU, "f64"), {"cuda": "computes in bf16 and f32, not in f64"}),
        (BackendRequest(GPU, "f32", "packed"), {"cuda": "packed weights are those of a BF16 run"}),
        (BackendRequest(CPU, "bf16", "packed"), {"cpu": None, "reference": "holds no packed weights"}),
        (BackendRequest(CPU, "bf16", "blocked"), {"cpu": "holds no blocked weights", "reference": None}),
        (BackendRequest(GPU, "bf16", activations="q8_0"), {"cuda": "exact rows", "reference": None}),
        (BackendRequest(GPU, "bf16"), {"wgpu": "needs a GPU, not device 'cuda:0'; take --device wgpu"}),
        (BackendRequest(dtype="bf16", **FOREIGN), {"wgpu": None, "reference": "needs a device of torch's"}),
        (BackendRequest(dtype="f32", **FOREIGN), {"wgpu": "in bf16, not in f32; take --dtype bf16"}),
    ],
)
def test_each_says_what_it_supports_or_why_not(request_, reasons):
    found = support(request_)
    for name, reason in reasons.items():
        assert found[name] is None if reason is None else reason in found[name]


def test_what_no_backend_does_is_refused_for_the_nearest_one_s_reason():
    with pytest.raises(InvalidRequest, match="packed weights are those of a BF16 run; take --dtype bf16"):
        select_backend("auto", "cpu", "f64", "packed")
    with pytest.raises(InvalidRequest, match="packed weights need the cpu backend; leave out --backend reference"):
        select_backend("reference", "cpu", "bf16", "packed")


def test_a_device_is_asked_through_its_runtime(monkeypatch):
    class Brick(DeviceRuntime):
        def memory_available(self) -> int:
            return 7

    monkeypatch.setattr("lluda.backends.device._RUNTIMES", {"cpu": Brick})
    backend = select_backend("reference", "cpu", "f32")
    assert backend.memory_available() == memory_available("cpu") == 7
    backend.synchronize()
    backend.release_memory()


def test_what_running_out_of_memory_looks_like():
    backend = ReferenceBackend(CPU, Precision.of("f32"))
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert backend.is_out_of_memory(refused.value)
    assert backend.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert backend.is_out_of_memory(MemoryError())
    assert not backend.is_out_of_memory(RuntimeError("shapes do not match"))


def test_pinned_memory_is_zeros_on_the_host():
    made = runtime_of(CPU).pinned((2, 3), torch.int64)
    assert made.device == CPU and made.tolist() == [[0] * 3] * 2


def _names(path: Path) -> set[str]:
    """Modules imported and dotted names used in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_nothing_but_its_folder_knows_the_cuda_backend():
    entry = "lluda.backends.cuda.entry"
    for path in SOURCE.rglob("*.py"):
        if SOURCE / "backends" / "cuda" in path.parents:
            continue
        known = {name for name in _names(path) if name.startswith(("torch.cuda", "lluda.backends.cuda"))}
        assert known <= ({entry} if path == SOURCE / "backends" / "registry.py" else set()), path
