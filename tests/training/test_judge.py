"""What the judge makes of what it heard; Whisper itself is not needed here."""

import json

import numpy as np

from training import judge
from training.judge import Clip


def _clip(text, slot="", domain="sum"):
    return Clip("x", np.zeros(100, np.float32), 24000, text, slot, domain)


def test_letters_are_counted_apart_and_slots_found(monkeypatch, tmp_path):
    heard = iter(["1 plus 1 is 2.", "Cat is spelled C, A, D.", "rome"])
    monkeypatch.setattr(judge, "transcript", lambda *_: next(heard))
    clips = [
        _clip("One plus one is two.", "two"),
        _clip("Cat is spelled C, A, T.", "C, A, T", "spell"),
        _clip("Paris.", "Paris", "capital"),
    ]
    report = tmp_path / "report.jsonl"
    with report.open("w", encoding="utf-8") as file:
        result = judge.judge(iter(clips), file)
    assert result == {
        "clips": 3,
        "words": 12,
        "clips_right": 1,
        "wer_all": 0.1667,
        "wer_words": 0.1667,
        "wer_letters": 0.1667,
        "slots": 3,
        "slots_right": 1,
    }
    assert judge.recount(report) == result
    assert [json.loads(line)["errors"] for line in report.read_text(encoding="utf-8").splitlines()] == [0, 1, 1]


def test_a_set_of_questions_has_no_slot_to_hear(tmp_path):
    np.zeros(100, "<i2").tofile(tmp_path / "sound.i16")
    (tmp_path / "set.json").write_text('{"rate": 16000}', encoding="utf-8")
    entry = {"text": "One plus one?", "start": 0, "samples": 100, "slot": "two", "domain": "sum", "voice": "lark"}
    for about, slot in (({}, "two"), ({"answer": "Two."}, "")):
        (tmp_path / "index.jsonl").write_text(json.dumps(entry | about) + "\n", encoding="utf-8")
        assert next(judge.clips_of_set(tmp_path, 1)).slot == slot


def test_voices_are_counted_apart():
    verdict = judge.Verdict()
    for voice, heard in (("a", "one two"), ("b", "one"), ("b", "one two")):
        verdict.add("One two.", heard, "", "", voice)
    assert verdict.summary()["wer_by_voice"] == {"a": 0.0, "b": 0.25}
