from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

import lluda as package
from lluda.api.model import Model
from lluda.engine.runner import Runner
from tests.cli.conftest import interrupt, write_model
from tests.cli.omni import write_speaking_omni

GREEDY = ("-t", 0, "-n", 6)


@pytest.fixture(scope="module")
def loaded(model):
    return package.load(model)


@pytest.fixture
def conversations(monkeypatch):
    """Every conversation that the command begins, in order."""
    begun = []
    real = Model.conversation

    def conversation(self, system=None):
        begun.append(real(self, system))
        return begun[-1]

    monkeypatch.setattr(Model, "conversation", conversation)
    return begun


def roles(conversation):
    return [message["role"] for message in conversation.messages]


def contents(conversation):
    return [message["content"] for message in conversation.messages]


def test_turns_over_a_pipe_are_those_of_a_conversation(lluda, model, loaded):
    printed = lluda("chat", "-m", model, *GREEDY, "--system", "be", stdin=b"hello\nand you?")
    talk = loaded.conversation("be")
    answers = [list(talk.ask(text, temperature=0, max_tokens=6))[-1].text for text in ("hello", "and you?")]
    assert printed.code == 0
    assert printed.out == "".join(answer + "\n" for answer in answers)
    assert printed.lines[1] == "lluda: Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands"
    assert [line.split(" tokens")[0] for line in printed.lines[2:]] == [
        f"lluda: prompt {len(loaded.chat_prompt(talk.messages[:2]))}",
        f"lluda: prompt {len(loaded.chat_prompt(talk.messages[:4]))}",
    ]


def test_reset_and_system_begin_anew(lluda, model, conversations):
    lines = b"one\n/system be brief\ntwo\n/reset\nthree\n/system\nfour\n"
    printed = lluda("chat", "-m", model, *GREEDY, "--system", "first", stdin=lines)
    assert printed.code == 0
    assert [roles(each) for each in conversations] == [["system", "user", "assistant"]] * 3 + [["user", "assistant"]]
    first = [contents(each)[:2] for each in conversations[:3]]
    assert first == [["first", "one"], ["be brief", "two"], ["be brief", "three"]]
    assert contents(conversations[3])[0] == "four"


@pytest.mark.parametrize("command", ["/exit", "/quit", "/exit  "])
def test_exit_ends_without_reading_on(lluda, model, conversations, command):
    printed = lluda("chat", "-m", model, *GREEDY, stdin=f"{command}\nnever\n".encode())
    assert (printed.code, printed.out) == (0, "")
    assert contents(conversations[0]) == []


def test_commands_are_explained_and_a_space_makes_text_of_them(lluda, model, conversations):
    printed = lluda("chat", "-m", model, *GREEDY, stdin=b"/help\n/rest\n\n   \n /reset\n")
    assert printed.lines[2].startswith("lluda: /audio FILE, /image FILE and /video FILE ")
    assert printed.lines[3].startswith("lluda: /rest is no command: /audio FILE")
    assert len(conversations) == 1
    assert contents(conversations[0])[0] == "/reset"
    assert roles(conversations[0]) == ["user", "assistant"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"word " * 60, "lluda: the prompt has "),
        (b"bad \xff\xfe", "lluda: the line is not valid UTF-8: a bad byte at character 4"),
    ],
    ids=["too long", "not UTF-8"],
)
def test_a_refused_turn_keeps_the_conversation(lluda, model, conversations, line, message):
    options = ("-m", model, *GREEDY, "--max-context", 100)
    with_it = lluda("chat", *options, stdin=b"hi\n" + line + b"\nyou?\n")
    without = lluda("chat", *options, stdin=b"hi\nyou?\n")
    assert with_it.code == 0
    assert with_it.out == without.out
    assert len(without.out) > 2
    assert conversations[0].messages == conversations[1].messages
    assert any(text.startswith(message) for text in with_it.lines)


def test_too_long_says_how_to_go_on(lluda, model):
    printed = lluda("chat", "-m", model, "--max-context", 30, stdin=b"word " * 60)
    assert printed.lines[-1].endswith("but the context holds 30; shorten it; /reset clears the conversation")


@pytest.mark.parametrize("after", [0, 1, 4])
def test_ctrl_c_stops_the_answer_and_keeps_what_came(lluda, model, conversations, monkeypatch, after):
    """0: while the prompt is computed."""
    monkeypatch.setattr(Runner, "prefill_rows", _interrupted(Runner.prefill_rows, 1 if after == 0 else None))
    monkeypatch.setattr(Runner, "step", _interrupted(Runner.step, after or None))
    printed = lluda("chat", "-m", model, "-t", 0, "-n", 8, stdin=b"hello\nand you?\n")
    assert printed.code == 0
    assert "lluda: stopped" in printed.lines
    assert roles(conversations[0]) == ["user", "assistant"] * 2
    stopped, whole = (contents(conversations[0])[index] for index in (1, 3))
    assert printed.out == f"{stopped}\n{whole}\n"
    assert (stopped == "") == (after == 0)
    fresh = Model.conversation(conversations[0].model)
    fresh.messages = conversations[0].messages[:2]
    assert list(fresh.ask("and you?", temperature=0, max_tokens=8))[-1].text == whole


