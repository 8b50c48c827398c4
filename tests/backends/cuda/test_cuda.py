"""The cuda backend's kernels against the reference backend: on a GPU, else in Triton's interpreter.

The interpreter cuts BF16 off where a GPU rounds, so that its bar is wider."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from lluda.backends.backend import Precision
from lluda.backends.batch import Segment
from lluda.backends.blocks import AttentionBlock, MixtureBlock, Norm, Projection, SharedExpert, SwiGLU, SwiGLUBlock
from lluda.backends.capture import DeviceStore, PromptStore, SaidCodes, store_row
from lluda.backends.components import Rotary
from lluda.backends.cpu.native_library import NativeContext
from lluda.backends.cpu.packing import pack_matrix
from lluda.backends.cpu.weight_memory import WeightMemory
from lluda.backends.cuda.backend import CudaBackend, triton_formats, triton_mixture, triton_products
from lluda.backends.cuda.coded_weight import PACKED, Q8_0, pack, split_q8_0
from lluda.backends.cuda.kernels.triton_target import compiling, interpreted
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.weight import DenseWeight
from lluda.engine.sampling.sampler import Sampler, SamplingParams
from lluda.errors import InvalidRequest, NativeLibraryError
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.stored_tensor import StoredTensor
from tests.conftest import taken
from tests.formats.stored_by_hand import q8_0_tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HIDDEN = 96
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)


@pytest.fixture(params=["f32", "bf16"])
def pair(request):
    torch.manual_seed(0)
    precision = Precision.of(request.param)
    return CudaBackend(DEVICE, precision), ReferenceBackend(DEVICE, precision)


def weight(backend, out, into):
    values = torch.randn(out, into) / into**0.5
    return DenseWeight(values.to(DEVICE, backend.precision.compute), "any")


def vector(width):
    return (1 + 0.1 * torch.randn(width)).to(DEVICE)


def swiglu(backend, width):
    return SwiGLU(weight(backend, width, HIDDEN), weight(backend, width, HIDDEN), weight(backend, HIDDEN, width))


def rows(count, width=HIDDEN):
    return torch.randn(count, width).to(DEVICE)


def assert_close(backend, got, expected):
    exact = backend.precision.compute == torch.float32
    bar = 1e-5 if exact else 3e-2 if interpreted() else 1e-2
    got, expected = got.double(), expected.double()
    assert ((got - expected).norm() / expected.norm()).item() < bar


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_products_of_few_rows(pair, count):
    cuda, reference = pair
    x, norm, matrix, bias = rows(count), Norm(vector(HIDDEN), 1e-6), weight(cuda, 200, HIDDEN), rows(1, 200)[0]
    assert_close(cuda, cuda.rms_norm(x, norm), reference.rms_norm(x, norm))
    assert_close(cuda, cuda.head(x, norm, matrix), reference.head(x, norm, matrix))
    taken = x.to(cuda.precision.compute)
    assert_close(cuda, cuda.linear(taken, matrix, bias), reference.linear(taken, matrix, bias))
    ids = torch.randint(0, 200, (count,)).to(DEVICE)
    assert torch.equal(cuda.embedding(matrix, ids), reference.embedding(matrix, ids))


@pytest.mark.parametrize("count", [5, 16, 33, 64])
def test_products_side_by_side_and_added_to_a_residual(pair, count):
    cuda, _ = pair
    x = rows(count, 200).to(cuda.precision.compute)
    matrices, scale = [weight(cuda, out, 200) for out in (40, 24, 9)], vector(40)
    exact = [x.double() @ matrix.values.double().T for matrix in matrices]
    for _ in range(2):  # what split sums are counted in is as it was
        got = triton_products.project(x, matrices, cuda._sums, pdl=cuda.overlaps)
        assert_close(cuda, got, torch.cat(exact, 1))
    residual = rows(count, 40)
    expected = residual.double() + exact[0] * scale
    assert_close(cuda, triton_products.add(x, matrices[0], residual, scale, cuda._sums, pdl=cuda.overlaps), expected)


def test_a_row_wider_than_a_program_takes_at_once(pair):
    cuda, reference = pair
    x, norm, matrix = rows(1, 5000), Norm(vector(5000), 1e-6), weight(cuda, 40, 5000)
    assert_close(cuda, cuda.head(x, norm, matrix), reference.head(x, norm, matrix))


@pytest.mark.parametrize("count", [1, 2, 9, 70])
def test_swiglu_with_a_scale(pair, count):
    cuda, reference = pair
    block, x = SwiGLUBlock(Norm(vector(HIDDEN), 1e-6), swiglu(cuda, 160), vector(HIDDEN)), rows(count)
    assert_close(cuda, cuda.swiglu_block(x.clone(), block) - x, reference.swiglu_block(x.clone(), block) - x)


@pytest.mark.parametrize("count", [1, 2, 37, 70])
@pytest.mark.parametrize("shared", [0, 48])
@pytest.mark.parametrize("normalise", [True, False])
def test_mixture_of_few_and_of_many_rows(pair, count, shared, normalise):
    cuda, reference = pair
    beside = SharedExpert(swiglu(cuda, shared), rows(1) / 10) if shared else None
    experts = [swiglu(cuda, 40) for _ in range(12)]
    block = MixtureBlock(Norm(vector(HIDDEN), 1e-6), rows(12) / 5, experts, 3, normalise, beside)
    x = rows(count)
    assert_close(cuda, cuda.mixture_block(x.clone(), block), reference.mixture_block(x.clone(), block))


FORMS = ["packed", "q8_0"]


def coded(form, out, into):
    """A matrix as kernels read it, and the same numbers: some zero, some far smaller and larger than the rest."""
    values = (torch.randn(out, into) / into**0.5).bfloat16()
    if form == "packed":
        values[0, :3] = torch.tensor([0.0, -0.0, 1e-39])
        values[-1, -1], values[1, 5] = 300.0, -2e-9
        return pack(values.to(DEVICE)), DenseWeight(values.float().to(DEVICE), "F32")
    stored = q8_0_tensor(values).to(DEVICE)
    return split_q8_0(stored), DenseWeight(stored.decode(), "F32")


def coded_swiglu(form, width):
    parts = [coded(form, *shape) for shape in ((width, HIDDEN), (width, HIDDEN), (HIDDEN, width))]
    return [SwiGLU(*(part[index] for part in parts)) for index in range(2)]


@pytest.fixture
def bf16_and_exact():
    torch.manual_seed(0)
    return CudaBackend(DEVICE, Precision.of("bf16")), ReferenceBackend(DEVICE, Precision.of("f32"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [HIDDEN, 320, 4160])
def test_products_with_coded_weights(bf16_and_exact, form, width):
    cuda, exact = bf16_and_exact
    weight, same = coded(form, 40, width)
    norm = Norm(vector(width), 1e-6)
    for count in (1, 3, 9) if width < 4000 else (1,):
        x = rows(count, width).bfloat16().float()
        assert_close(cuda, cuda.head(x, norm, weight), exact.head(x, norm, same))
        bias = rows(1, 40)[0]
        assert_close(cuda, cuda.linear(x.bfloat16(), weight, bias), exact.linear(x, same, bias))
    ids = torch.tensor([0, 39, 1]).to(DEVICE)
    assert torch.equal(cuda.embedding(weight, ids), same.values[ids])


@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_coded_weights(bf16_and_exact, form):
    norm, x = Norm(vector(HIDDEN), 1e-6), rows(2)
    mlps = coded_swiglu(form, 160)
    got, expected = (
        each.swiglu_block(x.clone(), SwiGLUBlock(norm, mlp, vector(HIDDEN) * 0 + 0.7))
        for each, mlp in zip(bf16_and_exact, mlps, strict=True)
    )
    assert_close(bf16_and_exact[0], got - x, expected - x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("count", "shared"), [(1, 0), (2, 64), (5, 0)])
def test_mixture_of_coded_experts(bf16_and_exact, form, count, shared):
    norm, router, gate, x = Norm(vector(HIDDEN), 1e-6), rows(4) / 5, rows(1) / 10, rows(count)
    experts, beside = [coded_swiglu(form, 32) for _ in range(4)], coded_swiglu(form, shared or 32)
    got, expected = (
        each.mixture_block(
            x.clone(),
            MixtureBlock(norm, router, [expert[index] for expert in experts], 2, True,
                         SharedExpert(beside[index], gate) if shared else None),
        )
        for index, each in enumerate(bf16_and_exact)
    )  # fmt: skip
    assert_close(bf16_and_exact[0], got - x, expected - x)


def test_experts_of_several_forms(bf16_and_exact):
    experts = [*(coded_swiglu("q8_0", 32) for _ in range(2)), coded_swiglu("packed", 32)]
    norm, router, x = Norm(vector(HIDDEN), 1e-6), rows(3) / 5, rows(1)
    got, expected = (
        each.mixture_block(x.clone(), MixtureBlock(norm, router, [expert[index] for expert in experts], 2, True))
        for index, each in enumerate(bf16_and_exact)
    )
    assert_close(bf16_and_exact[0], got - x, expected - x)


def test_packing_loses_nothing():
    torch.manual_seed(0)
    any_bits = torch.randint(-32768, 32768, (9, 200), dtype=torch.int16).view(torch.bfloat16)
    small = (torch.randn(40, 1024) / 50).bfloat16()
    small[0, :6] = torch.tensor([0.0, -0.0, float("nan"), float("-inf"), 1e-40, 1e30])
    for values in (any_bits, small, torch.zeros(3, 128).bfloat16()):
        back = triton_formats.decoded(pack(values.to(DEVICE)), torch.float32, pdl=False)
        assert torch.equal(back.cpu().view(torch.int32), values.float().view(torch.int32))
    assert pack(small.to(DEVICE)).nbytes < 0.76 * small.nbytes


def test_a_packed_file_s_matrix_is_taken():
    torch.manual_seed(0)
    values = (torch.randn(40, 1000) / 50).bfloat16()
    values[3, 7], values[0, 0] = 1e20, 0.0
    try:
        stored = pack_matrix(values, WeightMemory(), NativeContext())
    except NativeLibraryError as error:
        pytest.skip(f"what packs is not built: {error}")
    assert stored is not None
    weight, _ = CudaBackend(DEVICE, Precision.of("bf16")).take(StoredTensor(PACKED_BF16, (40, 1000), stored), "matrix")
    assert torch.equal(triton_formats.decoded(weight, torch.bfloat16, pdl=False).cpu(), values)


def test_it_says_in_which_forms_it_holds_weights():
    backend, values = CudaBackend(DEVICE, Precision.of("bf16")), torch.ones(2, 64).bfloat16()
    assert taken(backend, values).format == "BF16"
    assert "weights" not in backend.describe()
    blocks = q8_0_tensor(torch.zeros(2, 64))
    assert backend.take(blocks, "matrix")[0].format == "Q8_0"
    assert ", Q8_0 weights" in backend.describe()
    packing = CudaBackend(DEVICE, Precision.of("bf16"), packed=True)
    assert taken(packing, values).format == "PACKED_BF16"
    assert ", PACKED_BF16 weights" in packing.describe()
    exact = CudaBackend(DEVICE, Precision.of("f32"))
    assert exact.take(blocks, "matrix")[0].format == "F32"
    assert exact.decoded == {"Q8_0": 1} and "1 Q8_0 matrices decoded" in exact.describe()


def test_a_group_of_experts_is_decoded_at_once():
    torch.manual_seed(0)
    pairs = [coded("packed", 7, 200) for _ in range(3)]
    table = torch.tensor([[weight.data.data_ptr()] * 3 for weight, _ in pairs]).to(DEVICE)
    got = triton_formats.decoded_group(pairs[0][0], table.flatten()[1:], 3, torch.float32, pdl=False)
    assert torch.equal(got, torch.stack([same.values for _, same in pairs]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packed": True}, "packed weights are those of a BF16 run"),
        ({"q8_0_rows": True}, "exact rows; take --backend reference"),
    ],
)
def test_forms_that_it_does_not_take(options, message):
    with pytest.raises(InvalidRequest, match=message):
        CudaBackend(DEVICE, Precision.of("f32"), **options)


def rotary(width, theta=1e4, scale=1.0):
    frequencies = theta ** (-torch.arange(0, width, 2) / width)
    return Rotary(frequencies.to(DEVICE), torch.zeros(width // 2, dtype=torch.int64).to(DEVICE), scale)


@pytest.mark.parametrize("scale", [1.0, 1.25], ids=["plain", "scaled"])
def test_rotation_far_from_the_start(pair, scale):
    cuda, reference = pair
    positions = torch.tensor([3.0, 65000.0, 1234.5]).to(DEVICE)
    table, expected = (backend.rotary_table(positions, rotary(64, 1e6, scale)) for backend in pair)
    assert float(expected[0].max()) > 0.9 * scale
    for part, right in zip(table, expected, strict=True):
        torch.testing.assert_close(part, right, rtol=0, atol=2e-6)
    x, norm = torch.randn(3, 2, 64).to(DEVICE), Norm(vector(64), 1e-6)
    for given in (norm, None):
        assert_close(cuda, cuda.rotate(x, expected, given), reference.rotate(x, expected, given))


def test_snake_beta(pair):
    cuda, reference = pair
    x, frequency, amplitude = rows(50), vector(HIDDEN), vector(HIDDEN)
    assert_close(cuda, cuda.snake_beta(x, frequency, amplitude), reference.snake_beta(x, frequency, amplitude))


class Store:
    """A sequence's keys and values, of which ``length`` positions were there before."""

    def __init__(self, kv_heads, head_dim, length, dtype, capacity=300):
        self.buffers = torch.randn(2, 2, kv_heads, capacity, head_dim).to(DEVICE, dtype)
        self.length = length

    def reserve(self, _):
        return self.buffers[0], self.buffers[1]

    def copy(self):
        other = Store.__new__(Store)
        other.buffers, other.length = self.buffers.clone(), self.length
        return other


