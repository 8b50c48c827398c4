"""The evaluation runs through lluda on a checkpoint with random weights; what it counts is checked on known answers."""

import json

import numpy as np
import pytest
import soundfile
import torch

from training import evaluate
from training.code_set import CodeSet
from training.judge import clips_of_folder
from training.sound_set import Clip
from training.speech_folder import SpeechFolder, clips_of


def _result(capsys, *arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_spoken_texts_are_ready_for_the_judge(random_checkpoint, spoken_questions, tmp_path, capsys):
    result = _result(capsys, "speak", random_checkpoint, "--set", spoken_questions, "--count", 1, "--out", tmp_path)
    assert result["clips"] == 1
    clip = next(clips_of_folder(tmp_path, 5))
    assert clip.text == "What is the capital of France?"
    assert clip.rate == 24000
    assert soundfile.info(tmp_path / "0000.wav").frames == len(clip.samples)


def test_spoken_questions_are_answered_in_text_and_speech(random_checkpoint, spoken_questions, tmp_path, capsys):
    report = tmp_path / "report.jsonl"
    result = _result(
        capsys,
        "heard",
        random_checkpoint,
        "--set",
        spoken_questions,
        "--out",
        tmp_path / "spoken",
        "--report",
        report,
        "--noise",
        10,
    )
    assert result["questions"] == 2
    assert result["domains"] == {"capital": "0/2"}
    assert [json.loads(line)["answer"] for line in report.read_text(encoding="utf-8").splitlines()] == ["Paris."] * 2
    assert [clip.slot for clip in clips_of_folder(tmp_path / "spoken", 5)] == ["Paris", "Paris"]


def test_transcripts_and_typed_answers_are_counted(random_checkpoint, spoken_questions, capsys):
    result = _result(capsys, "transcripts", random_checkpoint, "--set", spoken_questions)
    assert (result["clips"], result["words"]) == (2, 9)
    assert _result(capsys, "typed", random_checkpoint, "--count", 2)["questions"] == 2


def test_exact_and_slot_are_counted_apart():
    score = evaluate._Score()
    score.add("sum", "q", "One plus one is two.", "One plus one is two.", "two", None)
    score.add("sum", "q", "One plus one is two.", "Two.", "two", None)
    score.add("capital", "q", "Paris.", "Rome.", "Paris", None)
    assert score.summary() == {
        "questions": 3,
        "exact": 0.3333,
        "slot": 0.6667,
        "domains": {"capital": "0/1", "sum": "1/2"},
    }


def test_noise_is_so_many_decibels_below():
    clip = (0.1 * np.sin(np.arange(16000) / 5)).astype(np.float32)
    noise = evaluate._in_noise(clip, 10, 1) - clip
    assert 10 * np.log10(np.square(clip).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.1)
    assert evaluate._in_noise(clip, None, 1) is clip


def test_what_a_folder_stores_can_be_read(tmp_path):
    folder = SpeechFolder(tmp_path, 24000)
    folder.add(np.zeros(2400, np.float32), "One.", slot="one")
    folder.add(np.zeros(1200, np.float32), "Two.")
    folder.close()
    assert [(clip.text, clip.slot, len(clip.samples)) for clip in clips_of_folder(tmp_path, 9)] == [
        ("One.", "one", 2400),
        ("Two.", "", 1200),
    ]


def test_a_set_is_read_up_to_the_limit(spoken_questions):
    assert [entry["text"] for _, _, entry in clips_of(spoken_questions, 1)] == ["What is the capital of France?"]
    assert [len(clip) for clip, _, _ in clips_of(spoken_questions, 9)] == [8000, 8000]


@pytest.mark.parametrize(("arguments", "missing"), [(["heard", "x"], "--set"), (["speak", "x", "--set", "y"], "--out")])
def test_what_is_missing_is_named(arguments, missing, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(arguments)
    assert f"needs {missing}" in capsys.readouterr().err


def test_copies_are_made_of_held_out_clips_alone(random_checkpoint, tmp_path, capsys):
    codes = torch.randint(256, (8, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    clips = [Clip("Trained.", "lark", "train", 0, 3), Clip("One.", "lark", "test", 3, 3)]
    CodeSet(codes, [*clips, Clip("Other.", "rms", "test", 6, 1)]).save(tmp_path / "codes")
    out = tmp_path / "copies"
    assert _result(capsys, "copies", random_checkpoint, "--codes", tmp_path / "codes", "--out", out)["clips"] == 1
    (clip,) = clips_of_folder(out, 5)
    assert clip.text == "One."
    # Of three frames of 1920 samples the last 555 never come out.
    assert len(clip.samples) == 3 * 1920 - 555
