"""Every stage for two steps on tones, then the export, loaded and spoken by lluda."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lluda
from training import code_set, expected_codes, export, train_codec, train_talker, train_text
from training.config import GROUPS, read_config
from training.prompts import LEARNT, PromptWriter
from training.sound_set import Clip, read_sets
from training.stage import Limits, Stage
from training.twin.talker import CodePredictor
from training.world import Conversation, Turn

SMALL = ["--device", "cpu", "--eager", "--steps", "2"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.fixture
def tones(tmp_path):
    """A set of 24 tones of a second to two and a half, a quarter of them held out."""
    folder, parts, lines = tmp_path / "tones", [], []
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(24):
        count = int(generator.integers(24000, 60000))
        tone = np.sin(2 * np.pi * generator.integers(100, 900) * np.arange(count) / 24000)
        entry = {
            "text": "It is blue." if index % 4 else "It is red.",
            "voice": ("lark", "flite-rms")[index % 2],
            "samples": count,
        }
        entry |= {"start": sum(map(len, parts)), "split": "test" if index % 4 == 0 else "train"}
        if index % 2 == 0:  # the voice whose timing is known
            entry |= {"starts": [0.1, 0.4, 0.5], "sounds": [["i", 0.1], ["t", 0.2], ["b", 0.5]]}
        parts.append((tone * 6000).astype(np.int16))
        lines.append(json.dumps(entry))
    np.concatenate(parts).tofile(folder / "sound.i16")
    (folder / "index.jsonl").write_text("\n".join(lines))
    (folder / "set.json").write_text('{"rate": 24000}')
    return folder


def test_all_stages_and_their_export(tones, tmp_path, monkeypatch):
    out, codes, model = tmp_path / "stages", tmp_path / "codes", tmp_path / "model"
    codec = ("--sound", tones, "--batch", 2, "--frames", 4, *SMALL)
    run(monkeypatch, train_codec, "a", "--out", tmp_path / "earlier", *codec)
    run(monkeypatch, train_codec, "a", "--out", out, "--begin", tmp_path / "earlier", *codec)
    run(monkeypatch, train_codec, "b", "--out", out, "--contested", 0.5, *codec)
    assert "doubt" in json.loads((out / "codec_b.json").read_text())["curve"][-1]
    run(monkeypatch, code_set, "--sound", tones, "--codec", out, "--out", codes, "--device", "cpu")
    found = code_set.CodeSet.load(codes)
    assert found.codes.shape == (GROUPS, sum(clip.frames for clip in found.clips))
    typed = ("--conversations", 60, "--jobs", 1, "--rows", 640, "--scored", 2)
    run(monkeypatch, train_text, "--out", out, *typed, *SMALL)
    run(
        monkeypatch, train_talker, "--codes", codes, "--weights", out, "--out", out, "--frames", 64, "--jobs", 1, *SMALL
    )
    expected = tmp_path / "expected"
    talker = ("--weights", out, "--talker", out / "talker.talker.safetensors", "--device", "cpu")
    run(monkeypatch, expected_codes, "--codes", codes, *talker, "--out", expected)
    assert not torch.equal(code_set.CodeSet.load(expected).codes, found.codes)
    (out / "codec_b.ckpt").unlink()
    run(monkeypatch, train_codec, "b", "--out", out, "--expected", expected, *codec)
    weights = {"thinker": "text.thinker", "talker": "talker.talker", "code2wav": "codec_b.code2wav"}
    files = {component: out / f"{name}.safetensors" for component, name in weights.items()}
    export.export(export.tensors_of(files), model)
    stored = load_file(model / export.WEIGHTS)
    for component, path in files.items():
        for name, value in load_file(path).items():
            assert torch.equal(stored[f"{component}.{name}"], value.bfloat16()), name
    voice = lluda.load_speech(model)
    params = lluda.SpeechParams(max_frames=5)
    samples = np.concatenate(
        [event.samples for event in voice.speak("It is blue.", params) if isinstance(event, lluda.SpeechChunk)]
    )
    assert 0 < len(samples) <= read_config()[1].omni.speech.code2wav.samples(5)


def test_table_of_stage_a_gives_the_quantisers_sum(tmp_path):
    """Code2wav's mean over the exported table is the sum that the codec was trained with."""
    config = train_codec.speech_config().code2wav
    quantiser = train_codec.Quantiser(config.transformer.hidden_size, config.num_quantizers, config.codebook_size)
    vocoder = train_codec.Code2Wav(config)
    vocoder.code_embedding.weight.data.copy_(quantiser.table())
    total, _, codes, _ = quantiser.eval()(torch.randn(2, 9, config.transformer.hidden_size))
    torch.testing.assert_close(vocoder.latents(codes), total, rtol=1e-5, atol=1e-5)