def attention(backend, heads, kv_heads, head_dim, *, window=None, qk_norm=True):
    norms = [Norm(vector(head_dim), 1e-6) if qk_norm else None for _ in range(2)]
    parts = [Projection(weight(backend, count * head_dim, HIDDEN)) for count in (heads, kv_heads, kv_heads)]
    out = Projection(weight(backend, HIDDEN, heads * head_dim))
    return AttentionBlock(Norm(vector(HIDDEN), 1e-6), *parts, out, *norms, head_dim, window, None)


def both_attend(pair, block, heads, lengths, fresh, most=None):
    """What both backends make of ``fresh`` rows for each store, of ``most`` positions: results, then the stores."""
    cuda, reference = pair
    dtype = cuda.precision.compute
    stores = [Store(heads, block.head_dim, length, dtype, most or 300) for length in lengths]
    theirs = [store.copy() for store in stores]
    x = rows(len(lengths) * fresh)
    positions = torch.tensor([float(n + i) for n in lengths for i in range(fresh)]).to(DEVICE)
    table = reference.rotary_table(positions, rotary(block.head_dim))
    segments = [Segment(i * fresh, fresh, store) for i, store in enumerate(theirs)]
    expected = reference.attention_block(x.clone(), block, 1, reference.begin_step(table, segments))
    places = torch.tensor([store_row(store) for store in stores]).to(DEVICE)
    on_device = [Segment(i * fresh, fresh, DeviceStore(places, i, dtype, most)) for i in range(len(stores))]
    got = cuda.attention_block(x.clone(), block, 1, cuda.begin_step(table, on_device))
    return got - x, expected - x, stores, theirs


