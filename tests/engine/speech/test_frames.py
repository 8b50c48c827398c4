"""Frames of speech against transformers' own loop, greedy, on the small talker of tests/models/test_talker.py."""

from __future__ import annotations

import pytest
import torch

from lluda.backends import select_backend
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.frames import FrameGenerator, feed, next_codes
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import InvalidRequest
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.talker import Talker, talker_parameters
from tests.models.omni_reference import placed_parameters
from tests.models.test_talker import config, reference, tensors  # noqa: F401  (fixtures)

FRAMES = 12
EOS = 82


def voice(tensors, backend="reference", dtype="f32"):  # noqa: F811
    chosen = select_backend(backend, "cpu", dtype)
    specs = [*talker_parameters(config()), *code_predictor_parameters(config())]
    parameters = placed_parameters(specs, tensors, chosen)
    return tuple(kind(config(), parameters, chosen) for kind in (Talker, CodePredictor))


def frame_generator(tensors, *, temperature=0.0, seed=1):  # noqa: F811
    return answer_of(voice(tensors), temperature, seed)


def answer_of(networks, temperature, seed, kv_dtype="f32"):
    params = SpeechParams(sampling=SamplingParams(temperature=temperature, seed=seed)).with_defaults({})
    return FrameGenerator(*networks, params, max_rows=256, kv_dtype=kv_dtype)


def frames(generator, rows, trailing, padding, count=FRAMES):
    generator.prefill(rows)
    found = []
    for index in range(count):
        codes = generator.next_codes()
        if codes is None:
            break
        found.append(codes)
        generator.feed(trailing[index : index + 1] if index < len(trailing) else padding)
    return found


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(3)
    return torch.randn(14, 64), torch.randn(5, 64), torch.randn(1, 64)


def test_greedy_codes_are_those_of_transformers(tensors, reference, text):  # noqa: F811
    rows, trailing, padding = text
    result = reference.generate(
        inputs_embeds=rows[None],
        trailing_text_hidden=trailing[None],
        tts_pad_embed=padding[None],
        talker_input_ids=torch.zeros(1, len(rows), dtype=torch.long),
        attention_mask=torch.ones(1, len(rows), dtype=torch.long),
        max_new_tokens=FRAMES + 1,
        do_sample=False,
        repetition_penalty=1.05,
        eos_token_id=EOS,
        pad_token_id=80,
        suppress_tokens=[token for token in range(64, 96) if token != EOS],
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    expected = [step[-1][0].tolist() for step in result.hidden_states if step[-1] is not None]
    found = frames(frame_generator(tensors), rows, trailing, padding)
    assert len(expected) == FRAMES
    assert found == expected
    assert len({tuple(codes) for codes in found}) > FRAMES // 2


def test_a_seed_gives_the_same_frames_and_another_gives_others(tensors, text):  # noqa: F811
    first, again, other = (frames(frame_generator(tensors, temperature=0.9, seed=seed), *text) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert all(len(codes) == 4 and all(0 <= code < 64 for code in codes) for codes in first)


@pytest.mark.parametrize(("backend", "dtype"), [("reference", "f32"), ("cpu", "bf16")])
def test_answers_spoken_together_have_the_codes_that_each_has_alone(tensors, backend, dtype):  # noqa: F811
    """More of them than one call of the native code predictor takes, of several lengths and ways of sampling; those
    that end leave the others as they are."""
    networks, random = voice(tensors, backend, dtype), torch.Generator().manual_seed(7)
    prompts = [torch.randn(3 + 2 * index, 64, generator=random) for index in range(9)]
    texts = torch.randn(FRAMES, 9, 64, generator=random)
    alone = [
        frames(answer_of(networks, 0.9 * (index % 3), index, dtype), rows.clone(), texts[:, index], None)
        for index, rows in enumerate(prompts)
    ]
    together = {index: answer_of(networks, 0.9 * (index % 3), index, dtype) for index in range(9)}
    for index, answer in together.items():
        answer.prefill(prompts[index].clone())
    found = [[] for _ in prompts]
    for text in texts:
        for index, codes in zip(list(together), next_codes(list(together.values())), strict=True):
            if codes is None:
                del together[index]
            else:
                found[index].append(codes)
        if together:
            feed(list(together.values()), text[list(together)])
    assert found == alone
    assert len({tuple(codes) for codes in found[1]}) > FRAMES // 4


def test_released_defaults_and_the_files_own():
    params = SpeechParams().with_defaults({"talker_top_k": 7, "talker_max_new_tokens": 100})
    assert (params.sampling.temperature, params.sampling.top_k, params.sampling.repetition_penalty) == (0.9, 7, 1.05)
    assert params.max_frames == 100
    assert SpeechParams().with_defaults({}).max_frames == 4096
    with pytest.raises(InvalidRequest, match="max_frames must be at least 1"):
        SpeechParams(max_frames=0)
    with pytest.raises(InvalidRequest, match="temperature"):
        SpeechParams().with_defaults({"talker_temperature": -1})


@pytest.mark.parametrize("value", ["default", [[]], {}, 0, -1, 1.5, True, 2**31])
def test_a_value_of_the_file_that_is_no_number_of_frames_is_refused(value):
    """Files of these kinds ended in a traceback."""
    with pytest.raises(InvalidRequest, match=r"generation_config\.json: talker_max_new_tokens must be an integer"):
        SpeechParams().with_defaults({"talker_max_new_tokens": value})


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "repetition_penalty"])
def test_talker_values_of_the_file_are_read_as_strictly_and_null_is_none_given(name):
    with pytest.raises(InvalidRequest, match=f"talker_{name} must be .*got 'x'"):
        SpeechParams().with_defaults({f"talker_{name}": "x"})
    nothing = SpeechParams(sampling=SamplingParams(seed=1)).with_defaults({f"talker_{name}": None})
    assert nothing == SpeechParams(sampling=SamplingParams(seed=1)).with_defaults({})
    assert SpeechParams().with_defaults({"talker_max_new_tokens": None}).max_frames == 4096


@pytest.mark.parametrize("frames", ["5", 5.0, True, -1])
def test_max_frames_of_a_request_is_a_number(frames):
    with pytest.raises(InvalidRequest, match="max_frames must be at least 1"):
        SpeechParams(max_frames=frames)
