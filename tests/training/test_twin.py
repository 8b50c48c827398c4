"""The trainable twin against lluda's own float32 networks, on the same random tensors, component by component."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lluda.backends import select_backend
from lluda.backends.batch import Segment
from lluda.config.code2wav import read_code2wav
from lluda.config.model import ModelConfig
from lluda.config.reader import ConfigReader
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.speech.talker_prompt import TalkerPromptBuilder
from lluda.models.build import all_parameters, build_text_model
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker
from tests.config.test_code2wav import SMALL
from tests.engine.speech.test_speech import ASSISTANT, IM_END, IM_START, NEWLINE, USER, config
from tests.models.omni_reference import placed_parameters, random_parameters
from tests.models.test_code2wav import codes_of, speech_like
from training.train_talker import Batch, TalkerTrainer
from training.twin.code2wav import Code2Wav as Code2WavTwin
from training.twin.decoder import Mixture
from training.twin.talker import Talker as TalkerTwin
from training.twin.thinker import Thinker as ThinkerTwin

BAR = 1e-5


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parsed():
    return ModelConfig.from_hf(config())


@pytest.fixture(scope="module")
def tensors(parsed):
    return random_parameters(all_parameters(parsed))


@pytest.fixture(scope="module")
def backend():
    return select_backend("reference", "cpu", "f32")


@pytest.fixture(scope="module")
def parameters(parsed, tensors, backend):
    return placed_parameters(all_parameters(parsed), tensors, backend)


@pytest.fixture(scope="module")
def thinkers(parsed, tensors, parameters, backend):
    """lluda's and the twin."""
    trained = {name: value for name, value in tensors.items() if ".visual." not in name}
    twin = load(ThinkerTwin(parsed.text, parsed.omni), trained, "thinker.")
    return build_text_model(parsed, parameters, lambda _: backend), twin


@pytest.fixture(scope="module")
def talkers(parsed, tensors, parameters, backend):
    """lluda's and the twin."""
    speech = parsed.omni.speech.talker
    return Talker(speech, parameters, backend), load(TalkerTwin(speech), tensors, "talker.")


def load(module, tensors, prefix):
    """All parameters of the twin, and no others, from the checkpoint's names below ``prefix``."""
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state, strict=True)
    return module.eval()


def deviation(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def alone(rows, decoder):
    """One sequence from an empty cache."""
    return [Segment(0, rows, KVCache(decoder, CacheOptions(256, dtype="f32"), torch.device("cpu")))]


def test_code2wav_beyond_its_window(backend):
    small = read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))
    tensors = speech_like(small)
    network = Code2Wav(small, placed_parameters(code2wav_parameters(small), tensors, backend), backend)
    twin = load(Code2WavTwin(small), tensors, "code2wav.")
    codes = codes_of(small, small.window + 9)
    with torch.inference_mode():
        assert deviation(twin(codes[None])[0], network(codes)) < BAR


@torch.inference_mode()
def test_audio_encoder_of_a_padded_batch(thinkers):
    """Less than a chunk, whole chunks, and a part of one, beside a full block."""
    thinker, twin = thinkers
    recordings = [torch.rand(frames, 128) * 2 - 1 for frames in (37, 200, 337, 800)]
    padded = torch.stack([F.pad(one, (0, 0, 0, 800 - len(one))) for one in recordings])
    rows, own = twin.audio_tower(padded, torch.tensor([len(one) for one in recordings]))
    expected = thinker.audio_tower(recordings)
    found = torch.cat([part[:count] for part, count in zip(rows, own, strict=True)])
    assert found.shape == expected.shape
    assert deviation(found, expected) < BAR


@torch.inference_mode()
def test_thinker_rows_that_the_talker_takes_and_logits(parsed, thinkers):
    thinker, twin = thinkers
    ids, seen = torch.randint(20, 120, (2, 23)), {}
    layer = parsed.omni.speech.talker.accept_hidden_layer
    for row in ids:
        logits = thinker(
            row, torch.arange(23), alone(23, parsed.text), None, lambda name, x: seen.setdefault(name, x.clone())
        )
        taken, _ = twin.model(twin.embed(row[None]), end=layer)
        assert deviation(twin(twin.embed(row[None]))[0][0], logits) < BAR
        assert deviation(taken[0], seen.pop(f"layers.{layer - 1}")) < BAR
        seen.clear()


