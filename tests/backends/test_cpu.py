from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lluda.backends import select_backend
from lluda.backends.backend import Precision
from lluda.backends.batch import Segment
from lluda.backends.cpu.backend import CpuBackend, NativeStep
from lluda.backends.cpu.native_library import BYTE_PRODUCTS, DTYPE_BF16, ISAS, STRUCTS, NativeContext, native_library
from lluda.backends.reference.backend import ReferenceBackend
from lluda.config.model import ModelConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.errors import InvalidRequest, NativeLibraryError
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.plain import plain_tensor
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.causal_lm import CausalLM
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3, placed, random_tensors, taken

CPU = torch.device("cpu")
BF16 = Precision.of("bf16")
WIDE = TINY_QWEN3 | {"hidden_size": 448, "intermediate_size": 672}
ODD = TINY_QWEN3 | {"hidden_size": 76, "head_dim": 18, "intermediate_size": 101, "vocab_size": 333}
CONFIGS = {
    "qwen3": TINY_QWEN3,
    "moe": TINY_MOE,
    "mixed": TINY_MIXED,
    "llama": TINY_LLAMA,
    "biased": TINY_QWEN3 | {"attention_bias": True},
    "windowed": TINY_QWEN3 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "odd sizes": ODD,
    "yarn": TINY_QWEN3 | {"max_position_embeddings": 32, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
}


@pytest.fixture(scope="module", autouse=True)
def _library():
    try:
        native_library()
    except NativeLibraryError as error:
        pytest.skip(f"the native library is not built: {error}")


def available_isas() -> list[str]:
    return [isa for isa in ISAS if _runs_here(isa)]


def _runs_here(isa: str) -> bool:
    try:
        NativeContext(isa)
    except NativeLibraryError:
        return False
    return True


class Runner:
    """One network on one backend with its caches."""

    def __init__(self, raw, backend, kv_dtype="bf16") -> None:
        self.backend = backend
        self.config = ModelConfig.from_hf(raw).text
        self.network = CausalLM(self.config, placed(random_tensors(raw, dtype=torch.bfloat16), raw, backend), backend)
        self.options = CacheOptions(256, dtype=kv_dtype)

    def cache(self) -> KVCache:
        return KVCache(self.config, self.options, CPU)

    @torch.inference_mode()
    def run(self, parts, caches) -> torch.Tensor:
        """One step: ``parts[i]`` are further ids of the sequence in ``caches[i]``."""
        segments, start = [], 0
        for ids, cache in zip(parts, caches, strict=True):
            segments.append(Segment(start, len(ids), cache))
            start += len(ids)
        positions = [torch.arange(c.length, c.length + len(ids)) for ids, c in zip(parts, caches, strict=True)]
        logits = self.network(torch.cat(parts), torch.cat(positions), segments, None)
        for ids, cache in zip(parts, caches, strict=True):
            cache.advance(len(ids))
        return logits.float()


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 333, (count,), generator=torch.Generator().manual_seed(seed))


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 0.02) -> bool:
    return bool((found - expected).abs().max() <= tolerance * (expected.max() - expected.min()))


def truth(raw) -> Runner:
    """The same weights in float64."""
    exact = Runner(raw, ReferenceBackend(CPU, Precision.of("f64")), "f64")
    tensors = {name: tensor.double() for name, tensor in random_tensors(raw, dtype=torch.bfloat16).items()}
    exact.network = CausalLM(exact.config, placed(tensors, raw, exact.backend), exact.backend)
    return exact