def _interrupted(real, call):
    """``real``, with Ctrl-C at its n-th call."""
    calls = []

    def method(self, *arguments):
        calls.append(arguments)
        if len(calls) == call:
            interrupt()
        return real(self, *arguments)

    return method


def test_ctrl_c_between_turns_ends_a_pipe(lluda, model, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("lluda.cli.verbs.chat._read_line", interrupted)
    printed = lluda("chat", "-m", model)
    assert printed.code == 130
    assert printed.lines[-1] == "lluda chat: stopped"


def test_a_failure_inside_an_answer_is_told_and_the_chat_goes_on(lluda, model, monkeypatch):
    real = Runner.prefill_rows
    calls = []

    def prefill(self, *arguments):
        calls.append(arguments)
        logits = real(self, *arguments)
        return logits * float("nan") if len(calls) == 1 and logits is not None else logits

    monkeypatch.setattr(Runner, "prefill_rows", prefill)
    printed = lluda("chat", "-m", model, *GREEDY, stdin=b"hello\nhello\n")
    assert printed.code == 0
    assert "lluda: the model's logits hold NaN" in printed.err
    assert printed.lines[-1].startswith("lluda: prompt ")


def test_a_model_without_a_template_cannot_chat(lluda, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "plain")
    (folder / "tokenizer_config.json").write_text(json.dumps({}))
    printed = lluda("chat", "-m", folder, stdin=b"hello\n")
    assert (printed.code, printed.out) == (2, "")
    assert printed.lines[-1].startswith(f"lluda chat: {folder}: the checkpoint has no chat template; use generate")


def test_bad_options_are_refused_before_loading(lluda, model, monkeypatch):
    monkeypatch.setattr("lluda.load", lambda *_, **__: pytest.fail("loaded the model"), raising=False)
    printed = lluda("chat", "-m", model, "-t", -1, stdin=b"hello\n")
    assert (printed.code, len(printed.lines)) == (2, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_in_a_terminal(model):
    """The mark, an answer stopped by Ctrl-C, a line dropped by Ctrl-C, and Ctrl-D, as a person meets them."""
    terminal = _Terminal([sys.executable, "-m", "lluda.cli.main", "chat", "-m", str(model), "--ignore-eos"])
    try:
        terminal.wait_for(r"/help lists the commands\s+> $")
        terminal.type("hello\r")
        terminal.wait_for(r"hello\s+\S")
        terminal.type("\x03")
        terminal.wait_for(r"lluda: stopped\s+> $")
        terminal.type("half a line")
        terminal.wait_for("half a line$")
        time.sleep(0.5)
        terminal.type("\x03")
        terminal.wait_for(r"Ctrl-C stops an answer, Ctrl-D ends, \S+ lists the commands\s+> $")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
        assert "Traceback" not in terminal.screen
    finally:
        terminal.process.kill()


class _Terminal:
    """A command with a pseudo-terminal as its controlling terminal."""

    def __init__(self, command):
        import pty

        self._ours, theirs = pty.openpty()
        self.screen = ""
        self._seen = 0
        set_up = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", set_up, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
        )
        os.close(theirs)

    def type(self, text):
        os.write(self._ours, text.encode())

    def wait_for(self, pattern):
        """Read until what came since the last call matches."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.screen[self._seen :]):
            assert time.monotonic() < deadline, self.screen
            if select.select([self._ours], [], [], 0.1)[0]:
                self.screen += os.read(self._ours, 65536).decode(errors="replace")
        self._seen = len(self.screen)


def test_answers_are_spoken_to_numbered_files(lluda, tmp_path):
    speaking = write_speaking_omni(tmp_path / "tiny")
    arguments = ("-m", speaking, "-t", 0, "-n", 3, "--speech-temperature", 0, "--max-frames", 3)
    printed = lluda(
        "chat", *arguments, "--speak", tmp_path / "said", stdin=b"hello\n/speaker bob\n/speaker chelsie\nhello\n"
    )
    assert printed.code == 0, printed.err
    assert "speaker 'bob' does not exist" in printed.err
    files = sorted((tmp_path / "said").iterdir())
    assert [path.name for path in files] == ["answer-001.wav", "answer-002.wav"]
    soundfile = pytest.importorskip("soundfile")
    first, second = (soundfile.read(path)[0] for path in files)
    assert len(first) and len(second)
    assert first.tolist() != second.tolist()


def test_a_model_that_does_not_speak_says_so_before_the_chat(lluda, model, tmp_path):
    printed = lluda("chat", "-m", model, "--speak", tmp_path / "said", stdin=b"hello\n")
    assert printed.code == 2
    assert "has no talker" in printed.err
    assert not (tmp_path / "said").exists()


def test_a_template_that_the_tokenizer_does_not_fit_ends_the_chat_before_a_line_is_typed(lluda, tmp_path):
    folder = write_model(tmp_path / "m")
    template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    printed = lluda("chat", "-m", folder, stdin=b"hello\n")
    assert printed.code == 2
    assert "the chat template writes <|turn|>" in printed.err


def test_an_answer_without_a_known_end_is_warned_of(lluda, tmp_path):
    folder = write_model(tmp_path / "m", {"eos_token_id": None})
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    printed = lluda("generate", "-m", folder, *GREEDY, "hello")
    assert printed.code == 0
    assert "warning: no token is known to end an answer" in printed.err