@torch.inference_mode()
def test_talker_behind_padding(parsed, talkers):
    """An example's rows are those of the example alone, however many rows of padding stand before it."""
    talker, twin = talkers
    decoder = parsed.omni.speech.talker.decoder
    rows = torch.randn(2, 19, decoder.hidden_size)
    hidden, logits, _ = twin(rows, torch.tensor([0, 6]))
    for example, ahead in ((0, 0), (1, 6)):
        count = 19 - ahead
        expected = talker(
            rows[example, ahead:].clone(), torch.arange(count), alone(count, decoder), torch.arange(count)
        )
        assert deviation(hidden[example, ahead:], expected[0]) < BAR
        assert deviation(logits[example, ahead:], expected[1]) < BAR


@torch.inference_mode()
def test_all_passes_of_the_code_predictor(parsed, talkers, parameters, backend):
    _, twin = talkers
    speech = parsed.omni.speech.talker
    predictor, groups = CodePredictor(speech, parameters, backend), speech.num_code_groups
    hidden, codes = torch.randn(3, speech.decoder.hidden_size), torch.randint(32, (3, groups))
    first = twin.model.codec_embedding(codes[:, 0])
    found = twin.code_predictor(hidden, first, twin.code_predictor.tables(codes[:, 1:-1]))
    for frame in range(3):
        rows = [
            hidden[frame],
            first[frame],
            *(predictor.embed(g, codes[frame, g : g + 1])[0] for g in range(1, groups)),
        ]
        for group in range(1, groups):
            count = group + 1
            segments = alone(count, speech.code_predictor)
            expected = predictor(torch.stack(rows[:count]), torch.arange(count), segments, group)
            assert deviation(found[frame, group - 1], expected[0]) < BAR


@torch.inference_mode()
def test_rows_of_an_example_are_the_engines(parsed, tensors, talkers, thinkers):
    """A typed question, then frames: what the engine's prompt and its steps are made of, also behind padding."""
    talker, twin = talkers
    speech = parsed.omni.speech
    trainer = TalkerTrainer(speech, tensors["thinker.model.embed_tokens.weight"])
    trainer.opening[2] = NEWLINE
    trainer.talker.load_state_dict(twin.state_dict())
    asked, answer = [IM_START, USER, NEWLINE, 30, 31, 32, IM_END, NEWLINE], [40, 41, speech.tokens.tts_eos]
    codes = torch.randint(32, (1, 2, speech.talker.num_code_groups))
    batch = Batch(
        text=torch.tensor([answer]),
        codes=codes,
        own=torch.ones(1, 2, dtype=torch.bool),
        spoken=torch.full((1, 3), -1),
        speaker=torch.tensor([speech.talker.speakers["chelsie"]]),
        user=torch.tensor([[-1, -1, *asked]]),
        heard=torch.zeros(1, 10, dtype=torch.bool),
    )
    found = trainer.rows(batch, None, codes)[0, 2:]
    builder = TalkerPromptBuilder(parsed.omni, talker, thinkers[0].decoder.embed_tokens)
    prompt = PromptRows([*asked, IM_START, ASSISTANT, NEWLINE])
    rows = builder.build(prompt, None, answer[0], "chelsie").rows
    steps = [twin.frame_rows(codes[0, k : k + 1]) + builder.text_row(answer[k + 1]) for k in range(2)]
    assert deviation(found, torch.cat((rows, *steps))) < BAR


def test_experts_nearly_as_good_take_turns_in_training(parsed):
    torch.manual_seed(0)
    mixture = Mixture(parsed.text.hidden_size, parsed.text.moe)
    rows = torch.randn(1, 4000, parsed.text.hidden_size)
    first, second = (mixture.train().route(rows)[0] > 0 for _ in range(2))
    others = (first != second).any(-1).float().mean()
    assert 0 < others < 0.1
    first, second = (mixture.eval().route(rows)[0] for _ in range(2))
    assert torch.equal(first, second)
