"""Text and speech together against transformers' own generate, on a small Omni model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from lluda.backends import select_backend
from lluda.config.model import ModelConfig
from lluda.engine.media import MediaReader, read_media
from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, Token
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.talker_prompt import TalkerPromptBuilder, assistant_header
from lluda.errors import InvalidRequest
from lluda.inputs.media.media_parts import MediaPart
from lluda.models.build import all_parameters, build_text_model
from lluda.models.code2wav import Code2Wav
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker
from tests.config.test_code2wav import SMALL as CODE2WAV
from tests.engine.asking import ask_spoken
from tests.models.omni_reference import load_reference, placed_parameters, random_parameters
from tests.models.test_talker import TALKER
from tests.models.test_thinker import OMNI, picture, reference_arguments, sound, template_ids

IM_START, IM_END, USER, ASSISTANT, SYSTEM, NEWLINE = 1, 2, 10, 11, 12, 13
SPEAKING = {
    "enable_audio_output": True,
    "user_token_id": USER,
    "assistant_token_id": ASSISTANT,
    "system_token_id": SYSTEM,
    "tts_bos_token_id": 14,
    "tts_eos_token_id": 15,
    "tts_pad_token_id": 16,
}
FRAMES, TEXT_TOKENS = 14, 8


def config():
    raw = copy.deepcopy(OMNI) | SPEAKING
    # One more than the layer whose input the talker takes: transformers norms the last layer's output.
    raw["thinker_config"]["text_config"]["num_hidden_layers"] = 5
    groups, codes = CODE2WAV["num_quantizers"], CODE2WAV["codebook_size"]
    talker = copy.deepcopy(TALKER) | {"thinker_hidden_size": 64, "accept_hidden_layer": 4, "num_code_groups": groups}
    predictor = talker["code_predictor_config"] | {"num_code_groups": groups, "vocab_size": codes}
    shift = {
        name: codes + index for index, name in enumerate(("pad", "bos", "eos", "nothink", "think_bos", "think_eos"))
    }
    talker |= {f"codec_{name}{'_token' * (name == 'eos')}_id": number for name, number in shift.items()}
    ids = ("audio", "audio_start", "audio_end", "image", "video", "vision_start")
    talker |= {f"{name}_token_id": raw["thinker_config"][f"{name}_token_id"] for name in ids}
    # Not the thinker's, so that whose is used shows in the positions.
    talker |= {"position_id_per_seconds": 17, "seconds_per_chunk": 2}
    talker["text_config"]["vocab_size"] = codes + 1024
    talker["speaker_id"] = {"ethan": codes + 10, "chelsie": codes + 11}
    return raw | {"talker_config": talker | {"code_predictor_config": predictor}, "code2wav_config": CODE2WAV}


@pytest.fixture(scope="module")
def tensors():
    return random_parameters(all_parameters(ModelConfig.from_hf(config())))


@pytest.fixture(scope="module")
def reference(tensors):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

    renamed = {}
    for name, value in tensors.items():
        if name.startswith("thinker.") and not name.startswith("thinker.lm_head"):
            rest = name.removeprefix("thinker.")
            name = "thinker.model." + (f"language_{rest}" if rest.startswith("model.") else rest)
        renamed[name] = value
    raw = configs.Qwen3OmniMoeConfig(**copy.deepcopy(config()))
    module = load_reference(models.Qwen3OmniMoeForConditionalGeneration(raw), renamed, "")
    # Corrected: with pictures and sound transformers 5.23 looks here for what only the thinker's config has.
    module.talker.config.audio_config = SimpleNamespace(n_window=50)
    return module


@pytest.fixture(scope="module")
def model(tensors, tmp_path_factory):
    parsed, backend = ModelConfig.from_hf(config()), select_backend("reference", "cpu", "f32")
    parameters = placed_parameters(all_parameters(parsed), tensors, backend)
    thinker = build_text_model(parsed, parameters, lambda _: backend)
    speech = parsed.omni.speech
    talker = Talker(speech.talker, parameters, backend)
    voice = SpeechStack(
        talker=talker,
        code_predictor=CodePredictor(speech.talker, parameters, backend),
        code2wav=Code2Wav(speech.code2wav, parameters, backend),
        prompts=TalkerPromptBuilder(parsed.omni, talker, thinker.decoder.embed_tokens),
        kv_dtype="f32",
    )
    return thinker, voice, MediaReader(thinker, tmp_path_factory.mktemp("omni"))


def turn(role, *content):
    """A turn as the chat template writes it, as lengths of text and media."""
    return [("ids", [IM_START, role, NEWLINE]), *content, ("ids", [IM_END, NEWLINE])]


CONVERSATIONS = {
    "text": [*turn(USER, 6)],
    "system and two turns": [*turn(SYSTEM, 4), *turn(USER, 3), *turn(ASSISTANT, 5), *turn(USER, 4)],
    "sound": [*turn(USER, sound(1.4), 3)],
    "picture, then sound": [*turn(USER, picture(64, 96), 2), *turn(ASSISTANT, 3), *turn(USER, sound(2.0), 4)],
}


def rows_of(reader, pieces):
    ids, mix = [], []
    for index, piece in enumerate([*pieces, ("ids", [IM_START, ASSISTANT, NEWLINE])]):
        if isinstance(piece, tuple):
            ids += piece[1]
        else:
            ids += template_ids([piece], seed=index)
            mix += [piece] if isinstance(piece, MediaPart) else []
    return read_media(reader, ids, mix, 4096, {})[0], mix


def answer(model, prompt, **options):
    thinker, voice, _ = model
    text = SamplingParams(temperature=0, max_tokens=TEXT_TOKENS)
    params = SpeechParams(sampling=SamplingParams(temperature=0), max_frames=FRAMES)
    return ask_spoken(thinker, voice, prompt, text, params, ends=(IM_END,), **options)


def folded(events):
    kinds = {Token: [], Completion: [], SpeechChunk: [], SpeechCompletion: []}
    for event in events:
        kinds[type(event)].append(event)
    samples = torch.cat([torch.tensor(chunk.samples) for chunk in kinds[SpeechChunk]] or [torch.empty(0)])
    codes = [frame for chunk in kinds[SpeechChunk] for frame in chunk.codes]
    return [token.id for token in kinds[Token]], codes, samples, kinds[SpeechCompletion]


def assert_text_codes_and_waveform(model, reference, pieces):
    """That they are those of transformers' own generate."""
    _, voice, reader = model
    prompt, mix = rows_of(reader, pieces)
    waves = []
    keep = reference.code2wav.chunked_decode
    reference.code2wav.chunked_decode = lambda codes, **_: waves.append(codes) or torch.zeros(1, 1, 1)
    try:
        sequences, _ = reference.generate(
            **reference_arguments(reader, mix, prompt),
            speaker="Chelsie",
            return_audio=True,
            thinker_max_new_tokens=TEXT_TOKENS,
            thinker_do_sample=False,
            thinker_eos_token_id=IM_END,
            talker_do_sample=False,
            talker_max_new_tokens=FRAMES + 1,
        )
    finally:
        reference.code2wav.chunked_decode = keep
    tokens, codes, samples, (completion,) = folded(answer(model, prompt, speaker="CHELSIE"))
    assert tokens == sequences[0, len(prompt) :].tolist()
    # transformers drops the last token of a text that its limit cut off (spec section 6.2); until it would be spoken
    # the frames are the same.
    same = FRAMES if IM_END in tokens else TEXT_TOKENS - 1
    expected = waves[0][0].T.tolist()
    assert [list(frame) for frame in codes][:same] == expected[:same]
    assert completion.frames == len(codes) == FRAMES
    whole = reference.code2wav(torch.tensor(codes).T[None])[0, 0]
    assert len(samples) == voice.code2wav.config.samples(FRAMES) == len(whole)
    torch.testing.assert_close(samples, whole, rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("pieces", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_text_codes_and_waveform_are_those_of_transformers(model, reference, pieces):
    assert_text_codes_and_waveform(model, reference, pieces)


def test_the_first_sound_comes_before_the_text_has_ended(model):
    prompt, _ = rows_of(model[2], CONVERSATIONS["text"])
    kinds = [type(event) for event in answer(model, prompt)]
    first_sound = kinds.index(SpeechChunk)
    assert kinds[:first_sound].count(Token) <= 2
    assert Token in kinds[first_sound:]
    assert kinds[-1] is SpeechCompletion
    assert kinds.count(Completion) == 1


def test_a_consumer_that_stops_leaves_the_next_answer_unchanged(model):
    prompt, _ = rows_of(model[2], CONVERSATIONS["sound"])
    whole = folded(answer(model, prompt))
    events = answer(model, prompt)
    for event in events:
        if isinstance(event, SpeechChunk):
            break
    events.close()
    again = folded(answer(model, prompt))
    assert again[:2] == whole[:2]
    assert torch.equal(again[2], whole[2])


def test_an_empty_answer_is_silent(model):
    prompt, _ = rows_of(model[2], CONVERSATIONS["text"])
    events = list(ask_spoken(None, model[1], prompt, None, SpeechParams(max_frames=4), text=[]))
    assert [type(event) for event in events] == [SpeechCompletion]
    assert (events[-1].frames, events[-1].finish_reason, events[-1].first_audio_seconds) == (0, "silent", None)


def test_speakers_differ_and_an_unknown_one_is_refused_with_the_known(model):
    prompt, _ = rows_of(model[2], CONVERSATIONS["text"])
    voices = [folded(answer(model, prompt, speaker=name))[1] for name in ("ethan", "chelsie", None)]
    assert voices[0] != voices[1]
    assert voices[2] == voices[0]
    with pytest.raises(InvalidRequest, match="speaker 'bob' does not exist; choose one of ethan, chelsie"):
        answer(model, prompt, speaker="bob")


def test_a_prompt_without_an_assistants_turn_cannot_be_spoken(model):
    with pytest.raises(InvalidRequest, match="opens no turn of the assistant"):
        assistant_header([IM_START, USER, NEWLINE], model[1].prompts.tokens)


def test_an_error_in_the_text_ends_the_speech(model, monkeypatch):
    def failing(self, ids, caches):
        raise RuntimeError("the thinker failed")

    monkeypatch.setattr(Runner, "step", failing)
    prompt, _ = rows_of(model[2], CONVERSATIONS["text"])
    with pytest.raises(RuntimeError, match="the thinker failed"):
        list(answer(model, prompt))
