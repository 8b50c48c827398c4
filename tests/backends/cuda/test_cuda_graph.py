"""Whole steps of the cuda backend, captured on a GPU, launch by launch in the interpreter, against the reference."""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

import lluda
from lluda.backends.backend import Precision
from lluda.backends.batch import Segment
from lluda.backends.capture import store_row
from lluda.backends.components import StageObserver
from lluda.backends.cuda.backend import CudaBackend
from lluda.backends.cuda.graph import Graph, pinned
from lluda.backends.cuda.kernels.triton_target import interpreted
from lluda.backends.cuda.prompt_graphs import PromptGraphs, Rows
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.weight import Parameters
from lluda.bench.measured.host_waits import host_waits
from lluda.config.code2wav import read_code2wav
from lluda.config.model import ModelConfig
from lluda.config.reader import ConfigReader
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.request import Completion, SpeechChunk
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.frames import FrameGenerator
from lluda.engine.speech.speech_graphs import SpeechGraphs
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.warm_up import warm_up
from lluda.errors import LludaError, OutOfMemory
from lluda.models.causal_lm import CausalLM
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.decoder import mixture_parameters
from lluda.models.talker import Talker, talker_parameters
from tests.cli.omni import write_speaking_omni
from tests.conftest import placed, random_tensors
from tests.engine.asking import ask, engine_of
from tests.engine.speech.test_spoken_conversation import GREEDY as GREEDY_TURN
from tests.engine.speech.test_spoken_conversation import HEARD, SPEECH, speech_of
from tests.models.omni_reference import placed_parameters, random_parameters
from tests.models.test_code2wav import SMALL
from tests.models.test_talker import config as talker_config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GREEDY = SamplingParams(temperature=0.0, max_tokens=8).with_defaults({})
DENSE = {
    "model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 96, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 0,
    "torch_dtype": "float32",
}  # fmt: skip
SPARSE = DENSE | {
    "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
}  # fmt: skip
LONG = DENSE | {
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)


def cuda_backend():
    return CudaBackend(DEVICE, Precision.of("f32"))


def generator(raw, backend, experts=None):
    config = ModelConfig.from_hf(raw).text
    parameters = placed(random_tensors(raw), raw, backend)
    if experts is not None:
        apart = placed(random_tensors(raw), raw, experts).values
        taken = {spec.name: apart[spec.name] for spec in mixture_parameters(config)}
        parameters = Parameters({**parameters.values, **taken})
    network = CausalLM(config, parameters, backend, experts=experts)
    return Runner(network, CacheOptions(64, dtype="f32"))


@pytest.mark.parametrize("raw", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_step_s_logits_are_the_reference_s(raw):
    ours, theirs = generator(raw, cuda_backend()), generator(raw, ReferenceBackend(DEVICE, Precision.of("f32")))
    for prompts in ([[5, 9, 2]], [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7]]):
        caches = [[each.new_cache() for _ in prompts] for each in (ours, theirs)]
        for each, mine in zip((ours, theirs), caches, strict=True):
            for prompt, cache in zip(prompts, mine, strict=True):
                each.prefill(prompt, cache)
        for step in range(3 if DEVICE.type == "cuda" else 2):
            ids = [11 + step] * len(prompts)
            got, expected = ours.step(ids, caches[0]), theirs.step(ids, caches[1])
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            assert got.argmax(-1).tolist() == ours.greedy_step(ids, [_back(cache) for cache in caches[0]])


def _back(cache):
    """The cache before its last step."""
    cache.truncate(cache.length - 1)
    return cache


def test_answers_are_the_reference_s():
    ours, theirs = generator(SPARSE, cuda_backend()), generator(SPARSE, ReferenceBackend(DEVICE, Precision.of("f32")))
    prompts = [[3, 1, 4], [1, 5]]
    answers = [
        {event.index: event.token_ids for event in ask(each, prompts, GREEDY) if isinstance(event, Completion)}
        for each in (ours, theirs)
    ]
    assert answers[0] == answers[1]
    assert ours._graph(2) is ours._graph(2)


