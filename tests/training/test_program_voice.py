"""Voices of programs, with programs that only write down how they were called and give a tone."""

import json
import stat
import wave

import numpy as np
import pytest

from training.voices.voice import open_voice

_PROGRAM = """#!/usr/bin/env python3
import json, os, re, shutil, sys
here = os.path.dirname(os.path.abspath(__file__))
call = {{"arguments": sys.argv[1:], "library_path": os.environ["LD_LIBRARY_PATH"]}}
script = sys.argv[-1] if sys.argv[-1].endswith(".scm") else None
if script:
    call["script"] = open(script).read()
if "-ps" in sys.argv:  # of flite: a phoneme a letter
    print("pau", *sys.argv[sys.argv.index("-t") + 1].strip("."), "pau")
    sys.exit()
if "-psdur" in sys.argv:
    print("pau:0.1 c:0.2 a:0.4 t:0.5 pau:0.7 a:0.8 t:0.9 pau:1.0")
json.dump(call, open(here + "/call.json", "w"))
found = re.search(r'"([^"]*[.]wav)"', call.get("script", ""))
sound = found[1] if found else next(one for one in sys.argv if one.endswith(".wav"))
if {works}:
    shutil.copy(here + "/tone.wav", sound)
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    (folder / "bin").mkdir(parents=True)
    with wave.open(str(folder / "bin" / "tone.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes(np.full(800, 16384, "<i2").tobytes())
    _write(folder, works=True)
    monkeypatch.setenv("LLUDA_PROGRAMS", str(folder))
    open_voice.cache_clear()
    return folder


def _write(folder, works):
    for name in ("flite", "festival", "pico2wave", "espeak-ng"):
        path = folder / "bin" / name
        path.write_text(_PROGRAM.format(works=works), encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _call(folder):
    return json.loads((folder / "bin" / "call.json").read_text(encoding="utf-8"))


def test_flite_is_given_its_voice_and_hears_the_letter_a_as_it_sounds(programs):
    spoken = open_voice("flite-rms")("Cat is spelled C, A, T. A cat.", 0)
    arguments = _call(programs)["arguments"]
    assert arguments[:4] == ["-voice", "rms", "-t", "Cat is spelled C, ay, T. A cat."]
    assert _call(programs)["library_path"] == str(programs / "lib")
    assert spoken.rate == 16000
    np.testing.assert_array_equal(spoken.samples, np.full(800, 0.5, np.float32))


def test_flite_tells_when_words_begin_at_its_own_speed(programs):
    assert open_voice("flite-rms")("Cat at.", 0).starts == (0.1, 0.7)
    assert not open_voice("flite-rms")("Cat.", 0).starts  # its phonemes are not those of the words alone
    assert not open_voice("flite-rms@1.25")("Cat at.", 0).starts
    assert "duration_stretch=0.800" in _call(programs)["arguments"]


def test_pico_is_given_accent_speed_and_pitch(programs):
    open_voice("pico-GB-90-110")("Say A.", 0)
    arguments = _call(programs)["arguments"]
    assert arguments[:2] == ["-l", "en-GB"]
    assert arguments[-1] == '<speed level="90"><pitch level="110">Say ay.</pitch></speed>'


def test_espeak_is_given_variant_speed_and_pitch(programs):
    open_voice("espeak-en-gb-x-rp+m3-150-45")("Hello.", 0)
    arguments = _call(programs)["arguments"]
    assert arguments[:7] == [f"--path={programs}", "-v", "en-gb-x-rp+m3", "-s", "150", "-p", "45"]
    assert arguments[-1] == "Hello."


def test_festival_is_given_a_script_that_no_quote_can_break_out_of(programs):
    open_voice("festival-slt")('Say "hi") (quit', 0)
    script = _call(programs)["script"]
    assert script.startswith("(voice_cmu_us_slt_arctic_hts)\n(Parameter.set 'Duration_Stretch 1.000)")
    assert '(Utterance Text "Say  hi ) (quit")' in script
    assert _call(programs)["arguments"][:2] == ["--libdir", str(programs / "festival")]


def test_a_program_that_makes_no_sound_is_an_error_with_its_name(programs):
    _write(programs, works=False)
    with pytest.raises(RuntimeError, match="flite"):
        open_voice("flite-slt")("Hello.", 0)