@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
@pytest.mark.parametrize("raw", CONFIGS.values(), ids=CONFIGS)
def test_steps_of_1_to_16_rows_are_as_near_to_float64_as_the_reference(raw, packed):
    # Against the truth and not each other: a nearly undecided router may choose differently after a rounding.
    runners = (
        Runner(raw, CpuBackend(CPU, BF16, packed=packed)), Runner(raw, ReferenceBackend(CPU, BF16)), truth(raw)
    )  # fmt: skip
    caches = [runner.cache() for runner in runners]
    steps = [ids(rows, seed=rows) for rows in (1, 2, 3, 7, 16, 1, 40, 1)]
    native, reference, exact = (
        torch.cat([runner.run([step], [cache]) for step in steps])
        for runner, cache in zip(runners, caches, strict=True)
    )
    assert (native - exact).abs().mean() <= 1.05 * (reference - exact).abs().mean()
    if "num_experts" not in raw:
        assert near(native, reference)


@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
@pytest.mark.parametrize("raw", CONFIGS.values(), ids=CONFIGS)
def test_prompts_are_as_near_to_float64_as_the_reference(raw, packed):
    runners = (
        Runner(raw, CpuBackend(CPU, BF16, packed=packed)), Runner(raw, ReferenceBackend(CPU, BF16)), truth(raw)
    )  # fmt: skip
    caches = [runner.cache() for runner in runners]
    steps = [ids(rows, seed=rows) for rows in (17, 1, 130, 64)]
    native, reference, exact = (
        torch.cat([runner.run([step], [cache]) for step in steps])
        for runner, cache in zip(runners, caches, strict=True)
    )
    assert (native - exact).abs().mean() <= 1.05 * (reference - exact).abs().mean()
    if "num_experts" not in raw:
        assert near(native, reference)


@pytest.mark.parametrize("rows", [17, 31, 48, 63, 64, 65, 97, 128, 129])
@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
def test_products_of_many_rows_equal_those_in_float64(rows, packed):
    backend = CpuBackend(CPU, BF16, packed=packed)
    for out_features, in_features in ((1, 1), (7, 33), (50, 129), (97, 1025), (48, 2304)):
        values, x = torch.randn(out_features, in_features).bfloat16(), torch.randn(rows, in_features).bfloat16()
        bias = torch.randn(out_features).bfloat16().float()  # as released: exact in BF16
        found = backend.linear(x, taken(backend, values), bias)
        exact = x.double() @ values.double().T + bias
        assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-4 * in_features**0.5)


@pytest.mark.parametrize("kv_dtype", ["bf16", "f32"])
@pytest.mark.parametrize("raw", [TINY_QWEN3, CONFIGS["windowed"]], ids=["full", "windowed"])
def test_prompts_of_several_sequences_run_together_as_alone(raw, kv_dtype):
    runner = Runner(raw, CpuBackend(CPU, BF16), kv_dtype)
    together, alone = ([runner.cache() for _ in range(4)] for _ in range(2))
    for counts in ((30, 3, 100, 1), (1, 70, 20, 40)):  # the second with filled caches
        parts = [ids(count, seed=count) for count in counts]
        single = torch.cat([runner.run([part], [cache]) for part, cache in zip(parts, alone, strict=True)])
        assert near(runner.run(parts, together), single, 0.01)


def test_a_prompt_longer_than_one_pass_equals_its_parts():
    runner = Runner(TINY_QWEN3, CpuBackend(CPU, BF16))
    runner.options = CacheOptions(700, dtype="bf16")
    whole, parts = runner.cache(), runner.cache()
    prompt = ids(600)
    in_parts = torch.cat([runner.run([part], [parts]) for part in prompt.split(512)])
    assert torch.equal(runner.run([prompt], [whole]), in_parts)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
def test_every_kind_of_kernels_equals_the_reference(isa, packed):
    native = Runner(ODD, CpuBackend(CPU, BF16, packed=packed, isa=isa))
    reference = Runner(ODD, ReferenceBackend(CPU, BF16))
    assert f"({isa} kernels)" in native.backend.describe()
    one, other = native.cache(), reference.cache()
    for rows in (5, 1, 16, 17, 130):
        assert near(native.run([ids(rows)], [one]), reference.run([ids(rows)], [other]))