def test_a_stage_goes_on_where_it_stopped(tmp_path):
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)

    def steps(run_seconds):
        stage = Stage("try", Limits(tmp_path, 1e9, 5, run_seconds, "cpu"), {"layer": layer}, [optimizer])
        for _ in stage:
            layer(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            if stage.step == 1:
                break
        stage.save()
        return stage

    first = steps(1e9)
    again = steps(0.0)
    assert (first.step, again.step) == (1, 1)
    saved = load_file(tmp_path / "try.layer.safetensors")
    assert torch.equal(saved["weight"], layer.weight)


def test_a_run_ends_the_one_it_succeeds_and_goes_on(tmp_path):
    """The first process would go on for an hour."""
    code = (
        "import sys, time, pathlib; import torch; from training.stage import Limits, Stage\n"
        "stage = Stage('try', Limits(pathlib.Path(sys.argv[1]), 3600, device='cpu'), {}, [])\n"
        "for _ in stage: print(flush=True); time.sleep(0.01)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        stage = Stage("try", Limits(tmp_path, 1, device="cpu", until=time.time() + 1, succeeds=first.pid), {}, [])
        assert first.wait(60) == 0
    begun = stage.step
    assert begun > 0
    shares = list(zip(stage, range(2), strict=False))
    assert shares[0][0] < 1
    assert stage.step > begun


def test_sets_of_codes_are_one_with_the_held_out_clips_of_the_first(tmp_path):
    clips = [Clip("a", "lark", "train", 0, 2), Clip("b", "lark", "test", 2, 1)]
    for number in range(2):
        code_set.CodeSet(torch.full((GROUPS, 3), number, dtype=torch.uint8), clips).save(tmp_path / str(number))
    found = code_set.CodeSet.load(tmp_path / "0", tmp_path / "1")
    assert [(clip.split, clip.first) for clip in found.clips] == [("train", 0), ("test", 2), ("train", 3)]
    assert found.codes[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_expected_codes_of_other_clips_are_refused(tones, tmp_path):
    sound = read_sets([tones])
    code_set.CodeSet(torch.zeros(GROUPS, 3, dtype=torch.uint8), sound.clips[1:]).save(tmp_path)
    with pytest.raises(ValueError, match="same sets in the same order"):
        train_codec.codes_expected(tmp_path, sound)


def test_the_likeliest_codes_follow_the_ones_chosen():
    torch.manual_seed(0)
    predictor = CodePredictor(read_config()[1].omni.speech.talker).eval()
    hidden, first = torch.randn(2, 3, 128)
    with torch.no_grad():
        found = predictor.likeliest(hidden, first)
        again = predictor(hidden, first, predictor.tables(found[:, :-1])).argmax(-1)
    assert torch.equal(found, again)


class AsWritten:
    """The chance by which a question is typed as it is written."""

    def random(self):
        return 0.0


def test_typed_prompts_are_the_engines():
    """Ids of a conversation with a system prompt and two turns; the reference is the released chat template."""
    from lluda.inputs.chat.chat_template import ChatTemplate
    from lluda.inputs.chat.prompt import build_chat_prompt
    from training.config import TOKENIZER

    turns = (Turn("What is one plus two?", "It is three.", "sum", "three"), Turn("And a cat?", "A cat.", "x", "cat"))
    writer = PromptWriter()
    found = writer.conversation(Conversation(turns, "Be brief."), AsWritten())
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in turns:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    template = ChatTemplate.from_folder(TOKENIZER)
    # The answer to learn stands where the engine lets the model go on.
    before = build_chat_prompt(writer.tokenizer, template, messages[:-1])
    assert [one % LEARNT for one in found] == [*before, *writer.plain("A cat."), writer.end]
    learnt = writer.tokenizer.decode([one % LEARNT for one in found if one >= LEARNT], skip_special=False)
    assert learnt == "It is three.<|im_end|>A cat.<|im_end|>"
    asked = build_chat_prompt(writer.tokenizer, template, messages[:2])
    assert writer.question(turns[0].question, "Be brief.") == asked


def test_config_is_the_released_one_with_small_numbers(released_config):
    from training.config import TOKENIZER, tiny_config

    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    released = released_config("Qwen3-Omni-30B-A3B-Instruct")
    assert tiny_config(released, vocabulary) == read_config()[0]