@pytest.mark.parametrize(
    ("lengths", "fresh", "window"),
    [
        ([0], 1, None),
        ([64], 1, None),
        ([270], 1, None),
        ([130, 7], 1, None),
        ([200], 1, 50),
        ([0], 2, None),
        ([*range(17)], 1, None),
    ],
)
def test_attention_over_a_cache(pair, lengths, fresh, window):
    block = attention(pair[0], 4, 2, 32, window=window)
    got, expected, stores, theirs = both_attend(pair, block, 2, lengths, fresh)
    assert_close(pair[0], got, expected)
    for store, right in zip(stores, theirs, strict=True):
        assert_close(pair[0], store.buffers, right.buffers)


@pytest.mark.parametrize(("lengths", "fresh"), [([0, 0], 2), ([5, 15, 0], 1)])
def test_attention_over_caches_that_are_known_to_stay_short(pair, lengths, fresh):
    got, expected, stores, theirs = both_attend(pair, attention(pair[0], 4, 2, 32), 2, lengths, fresh, most=16)
    assert_close(pair[0], got, expected)
    for store, right in zip(stores, theirs, strict=True):
        assert_close(pair[0], store.buffers, right.buffers)


def test_what_is_compiled_alone_is_not_run(pair):
    block, x = attention(pair[0], 4, 2, 32), rows(1)
    given, its = x.clone(), torch.ones(1, 128, dtype=pair[0].precision.compute, device=DEVICE)
    with compiling(2):
        pair[0]._add(x, its, block.o_proj, None)
        kept = pair[0].rotary_table(torch.tensor([3.0], device=DEVICE), rotary(32))
    assert torch.equal(x, given)
    pair[0]._add(x, its, block.o_proj, None)
    assert not torch.equal(x, given)
    torch.testing.assert_close(kept, pair[1].rotary_table(torch.tensor([3.0], device=DEVICE), rotary(32)))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 1, 64), (2, 2, 12)])
