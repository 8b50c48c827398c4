"""Sets of speech: the bytes of a set follow from its arguments, and a set that was cut off goes on where it stopped."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from training import make_sound
from training.domains import STUDIED
from training.make_sound import main
from training.script import (
    ESPEAK_SEEN,
    ESPEAK_UNSEEN,
    FAMILIES,
    SEEN_BLENDS,
    SLOW,
    UNSEEN_BLENDS,
    hearing_lines,
    pace,
    speaking_lines,
)
from training.voices.blends import blend_weights
from training.voices.tone_voice import tone
from training.voices.voice import open_voice
from training.world import split_of


def _make(folder, clips, jobs=1):
    assert main(["speak", "--voice", "tone", "--clips", str(clips), "--jobs", str(jobs), "--out", str(folder)]) == 0
    lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
    return np.fromfile(folder / "sound.i16", "<i2"), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _make(tmp_path_factory.mktemp("whole"), 6)


def test_the_index_covers_the_sound(whole):
    sound, index = whole
    ends = [entry["start"] + entry["samples"] for entry in index]
    assert [entry["start"] for entry in index] == [0, *ends[:-1]]
    assert ends[-1] == len(sound)
    assert {entry["split"] for entry in index} == {"train"}


def test_a_clip_has_silence_around_and_its_loudness_inside(whole):
    sound, index = whole
    clip = sound[: index[0]["samples"]].astype(np.float64) / 32768
    assert not clip[:1800].any()
    assert not clip[-5700:].any()
    assert 0.01 < np.sqrt(np.square(clip).mean()) < 0.3


def test_words_begin_where_the_index_says(whole):
    sound, index = whole
    entry = next(entry for entry in index if len(entry["text"].split()) > 2)
    clip = sound[entry["start"] : entry["start"] + entry["samples"]].astype(np.float64)
    assert len(entry["starts"]) == len(entry["text"].split())
    for start in entry["starts"][1:]:
        # A tone voice is silent in the space before a word, and loud from the word's first letter on.
        place = round(start * 24000)
        assert (
            np.square(clip[place + 100 : place + 700]).mean() > 100 * np.square(clip[place - 700 : place - 100]).mean()
        )


def test_a_set_cut_off_within_a_clip_goes_on(whole, tmp_path):
    sound, index = _make(tmp_path, 3)
    with (tmp_path / "sound.i16").open("ab") as file:
        file.write(b"\1\2" * 777)
    with (tmp_path / "index.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "half a li')
    sound, index = _make(tmp_path, 6)
    assert index == whole[1]
    assert np.array_equal(sound, whole[0])


def test_a_line_of_which_no_sound_came_is_left_out_and_not_said_again(monkeypatch, tmp_path, capsys):
    def broken_at_three(text, seed):
        spoken = tone(text, seed)
        return spoken._replace(samples=spoken.samples * np.inf) if seed == 3 else spoken

    monkeypatch.setattr(make_sound, "open_voice", lambda _: broken_at_three)
    _, index = _make(tmp_path, 4)
    assert [entry["line"] for entry in index] == [0, 1, 2]
    assert "left out: tone" in capsys.readouterr().err
    _, index = _make(tmp_path, 6)
    assert [entry["line"] for entry in index] == [0, 1, 2, 4, 5]


def test_two_processes_write_the_same_set(whole, tmp_path):
    sound, index = _make(tmp_path, 6, jobs=2)
    assert index == whole[1]
    assert np.array_equal(sound, whole[0])


def test_processes_end_when_the_hours_are_reached(tmp_path):
    # The script has no end: work that was handed out and is not wanted any more must not keep the command.
    arguments = ["speak", "--voice", "tone", "--hours", "0.002", "--jobs", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    seconds = (tmp_path / "sound.i16").stat().st_size / 2 / 24000
    assert 7.2 <= seconds < 15


def test_every_voice_speaks_the_same_texts():
    lark, kumo = (
        [line.text for line in itertools.islice(speaking_lines(voice, "train"), 200)] for voice in ("lark", "kumo")
    )
    assert lark == kumo


def test_what_nothing_helps_to_guess_is_said_slowly_by_every_speaker():
    assert pace("Arm is spelled A, R, M.") == pace("Pig.") == pace("Forty two.") == SLOW
    assert pace("A lamb is a young sheep.") == pace("I have two cats.") == ""
    voices = {line.text: line.voice for line in itertools.islice(speaking_lines("rook", "train"), 300)}
    assert {voice for text, voice in voices.items() if len(text.split()) == 1} == {f"rook{SLOW}"}
    assert "rook" in voices.values()


def test_an_answer_that_is_given_all_the_time_is_spoken_often_but_not_without_end():
    lines = Counter(line.text for line in itertools.islice(speaking_lines("lark", "train"), 8000))
    assert lines["Sorry, I did not understand that."] == max(lines.values()) == 60
    tested = Counter(line.text for line in itertools.islice(speaking_lines("lark", "test"), 200))
    assert max(tested.values()) <= 3


def test_answers_of_every_domain_are_spoken_often():
    lines = itertools.islice(speaking_lines("lark", "train"), 4000)
    found = Counter(line.about["domain"] for line in lines)
    assert {"name", "capital", "spell", "unspell", "talk", "letter"} <= {name for name in found if found[name] > 40}


def test_hearing_asks_more_of_what_was_missed_most_but_in_tests():
    def share(split):
        lines = [line.about["domain"] for line in itertools.islice(hearing_lines("lark", split), 3000)]
        return sum(domain in STUDIED for domain in lines) / len(lines)

    assert share("train") > 1.3 * share("test")


def test_parts_have_lines_of_their_own():
    for lines in (
        lambda part: speaking_lines("lark", "train", part),
        lambda part: hearing_lines("lark", "train", part),
    ):
        first, second = ([line.text for line in itertools.islice(lines(part), 200)] for part in (0, 1))
        assert len(set(first) & set(second)) < 60


def test_answers_are_read_aloud_to_be_written_down():
    lines = list(itertools.islice(hearing_lines("lark", "train"), 600))
    answers = {line.about["answer"] for line in lines if line.about["domain"] != "transcript"}
    read = [line for line in lines if line.about["domain"] == "transcript" and line.text in answers]
    assert read
    assert all(line.about["instruction"] and line.about["answer"] == line.text for line in read)


def test_no_text_to_test_is_spoken_to_train():
    trained = {line.text for line in itertools.islice(speaking_lines("lark", "train"), 5000)}
    tested = [line.text for line in itertools.islice(speaking_lines("lark", "test"), 200)]
    assert not trained & set(tested)


def test_held_out_sentences_are_not_spoken_to_train():
    lines = [
        line for line in itertools.islice(speaking_lines("lark", "train"), 2000) if line.about["domain"] == "sentence"
    ]
    assert len(lines) > 200
    plain = [line.text[0].lower() + line.text[1:-1] for line in lines]
    # Sentences that begin with a name or "I" keep their capital: their key has it.
    splits = {
        split_of(f"repeat {text}")
        for text, line in zip(plain, lines, strict=True)
        if line.text.split()[0] in ("My", "The")
    }
    assert splits == {"train"}


def test_a_hearing_line_has_its_answer_and_the_turns_before():
    lines = list(itertools.islice(hearing_lines("flite", "train"), 400))
    later = [line for line in lines if line.about["before"]]
    assert later
    for line in later:
        place = lines.index(line)
        assert lines[place - 1].about["conversation"] == line.about["conversation"]
        assert line.about["before"][-1] == (lines[place - 1].text, lines[place - 1].about["answer"])
    assert {line.about["instruction"] != "" for line in lines if line.about["domain"] == "transcript"} == {True}


def test_held_out_voices_are_in_no_training_family():
    assert not set(ESPEAK_SEEN) & set(ESPEAK_UNSEEN)
    assert not set(SEEN_BLENDS) & set(UNSEEN_BLENDS)
    trained = {
        line.voice.partition("@")[0]
        for family in ("flite", "festival")
        for line in itertools.islice(hearing_lines(family, "train"), 200)
    }
    assert trained == {"flite-slt", "flite-rms", "flite-kal16", "festival-slt", "festival-kal", "festival-ked"}
    assert {"awb", "joe"} <= set(FAMILIES)


def test_blends_stay_near_the_styles_they_are_made_of():
    weights = [blend_weights(f"blend-{number}") for number in (*SEEN_BLENDS, *UNSEEN_BLENDS)]
    assert all(abs(one.sum() - 1) < 1e-9 and one.min() >= -0.2 for one in weights)
    assert any(one.min() < 0 for one in weights)
    assert blend_weights("kumo").tolist() == [0, 0, 0, 0, 1]


def test_an_unknown_voice_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'robot'.*lark"):
        open_voice("robot")