def test_a_prompt_is_split_into_large_parts_for_those_who_decode():
    assert engine_of(generator(DENSE, cuda_backend())).scheduler.least_rows == CudaBackend.flat_rows > 100
    assert engine_of(generator(DENSE, ReferenceBackend(DEVICE, Precision.of("f32")))).scheduler.least_rows < 10


def test_sampled_answers_are_the_reference_s_and_no_logits_leave_the_device(monkeypatch):
    params = SamplingParams(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=3,
                            presence_penalty=0.5, max_tokens=12 if DEVICE.type == "cuda" else 5)  # fmt: skip
    ours, theirs = generator(DENSE, cuda_backend()), generator(DENSE, ReferenceBackend(DEVICE, Precision.of("f32")))
    monkeypatch.setattr(ours, "step", None)
    prompts = [[3, 1, 4], [1, 5], [9]]
    answers = [
        {event.index: event.token_ids for event in ask(each, prompts, params) if isinstance(event, Completion)}
        for each in (ours, theirs)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0].values())) == 3


def test_a_row_with_log_probabilities_beside_a_sampled_one():
    ours, theirs = generator(DENSE, cuda_backend()), generator(DENSE, ReferenceBackend(DEVICE, Precision.of("f32")))
    samplers = [
        [
            Sampler(SamplingParams(temperature=0.9, top_k=9, seed=1, logprobs=logprobs), [5], 96)
            for logprobs in (None, 2)
        ]
        for _ in range(2)
    ]
    found = []
    for each, own in zip((ours, theirs), samplers, strict=True):
        caches = [each.new_cache() for _ in own]
        ids = [sampler.sample(each.prefill([5, 6], cache)).id for sampler, cache in zip(own, caches, strict=True)]
        for _ in range(2):
            choices = each.choose_step(ids, caches, own)
            sampled = [sampler.accept(choice) for sampler, choice in zip(own, choices, strict=True)]
            ids = [one.id for one in sampled]
            found.append((ids, sampled[1].logprob))
        assert [isinstance(choice, torch.Tensor) for choice in choices] == [each is theirs, True]
    assert [ids for ids, _ in found[:2]] == [ids for ids, _ in found[2:]]
    assert [logprob for _, logprob in found[:2]] == pytest.approx([logprob for _, logprob in found[2:]], abs=1e-4)


def test_positions_beyond_the_trained_ones_are_the_reference_s():
    """YaRN: prefill and steps up to twice the length that the model was trained for."""
    reference = ReferenceBackend(DEVICE, Precision.of("f32"))
    ours, theirs, plain = generator(LONG, cuda_backend()), generator(LONG, reference), generator(DENSE, reference)
    prompt = list(range(1, 25))
    caches = [each.new_cache() for each in (ours, theirs, plain)]
    got, expected, other = (
        each.prefill(prompt, cache) for each, cache in zip((ours, theirs, plain), caches, strict=True)
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (expected - other).abs().max() > 1e-2  # without YaRN they are others
    for _ in range(8 if DEVICE.type == "cuda" else 2):
        token = int(expected.argmax())
        got, expected = (each.step([token], [cache])[0] for each, cache in zip((ours, theirs), caches, strict=False))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert got.argmax() == expected.argmax()


@pytest.mark.parametrize("here", ["cuda", "reference"])
def test_a_step_is_the_reference_s_with_its_experts_on_another_backend(here):
    cpu, precision = torch.device("cpu"), Precision.of("f32")
    apart = {
        "cuda": lambda: generator(SPARSE, cuda_backend(), ReferenceBackend(cpu, precision)),
        "reference": lambda: generator(SPARSE, ReferenceBackend(cpu, precision), cuda_backend()),
    }[here]()
    theirs, prompt = generator(SPARSE, ReferenceBackend(cpu, precision)), list(range(20))
    caches = apart.new_cache(), theirs.new_cache()
    pairs = [(apart.prefill(prompt, caches[0]), theirs.prefill(prompt, caches[1]))]
    pairs += [(apart.step([token], caches[:1])[0], theirs.step([token], caches[1:])[0]) for token in (11, 12)]
    for ours, expected in pairs:
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="nothing is captured without a GPU")
def test_a_captured_step_is_broken_for_work_on_the_host():
    x, y, here = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE), pinned((3,), torch.float32, DEVICE)
    backend, seen = cuda_backend(), []

    def body():
        here.copy_(x * 2, non_blocking=True)
        backend.host_callback(lambda: seen.append(here.tolist()))
        y.copy_(here, non_blocking=True)
        y.add_(1)

    graph = Graph(body, DEVICE, capture=True)
    seen.clear()
    for value in (5.0, 7.0):
        x.fill_(value)
        graph.launch()
        graph.wait()
        assert y.tolist() == [2 * value + 1] * 3
    assert seen == [[10.0] * 3, [14.0] * 3]