def test_attention_of_other_heads(pair, heads, kv_heads, head_dim):
    block = attention(pair[0], heads, kv_heads, head_dim, qk_norm=False)
    got, expected, _, _ = both_attend(pair, block, kv_heads, [9], 1)
    assert_close(pair[0], got, expected)


@pytest.mark.parametrize(
    ("start", "count", "filled", "window"),
    [
        (0, 9, 16, None),
        (0, 40, 40, None),
        (100, 5, 8, None),  # split among programs
        (37, 30, 32, 20),
        (200, 21, 24, 150),
        (130, 3, 48, None),  # tiles of nothing but what fills up
    ],
)
def test_a_prompt_s_rows_attend_to_what_is_stored_and_are_stored(pair, start, count, filled, window):
    cuda, reference = pair
    block = attention(cuda, 4, 2, 32, window=window)
    mine = Store(2, 32, start, cuda.precision.compute)
    theirs, x = mine.copy(), rows(count)
    x = torch.cat((x, x[-1:].expand(filled - count, -1)))
    positions = (start + torch.arange(filled).clamp(max=count - 1)).float().to(DEVICE)
    table = reference.rotary_table(positions, rotary(32))
    place = torch.tensor([[*store_row(mine, count), count]]).to(DEVICE)
    step = cuda.begin_step(table, [Segment(0, filled, PromptStore(place, 0, cuda.precision.compute))])
    for _ in range(2):  # what split sums are counted in is as it was
        got = cuda.attention_block(x.clone(), block, 1, step)
    table = table[0][:count], table[1][:count]
    step = reference.begin_step(table, [Segment(0, count, theirs)])
    expected = reference.attention_block(x[:count].clone(), block, 1, step)
    assert_close(cuda, got[:count] - x[:count], expected - x[:count])
    assert got.isfinite().all()
    assert_close(cuda, mine.buffers, theirs.buffers)


