"""Frames and samples of several answers in launches of many, each at its own place: what each has alone."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from lluda.backends.backend import Precision
from lluda.backends.cuda.kernels.triton_target import interpreted
from lluda.backends.reference.backend import ReferenceBackend
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.frames import FrameGenerator
from lluda.engine.speech.graph_frames import feed
from lluda.engine.speech.speech_graphs import SpeechGraphs, push_all
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.vocoder_graph import STREAMS
from lluda.errors import NumericalError
from tests.backends.cuda.test_cuda_graph import DEVICE, cuda_backend, spoken, vocoder, voice_parts

pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)
ON_GPU = DEVICE.type == "cuda"


def params_of(number):
    return SpeechParams(sampling=SamplingParams(temperature=0.9, seed=number)).with_defaults({})


def alone(number, rows, text, count):
    voice = voice_parts(ReferenceBackend(DEVICE, Precision.of("f32")))
    return spoken(FrameGenerator(*voice, params_of(number), max_rows=64, kv_dtype="f32"), rows, text, count)


def test_frames_of_answers_that_come_and_go_are_each_s_own():
    backend = cuda_backend()
    graphs = SpeechGraphs(*voice_parts(backend), vocoder(backend), "f32")
    torch.manual_seed(1)
    prompts, text = [torch.randn(5 + number, 64).to(DEVICE) for number in range(3)], torch.randn(3, 64).to(DEVICE)
    prompts[2][:] = float("nan")
    answers = [graphs.frames(params_of(number), 64) for number in range(3)]
    found = [[], [], []]

    def step(going, *, fresh=()):
        feed([answers[number] for number in going], text[list(going)], together=True)
        for number in fresh:
            answers[number].prefill(prompts[number].clone())
        for number in (*going, *fresh):
            found[number].append(answers[number].next_codes())

    step([], fresh=[0])
    if ON_GPU:
        step([0])
    step([], fresh=[1])
    if ON_GPU:
        step([1, 0])
    answers[2].prefill(prompts[2])
    with pytest.raises(NumericalError, match="so no code can be sampled"):
        answers[2].next_codes()
    feed(answers, text, together=True)  # three of a launch for four, of which one is broken
    with pytest.raises(NumericalError, match="so no code can be sampled"):
        answers[2].next_codes()
    found[1].append(answers[1].next_codes())
    graphs.give_back(answers[0], None)
    assert len(found[1]) == 2 + ON_GPU > 1
    for number in range(2):
        count = len(found[number])
        assert found[number] == alone(number, prompts[number], text[number : number + 1], count)
    assert graphs.frames(params_of(7), 64).number == answers[0].number  # whose frame nobody read
    assert [len(made) for made in graphs.made.values()] == [1]


def test_samples_of_streams_that_come_and_go_are_each_s_own():
    backend = cuda_backend()
    network = vocoder(backend)
    graphs, config = SpeechGraphs(*voice_parts(backend), network, "f32"), network.config
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, config.codebook_size, (4, config.num_quantizers), generator=generator) for _ in range(3)]
    # What each stream is given, step by step.
    steps = [((0, 1),), ((0, 1), (1, 1))]
    if ON_GPU:
        steps += [((1, 1), (2, 2), (0, 1)), ((2, 1),), ((1, 2), (0, 1))]
    streams, at, found = [graphs.vocoder() for _ in range(3)], [0, 0, 0], [[], [], []]
    for step in steps:
        frames = [codes[number][at[number] : at[number] + count].tolist() for number, count in step]
        samples = push_all([streams[number] for number, _ in step], frames, together=True)
        for (number, count), part in zip(step, samples, strict=True):
            at[number] += count
            found[number].append(part)
    whole = vocoder(ReferenceBackend(DEVICE, Precision.of("f32")))
    for number, parts in enumerate(found):
        if parts:
            expected = whole(codes[number][: at[number]].T.contiguous()).float().cpu()
            torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-4)
    graphs.give_back(None, streams[0])
    again = graphs.vocoder()  # in the place of another, of which it must hear nothing
    assert again.captured.number == streams[0].captured.number
    first = again.push(codes[0][:1].tolist())
    torch.testing.assert_close(first, found[0][0], rtol=0, atol=1e-4)


def test_more_answers_than_there_are_places_have_places_of_their_own():
    backend = cuda_backend()
    graphs = SpeechGraphs(*voice_parts(backend), vocoder(backend), "f32")
    answers = [graphs.frames(params_of(number), 64) for number in range(STREAMS + 1)]
    assert len({(answer.graphs, answer.number) for answer in answers}) == STREAMS + 1
    streams = [graphs.vocoder().captured for _ in range(STREAMS + 1)]
    assert len({(stream.graph, stream.number) for stream in streams}) == STREAMS + 1


def test_a_voice_that_was_warmed_up_captures_nothing_more_and_says_the_same():
    backend, count = cuda_backend(), 4 if ON_GPU else 1
    backend.prompt_rows = (8,)
    graphs = SpeechGraphs(*voice_parts(backend), vocoder(backend), "f32")
    graphs.warm_up(params_of(3), count)
    (frames,), (speaking,) = graphs.made[next(iter(graphs.made))], graphs.made["vocoder"]
    made, seconds = (set(frames._graphs), set(speaking._batches)), (frames.warm_up_seconds, speaking.warm_up_seconds)
    torch.manual_seed(1)
    rows, text = torch.randn(5, 64).to(DEVICE), torch.randn(1, 64).to(DEVICE)
    assert spoken(graphs.frames(params_of(3), 64), rows, text, 1 + ON_GPU) == alone(3, rows, text, 1 + ON_GPU)
    assert made == (set(frames._graphs), set(speaking._batches))
    assert made[0] == {(1, True), *((answers, False) for answers in (1, 2, 4) if answers <= count)}
    if ON_GPU:
        assert seconds == (frames.warm_up_seconds, speaking.warm_up_seconds)
        assert min(seconds) > 0