def test_logits_without_a_largest_end_the_answer():
    broken = generator(DENSE, cuda_backend())
    broken.model.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(LludaError, match="hold NaN, so no token can be sampled"):
        list(ask(broken, [[3, 1, 4]], GREEDY))


def test_a_request_that_takes_too_much_memory_ends_alone(monkeypatch):
    ours = generator(DENSE, cuda_backend())
    prefill = ours.prefill_rows

    def none_left(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB at 0x7f00")

    monkeypatch.setattr(ours, "prefill_rows", none_left)
    with pytest.raises(OutOfMemory, match=r"memory ran out during this request.*smaller --max-context") as caught:
        list(ask(ours, [[3, 1, 4]], GREEDY))
    assert "0x" not in str(caught.value)
    monkeypatch.setattr(ours, "prefill_rows", prefill)
    assert isinstance(list(ask(ours, [[3, 1, 4]], GREEDY))[-1], Completion)


def voice_parts(backend):
    specs = [*talker_parameters(talker_config()), *code_predictor_parameters(talker_config())]
    parameters = placed_parameters(specs, random_parameters(specs, 2), backend)
    return [kind(talker_config(), parameters, backend) for kind in (Talker, CodePredictor)]


def vocoder(backend):
    config = read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))
    specs = list(code2wav_parameters(config))
    return Code2Wav(config, placed_parameters(specs, random_parameters(specs, 1), backend), backend)


def spoken(frames, rows, text, count):
    frames.prefill(rows.clone())
    found = []
    for _ in range(count):
        found.append(frames.next_codes())
        if found[-1] is None:
            break
        frames.feed(text)
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_frames_are_those_of_the_reference(temperature):
    backend = cuda_backend()
    graphs = SpeechGraphs(*voice_parts(backend), vocoder(backend), "f32")
    params = SpeechParams(sampling=SamplingParams(temperature=temperature, seed=5)).with_defaults({})
    torch.manual_seed(1)
    rows, text = torch.randn(7, 64).to(DEVICE), torch.randn(1, 64).to(DEVICE)
    count = 6 if DEVICE.type == "cuda" else 2
    theirs = FrameGenerator(
        *voice_parts(ReferenceBackend(DEVICE, Precision.of("f32"))), params, max_rows=64, kv_dtype="f32"
    )
    expected = spoken(theirs, rows, text, count)
    for _ in range(3 if DEVICE.type == "cuda" else 1):  # a captured frame, and a captured prompt, serve again
        ours = graphs.frames(params, 64)
        assert spoken(ours, rows, text, count) == expected
        graphs.give_back(ours, None)
    assert [len(made) for made in graphs.made.values()] == [1]