def test_a_ring_is_a_window(pair):
    cuda, reference = pair
    window = 5 if interpreted() else 20
    block = attention(cuda, 2, 2, 32, window=window)
    ring, whole = Store(2, 32, 0, cuda.precision.compute, capacity=window), Store(2, 32, 0, cuda.precision.compute)
    for position in range(2 * window + 2):
        x = rows(1)
        table = reference.rotary_table(torch.tensor([float(position)]).to(DEVICE), rotary(32))
        ring.length = whole.length = position
        places = torch.tensor([store_row(ring)]).to(DEVICE)
        step = cuda.begin_step(table, [Segment(0, 1, DeviceStore(places, 0, cuda.precision.compute))])
        got = cuda.attention_block(x.clone(), block, 0, step)
        expected = reference.attention_block(x.clone(), block, 0, reference.begin_step(table, [Segment(0, 1, whole)]))
        assert_close(cuda, got - x, expected - x)


def test_argmax_takes_the_first_and_shows_nan():
    cuda = CudaBackend(DEVICE, Precision.of("f32"))
    logits = torch.randn(3, 5000).to(DEVICE)
    logits[0, [17, 4000]] = 9.0
    logits[2, 123] = float("nan")
    best, peaks = cuda.argmax(logits).T
    assert best[:2].tolist() == [17, int(logits[1].argmax())]
    assert peaks[0] == 9.0
    assert peaks[2].isnan()