@pytest.mark.parametrize("kv_dtype", ["bf16", "f32"])
@pytest.mark.parametrize("isa", available_isas())
def test_every_kind_of_kernels_mixes_and_windows_alike(isa, kv_dtype):
    for raw in (TINY_MOE, CONFIGS["windowed"]):
        native, reference = Runner(raw, CpuBackend(CPU, BF16, isa=isa), kv_dtype), truth(raw)
        plain = Runner(raw, ReferenceBackend(CPU, BF16), kv_dtype)
        native, exact, plain = (r.run([ids(77)], [r.cache()]) for r in (native, reference, plain))
        assert (native - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()


def test_packed_weights_give_the_bits_of_plain_ones_however_many_the_rows():
    """Torch multiplies many rows between its own operations: of packed weights too, or speech differs. Without
    AVX-512 some products of 8 rows and more add in another order."""
    for isa in set(available_isas()) & {"amx", "avx512bf16", "avx512"}:
        plain, packed = (CpuBackend(CPU, BF16, packed=packed, isa=isa) for packed in (False, True))
        for out_features, in_features in ((33, 128), (256, 256), (128, 1024)):
            values = torch.randn(out_features, in_features).bfloat16()
            weights = taken(plain, values), taken(packed, values)
            assert weights[1].format == "PACKED_BF16"
            for rows in (1, 16, 17, 64, 129):
                x = torch.randn(rows, in_features).bfloat16()
                assert torch.equal(plain.linear(x, weights[0]), packed.linear(x, weights[1])), (isa, out_features, rows)


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["qwen3", "moe"])
def test_packed_equals_plain_within_summation_order(raw):
    plain, packed = (Runner(raw, CpuBackend(CPU, BF16, packed=packed)) for packed in (False, True))
    caches = plain.cache(), packed.cache()
    for rows in (1, 4, 16, 40):
        pair = packed.run([ids(rows)], [caches[1]]), plain.run([ids(rows)], [caches[0]])
        assert near(*pair, 0.01)


@pytest.mark.parametrize("kv_dtype", ["bf16", "f32"])
def test_sequences_of_different_lengths_decode_together_as_alone(kv_dtype):
    runner = Runner(TINY_QWEN3, CpuBackend(CPU, BF16), kv_dtype)
    prompts = [ids(n, seed=n) for n in (3, 30, 90)]
    together, alone = ([runner.cache() for _ in prompts] for _ in range(2))
    for caches in (together, alone):
        for prompt, cache in zip(prompts, caches, strict=True):
            runner.run([prompt], [cache])
    for seed in range(4):
        step = [ids(1, seed=seed + i) for i in range(3)]
        single = torch.cat([runner.run([part], [cache]) for part, cache in zip(step, alone, strict=True)])
        assert torch.equal(runner.run(step, together), single)


def test_results_do_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        runner = Runner(TINY_MOE, CpuBackend(CPU, BF16, packed=True))
        results.append(torch.cat([runner.run([ids(rows)], [runner.cache()]) for rows in (9, 77)]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_cache_that_grows_between_steps_is_followed():
    runner, reference = Runner(TINY_QWEN3, CpuBackend(CPU, BF16)), Runner(TINY_QWEN3, ReferenceBackend(CPU, BF16))
    for each in (runner, reference):
        each.options = CacheOptions(1000, "growing", "bf16")
    one, other = runner.cache(), reference.cache()
    for count in (250, 5, 5, 1):
        assert near(runner.run([ids(count)], [one]), reference.run([ids(count)], [other]))
    assert one.capacity > 256


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(5, 129),
        torch.zeros(4, 64),
        torch.full((3, 70), -1.5),
        torch.randn(16, 64) * 1e-39,
        torch.tensor([[float("inf"), -float("inf"), float("nan"), -0.0, 1e-40, 3.0] * 11] * 3),
    ],
    ids=["random", "zeros", "all equal", "denormal", "special"],
)
def test_packed_matrices_give_back_the_same_bits(values):
    values = values.bfloat16()
    backend = CpuBackend(CPU, BF16, packed=True)
    weight, reads_values = backend.take(plain_tensor(values), "matrix")
    found = torch.empty_like(values)
    native = NativeContext()
    native.check(native.unpack(weight.struct, found.data_ptr()))
    assert torch.equal(found.view(torch.int16), values.view(torch.int16))
    assert reads_values == (weight.format == "BF16")


