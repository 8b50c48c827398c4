"""The voice page in Firefox, its microphone a tone, with a server of a script."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.clients.firefox import NAMES, firefox_page, silent_loudspeaker
from tests.clients.scripted_realtime import RATE, TEXT, Script, scripted_server

WATCHDOG_SECONDS = 1.5
"""Ten times what it may take to stop."""

SEEN = """({
  reports: window.reports, wide: document.documentElement.scrollWidth > innerWidth,
  error: document.querySelector("#error").hidden ? "" : document.querySelector("#error span").textContent,
  cut: document.querySelector("#log .assistant.cut p").textContent,
  heard: document.querySelector("#log .assistant.cut p span").textContent,
})"""


def test_a_question_spoken_into_the_answer(tmp_path: Path) -> None:
    firefox = next((found for found in map(shutil.which, NAMES) if found), None)
    if firefox is None or shutil.which("pulseaudio") is None:
        pytest.skip("there is no firefox or no pulseaudio here: apt-get install firefox-esr pulseaudio")
    script = Script()
    with (
        scripted_server(script) as url,
        silent_loudspeaker(tmp_path) as where,
        firefox_page(firefox, tmp_path, where) as page,
    ):
        page.open(url, 360, 740)
        page.evaluate(
            "(window.reports = [],"
            "document.addEventListener('securitypolicyviolation', (one) => window.reports.push(one.violatedDirective)))"
        )
        page.wait("document.querySelector('#tries button') && document.querySelector('#name').textContent")
        page.click("#orb")
        page.wait_state("hearing")
        page.click("#mute")
        page.wait_state("speaking")
        page.wait("document.querySelector('#log .assistant p span').textContent")
        page.click("#mute")
        page.wait("document.querySelector('#log .assistant.cut')")
        seen = page.evaluate(SEEN)
        page.click("#end")
        assert page.console == []
    assert seen["reports"] == [] and seen["error"] == "" and not seen["wide"]
    assert seen["cut"].strip() == TEXT and 0 < len(seen["heard"]) < len(TEXT)
    assert script.types()[:2] == ["session.update", "conversation.item.truncate"]
    appended = script.of("input_audio_buffer.append")
    seconds = appended[-1]["at"] - appended[0]["at"]
    assert sum(event["audio"] for event in appended) / RATE == pytest.approx(seconds, rel=0.1), "as it is made"
    started = [event for event in script.sent if event["type"] == "input_audio_buffer.speech_started"]
    (truncate,) = script.of("conversation.item.truncate")
    assert truncate["at"] - started[1]["at"] <= WATCHDOG_SECONDS
    assert 0 < truncate["audio_end_ms"] < 1000 * script.seconds