def test_samples_are_those_of_the_whole():
    backend = cuda_backend()
    network, count = vocoder(backend), 9 if DEVICE.type == "cuda" else 3
    graphs = SpeechGraphs(*voice_parts(backend), network, "f32")
    size = network.config.num_quantizers
    codes = torch.randint(0, network.config.codebook_size, (size, count), generator=torch.Generator().manual_seed(0))
    expected = vocoder(ReferenceBackend(DEVICE, Precision.of("f32")))(codes).float().cpu()
    for _ in range(2):  # the second stream finds nothing of the first
        stream = graphs.vocoder()
        got = torch.cat([stream.push(codes[:, :1].T.tolist()), stream.push(codes[:, 1:].T.tolist())])
        # SnakeBeta makes more of the last digits that the order of a sum decides: the bar against transformers.
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        graphs.give_back(None, stream)
    assert [len(made) for made in graphs.made.values()] == [1]


@pytest.mark.skipif(DEVICE.type != "cuda", reason="nothing is captured without a GPU")
def test_what_is_captured_is_what_is_launched():
    backend = cuda_backend()
    ours = generator(SPARSE, backend)
    run = lambda ids, positions, segments: ours.model(ids, positions, segments, None)  # noqa: E731
    cache = ours.new_cache()
    ours.prefill([3, 1, 4, 1, 5], cache)
    logits = []
    for capture in (True, False):
        graph = backend.decode_graph(run, 1, torch.float32, capture=capture)
        graph.launch([7], [cache.length], [cache])
        graph.result()
        logits.append(graph.logits.clone())
    assert torch.equal(*logits)


@pytest.mark.parametrize(("start", "count"), [(0, 5), (3, 11)])
def test_rows_behind_any_start_fill_up_one_launch(start, count):
    """Of which the first capture and the second launch differ in all that a launch is told."""
    backend = cuda_backend()
    ours, theirs = generator(SPARSE, backend), generator(SPARSE, ReferenceBackend(DEVICE, Precision.of("f32")))
    layers, stages, seen = ours.model.decoder.layers, dict[str, torch.Tensor](), []
    kind = Rows(48, torch.float32, 0, torch.float32)
    run = partial(super(CudaBackend, backend).run_layers, layers)
    graphs = PromptGraphs(run, kind, "layers.0", DEVICE, capture=DEVICE.type == "cuda", buckets=(12,))
    x = torch.randn(start + 12, 48, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for first, rows in ((0, start), (start, count), (start, count)) if start else ((0, count),):
        if first == 0:
            caches = ours.new_cache(), theirs.new_cache()
        for cache in caches:
            cache.truncate(first)
        given = x[first : first + rows]
        positions = torch.arange(first, first + rows, device=DEVICE)
        got = graphs(given, positions, store_row(caches[0], rows), stages.__setitem__)
        expected = theirs.model.decoder.run(
            given.clone(),
            positions,
            [Segment(0, rows, caches[1])],
            StageObserver("layers.0", lambda x: seen.append(x + 0)),
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stages["layers.0"], seen[-1], rtol=1e-4, atol=1e-4)
        for cache in caches:
            cache.advance(rows)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="nothing is captured without a GPU")
def test_a_captured_prompt_is_the_launched_one():
    """In one piece, and behind what other launches have stored."""
    found = []
    for captures in (True, False):
        backend = cuda_backend()
        ours, prompt = generator(SPARSE, backend), list(range(20))
        if not captures:
            backend._prompt_graphs = lambda *_: None
        cache = ours.new_cache()
        ours.prefill(prompt[:12], cache)
        found.append([ours.prefill(prompt, ours.new_cache()), ours.prefill(prompt, cache)])
        assert bool(backend._prompts) is captures
    for captured, launched in zip(*found, strict=True):
        torch.testing.assert_close(captured, launched, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a GPU is asked")
def test_a_prompt_is_launched_without_waiting():
    backend = cuda_backend()
    ours, cache = generator(SPARSE, backend), None
    for _ in range(2):
        cache = ours.new_cache()
        ours.prefill([3, 1, 4], cache)
        ours.prefill([3, 1, 4, 1, 5, 9], cache)
    x, segments = torch.randn(6, 48, device=DEVICE), [Segment(0, 6, cache)]
    positions = torch.arange(6, 12, device=DEVICE)
    ours.model.decoder.run = torch.inference_mode()(ours.model.decoder.run)
    assert host_waits(lambda: ours.model.decoder.run(x, positions, segments)) == 0


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a GPU is asked")
def test_the_host_waits_at_the_end_of_a_step_alone():
    backend = cuda_backend()
    ours = generator(SPARSE, backend)
    cache = ours.new_cache()
    ours.prefill([3, 1, 4], cache)
    ours.greedy_step([7], [cache])
    graph = ours._graph(1)
    assert host_waits(lambda: graph.launch([7], [cache.length], [cache])) == 0
    assert host_waits(graph.result) == 1
    assert host_waits(lambda: torch.ones(1, device=DEVICE).item()) == 1
    frames = SpeechGraphs(*voice_parts(backend), vocoder(backend), "f32").frames(
        SpeechParams(sampling=SamplingParams(seed=5)).with_defaults({}), 64
    )
    text = torch.randn(1, 64, device=DEVICE)
    frames.prefill(torch.randn(7, 64, device=DEVICE))
    frames.next_codes()
    frames.feed(text)
    frames.next_codes()
    assert host_waits(lambda: frames.feed(text)) == 0
    assert host_waits(frames.next_codes) == 1


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("placed") / "tiny")