def test_random_bits_stay_bf16_and_are_counted():
    backend = CpuBackend(CPU, BF16, packed=True)
    bits = torch.randint(-(2**15), 2**15, (64, 256), dtype=torch.int16).view(torch.bfloat16)
    weight = taken(backend, bits)
    assert weight.format == "BF16"
    assert "1 incompressible" in backend.describe()


@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
@pytest.mark.parametrize("raw", [WIDE, TINY_MOE], ids=["wide", "moe"])
@pytest.mark.parametrize("isa", available_isas())
def test_a_decode_step_of_many_sequences_gives_each_the_bits_it_gets_alone(isa, raw, packed):
    """Up to 16 rows (docs/numerics.md), and prompts of more than 16 rows among themselves."""
    runner = Runner(raw, CpuBackend(CPU, BF16, packed=packed, isa=isa))
    prompts, next_ids = [ids(20 + seed, seed) for seed in range(16)], [ids(1, 100 + seed) for seed in range(16)]
    caches = [runner.cache() for _ in prompts]
    alone = [runner.run([prompt], [cache])[-1] for prompt, cache in zip(prompts, caches, strict=True)]
    after = [runner.run([token], [cache]) for token, cache in zip(next_ids, caches, strict=True)]
    for count in (2, 7, 16):
        caches = [runner.cache() for _ in range(count)]
        together = runner.run(prompts[:count], caches)
        ends = torch.tensor([len(prompt) for prompt in prompts[:count]]).cumsum(0) - 1
        assert torch.equal(together[ends], torch.stack(alone[:count]))
        assert torch.equal(runner.run(next_ids[:count], caches), torch.cat(after[:count]))


def test_a_packed_matrix_changes_nothing_for_those_after_it():
    """Each matrix is stored as it came, in whatever order they come."""
    values, packed = torch.randn(16, 128).bfloat16(), CpuBackend(CPU, BF16, packed=True)
    stored = StoredTensor(PACKED_BF16, (16, 128), taken(packed, values).memory)
    backend = CpuBackend(CPU, BF16)
    assert backend.take(stored, "matrix")[0].format == "PACKED_BF16"
    assert taken(backend, values).format == "BF16"
    assert "packed BF16" in backend.describe()


def test_a_row_of_the_kv_cache_carries_its_capacity():
    """The kernels refuse to write where there is no memory."""
    runner = Runner(TINY_QWEN3, CpuBackend(CPU, BF16))
    cache = runner.cache()
    runner.run([ids(3)], [cache])
    keys, values = cache.reserve(1)
    beyond = torch.tensor([[[keys.data_ptr(), values.data_ptr(), keys.stride(1), cache.capacity, cache.capacity]]])
    step = NativeStep(torch.ones(1, 16), torch.zeros(1, 16), [], beyond, DTYPE_BF16)
    block = runner.network.decoder.layers.blocks[0][0]
    with pytest.raises(NativeLibraryError, match="position is 256, must be from 0 to its capacity - 1"):
        runner.backend.attention_block(torch.zeros(1, 64), block, 0, step)


def test_backends_in_several_threads_do_not_disturb_each_other():
    """Each has kernels and threads of its own: all give what they give alone."""
    isas = [isa for isa in ("portable", "avx2") if _runs_here(isa)]
    runners = [Runner(TINY_QWEN3, CpuBackend(CPU, BF16, isa=isa)) for isa in isas for _ in range(2)]
    alone = [runner.run([ids(20)], [runner.cache()]) for runner in runners]
    with ThreadPoolExecutor(len(runners)) as pool:
        found = list(pool.map(lambda runner: [runner.run([ids(20)], [runner.cache()]) for _ in range(10)], runners))
    assert [runner.backend._native.isa for runner in runners] == [isa for isa in isas for _ in range(2)]
    for expected, rows in zip(alone, found, strict=True):
        assert all(torch.equal(row, expected) for row in rows)