SETTINGS = [
    {"top_k": 50, "top_p": 0.8}, {"top_k": 0, "top_p": 0.3}, {"top_k": 5, "top_p": 1.0, "min_p": 0.1},
    {"top_k": 0, "top_p": 1.0}, {"temperature": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
def test_codes_are_those_of_the_host_s_sampler(settings, rounded):
    settings = {"temperature": 0.9, "min_p": 0.0, **settings}
    backend, count, suppressed, seen = CudaBackend(DEVICE, Precision.of("f32")), 300, range(100, 200), [3, 4, 5]
    for seed in range(6):
        logits = 3 * torch.randn(count, generator=torch.Generator().manual_seed(seed))
        logits = logits.round() if rounded else logits
        params = SamplingParams(**settings, repetition_penalty=1.3, seed=seed)
        expected = Sampler(params, seen, count, suppress=frozenset(suppressed)).sample(logits).id
        uniform = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        masks = [torch.zeros(count, dtype=torch.uint8) for _ in range(2)]
        masks[0][list(suppressed)], masks[1][seen] = 1, 1
        not_said, said = (mask.to(DEVICE) for mask in masks)
        out, peak = torch.zeros(1, dtype=torch.int64).to(DEVICE), torch.zeros(1).to(DEVICE)
        options, marks = {"top_k": 0, "top_p": 1.0, **settings}, SaidCodes(said[None], torch.zeros_like(out))
        backend.sample(logits[None].to(DEVICE), uniform.reshape(1).to(DEVICE), out, peak, **options, repetition=1.3,
                       suppressed=not_said, seen=marks, embedded=None)  # fmt: skip
        assert out.item() == expected
        assert said[expected] == 1


@pytest.mark.parametrize(
    ("form", "tiles"), [("BF16", ((4, 4), (8, 8))), (Q8_0, ((4, 4), (8, 8))), (PACKED, ((2, 2), (4, 4)))]
)
def test_tiles_of_a_thinker_s_experts_are_those_that_were_fastest(monkeypatch, form, tiles):
    monkeypatch.setattr(triton_mixture, "interpreted", lambda: False)
    assert triton_mixture._tiles(2048, 768, DenseWeight(torch.empty(0, 0), form)) == tiles


def test_sampling_shows_nan_and_stays_in_the_vocabulary():
    backend, out, peak = (
        CudaBackend(DEVICE, Precision.of("f32")),
        torch.zeros(1, dtype=torch.int64).to(DEVICE),
        rows(1, 1)[0],
    )
    logits = torch.full((300,), float("nan")).to(DEVICE)
    settings = {"temperature": 1.0, "top_k": 50, "top_p": 0.8, "min_p": 0.0, "repetition": 1.0}
    uniform = torch.zeros(1, dtype=torch.float64).to(DEVICE)
    backend.sample(logits[None], uniform, out, peak, **settings, suppressed=None, seen=None, embedded=None)
    assert peak.isnan().item()
    assert 0 <= out.item() < 300


@pytest.mark.skipif(interpreted(), reason="the interpreter takes any device")
def test_it_needs_a_gpu():
    with pytest.raises(InvalidRequest, match="needs a GPU, not device 'cpu'; take --device cuda"):
        CudaBackend(torch.device("cpu"), Precision.of("bf16"))