@pytest.mark.skipif(DEVICE.type != "cuda", reason="there is one device")
@pytest.mark.parametrize(
    "place",
    [
        "code2wav=cpu",
        "talker=cpu,code_predictor=cpu",
        "thinker=cpu",
        "audio_encoder=cpu",
        "code_predictor=cpu",
        "experts=cpu",
        "thinker=cpu,experts=cuda",
    ],
)
def test_speech_is_the_same_in_any_placement(speaking, place):
    message = [{"role": "user", "content": HEARD}]
    found = []
    for where in ("", place):
        events = list(
            lluda.load(speaking, dtype="f32", device="cuda", place=where).speak(message, speech=SPEECH, **GREEDY_TURN)
        )
        chunks = [event for event in events if isinstance(event, SpeechChunk)]
        found.append((speech_of(events), torch.cat([torch.from_numpy(chunk.samples) for chunk in chunks])))
    (codes, samples), (codes_apart, samples_apart) = found
    assert codes == codes_apart
    torch.testing.assert_close(samples, samples_apart, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="nothing is captured without a GPU")
def test_nothing_is_captured_after_warming_up():
    ours = generator(SPARSE, cuda_backend())
    assert warm_up(ours, 4, stage="layers.0") > 0
    backend = ours.model.backend
    ((_, prompts),) = backend._prompts.items()  # of one kind of rows
    seconds = prompts["layers.0"].warm_up_seconds
    cache = ours.new_cache()
    for end in (1, 2, 19, 20):
        ours.prefill(list(range(end)), cache)
    ours.prefill([3, 1, 4], ours.new_cache(), lambda _: StageObserver("layers.0", lambda _: None))
    ours.greedy_step([1, 2, 3], [ours.new_cache() for _ in range(3)])
    assert list(prompts) == ["layers.0"] and len(backend._prompts) == 1
    assert prompts["layers.0"].warm_up_seconds == seconds > 0
    assert {rows for rows, _ in ours._graphs} == {1, 2, 4}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="what is captured is another test's")
def test_where_nothing_is_captured_warming_up_runs_each_step_once():
    ours = generator(DENSE | {"num_hidden_layers": 1}, cuda_backend())
    ours.model.backend.prompt_rows = (1, 3)
    assert warm_up(ours, 2) > 0
    assert sorted(ours._graphs) == [(1, False), (1, True), (2, False), (2, True)]


def test_segments_of_a_device_step_are_alike():
    backend = cuda_backend()
    graph = backend.decode_graph(lambda *_: torch.empty(0), 1, torch.float32)
    store = graph._segments[0].store
    with pytest.raises(AssertionError, match="one number of rows"):
        backend.begin_step((torch.empty(3, 8), torch.empty(3, 8)), [Segment(0, 1, store), Segment(1, 2, store)])