HEADER = (Path(__file__).parents[2] / "native" / "include" / "lluda_native.h").read_text()


def test_every_struct_of_the_interface_is_checked_for_its_size():
    """What crosses the border is held against its mirror at load, on both sides."""
    names = set(re.findall(r"^typedef struct (\w+) \{", HEADER, re.MULTILINE))
    assert names == set(STRUCTS)
    known = native_library().functions.lluda_struct_size
    assert {name: known(name.encode()) for name in names} == {name: ctypes.sizeof(STRUCTS[name]) for name in names}


def test_every_instruction_that_the_compiler_may_use_is_asked_for_at_run_time():
    """-m flags of native/CMakeLists.txt against native/src/isa.cpp: __builtin_cpu_supports, and the bits of CPUID for
    what not all compilers have a name for there."""
    source = Path(__file__).parents[2] / "native"
    build, choice = (source / "CMakeLists.txt").read_text(), (source / "src" / "isa.cpp").read_text()
    used = set(re.findall(r"-m([\w-]+)", " ".join(re.findall(r"set\((?:avx|amx)\w*_flags (.*)\)", build))))
    bits = {"kF16c": "f16c", "kAvx512Bf16": "avx512bf16"}
    bits |= {"kAmxTile": "amx-tile", "kAmxBf16": "amx-bf16", "kAmxInt8": "amx-int8"}
    assert set(bits) == set(re.findall(r"(?:Leaf\(.+\)\.[acd]|has) & (k\w+)", choice))
    named = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', choice))
    assert named == {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}
    assert used == named | set(bits.values())


def test_the_kernels_that_can_be_named_are_those_of_the_library():
    with pytest.raises(NativeLibraryError, match="no kernels are named 'nonsense'") as refused:
        NativeContext("nonsense")
    names = re.search(r"there are (.*) and auto", str(refused.value))
    assert names and tuple(names[1].split(", ")) == ISAS
    assert set(BYTE_PRODUCTS) < set(ISAS)


def test_no_rows_is_no_work():
    runner = Runner(TINY_QWEN3, CpuBackend(CPU, BF16))
    assert runner.backend.linear(torch.empty(0, 64, dtype=torch.bfloat16), runner.network.lm_head).shape == (0, 512)


def test_what_goes_together():
    assert select_backend("auto", "cpu", "bf16").name == "cpu"
    assert select_backend("auto", "cpu", "f32").name == "reference"
    with pytest.raises(InvalidRequest, match="the cpu backend computes in bf16, not in f32; take --backend reference"):
        select_backend("cpu", "cpu", "f32")
    with pytest.raises(InvalidRequest, match="packed weights need the cpu backend"):
        select_backend("reference", "cpu", "bf16", "packed")
    with pytest.raises(InvalidRequest, match="weights 'q3'"):
        select_backend("auto", "cpu", "bf16", "q3")
    with pytest.raises(InvalidRequest, match="backend 'gpu'"):
        select_backend("gpu", "cpu", "bf16")
    with pytest.raises(InvalidRequest, match="device 'cuda:9'"):
        select_backend("auto", "cuda:9", "bf16")


def test_without_the_library_the_reference_runs_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("LLUDA_NATIVE_DIR", str(tmp_path))
    native_library.cache_clear()
    try:
        backend = select_backend("auto", "cpu", "bf16")
        assert backend.name == "reference"
        assert "native library is not built" in backend.describe()
        with pytest.raises(NativeLibraryError, match="is not built"):
            select_backend("cpu", "cpu", "bf16")
    finally:
        monkeypatch.undo()
        native_library.cache_clear()
