"""A19: chat templates that are broken or hostile. Each ends in a TemplateError or succeeds, in time; the next works."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from lluda.errors import CorruptFile, TemplateError
from lluda.inputs.chat.chat_template import MAX_OUTPUT, MAX_SECONDS, ChatTemplate
from tests.conftest import watchdog

HI = [{"role": "user", "content": "hi"}]
LOOP = "{% for i in range(100000) %}"

FAILING = {
    "syntax error": ("line one\n{{ 1 + }}", r"in line 2: syntax error"),
    "block not closed": ("a\n{% if x %}", r"in line 2: syntax error: Unexpected end of template"),
    "unknown tag": ("{% frobnicate %}", r"in line 1: syntax error"),
    "unknown filter": ("a\n{{ 1 | frobnicate }}", r"in line 2: syntax error: No filter named 'frobnicate'"),
    "include of a file": ("{% include '/etc/passwd' %}", "no loader"),
    "class attribute": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals of a function": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
    "attr filter": ("{{ ('' | attr('__class__')).__mro__ }}", "unsafe|undefined"),
    "changing the messages": ("{{ messages.append(1) }}", "unsafe"),
    "namespace with a dunder": ("{{ namespace(**{'__html__': 1}) }}", "namespace cannot hold '__html__'"),
    "setting a dunder": ("{% set ns = namespace() %}{% set ns.__html__ = 1 %}", "namespace cannot hold '__html__'"),
    "huge power": ("{{ 9**99999999 }}", "stopped after 2 s"),
    "long string": ("{{ 'x' * 10**9 }}", "memory"),
    "long string at run time": ("{% set x = messages[0].content * 10**9 %}", "memory"),
    "growing list": ("{% set ns = namespace(a=[1]) %}" + LOOP + "{% set ns.a = ns.a + ns.a %}{% endfor %}", "memory"),
    "long output": (LOOP + "{{ 'x' * 1000 }}{% endfor %}", f"longer than {MAX_OUTPUT} characters"),
    "recursive macro": ("{% macro f() %}{{ f() }}{% endmacro %}\n{{ f() }}", "recurses without end"),
    "nested brackets": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "recurses without end"),
    "nested loops": (LOOP + LOOP + "{% endfor %}{% endfor %}", "stopped after 2 s"),
    "huge range": ("{{ range(10**9) }}", "Range too big"),
    "attribute of undefined": ("\n{{ nothing.x }}", "in line 2: .*'nothing' is undefined"),
    "item of undefined": ("{{ messages[5].content }}", "has no element 5"),
    "division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "half a surrogate pair": (r"{{ '\ud800' }}", "UnicodeEncodeError"),
    "refusal": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "refusal of many lines": ("{{ raise_exception('a\n' * 5000) }}", "a a a"),
}


@pytest.mark.parametrize(("source", "rule"), FAILING.values(), ids=FAILING.keys())
def test_a19_fails_in_time_and_the_worker_goes_on(source, rule):
    template = ChatTemplate(source, Path("model") / "chat_template.jinja")
    template.start()
    with watchdog(MAX_SECONDS), pytest.raises(TemplateError, match=rule) as caught:
        template.render(HI)
    message = str(caught.value)
    assert message.startswith("model/chat_template.jinja: template_error: ")
    assert "\n" not in message
    assert "0x" not in message
    assert len(message) < 500
    template.source = "{{ messages[0].content }}"
    assert template.render(HI) == "hi"


SUCCEEDING = {
    "undefined is empty": ("a{{ nothing }}b", "ab"),
    "a megabyte of text": ("x" * 2**20, "x" * 2**20),
    "a megabyte of comments": ("{# " + "x" * 2**20 + " #}y", "y"),
    "class by format": ("[{{ '{0.__class__}'.format(1) }}]", "[]"),
    "class by format_map": ("[{{ '{a.__class__}'.format_map({'a': 1}) }}]", "[]"),
    "unsafe attribute unused": ("{% set x = ''.__class__ %}ok", "ok"),
}


@pytest.mark.parametrize(("source", "text"), SUCCEEDING.values(), ids=SUCCEEDING.keys())
def test_a19_succeeds_in_time(source, text):
    template = ChatTemplate(source, Path("t.jinja"))
    template.start()
    with watchdog(MAX_SECONDS):
        assert template.render(HI) == text


def test_a19_a_megabyte_of_expressions_succeeds_or_fails_in_time():
    template = ChatTemplate("{{ x }}" * (2**20 // 7), Path("t.jinja"))
    template.start()
    with watchdog(MAX_SECONDS), contextlib.suppress(TemplateError):
        assert template.render(HI) == ""


def test_a19_a_template_in_a_message_is_only_text():
    content = "{{ 9**99999999 }}{% for i in range(9) %}{{ ''.__class__ }}"
    assert ChatTemplate("{{ messages[0].content }}", Path("t")).render([{"content": content}]) == content


def test_a19_the_child_that_was_stopped_is_gone():
    template = ChatTemplate(LOOP + LOOP + "{% endfor %}{% endfor %}", Path("t.jinja"))
    template.start()
    pid = template._worker._process.pid
    with pytest.raises(TemplateError):
        template.render(HI)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a19_the_child_cannot_write_files_or_start_processes(tmp_path):
    """What a template that broke out of the sandbox would find; the limits of the running worker, as the system has
    them."""
    template = ChatTemplate("x", Path("t.jinja"))
    template.start()
    limits = Path(f"/proc/{template._worker._process.pid}/limits").read_text()
    for name, limit in [
        ("Max file size", "0"),
        ("Max processes", "0"),
        ("Max core file size", "0"),
        ("Max address space", str(512 * 2**20)),
    ]:
        line = next(line for line in limits.splitlines() if line.startswith(name))
        assert line[len(name) :].split()[0] == limit


BROKEN_FILES = {
    "json that is none": ("chat_template.json", b"{]", "not JSON"),
    "json of a number": ("chat_template.json", b'{"chat_template": 7}', "must be a string"),
    "named without template": (
        "tokenizer_config.json",
        b'{"chat_template": [{"name": "default"}]}',
        "must be a string",
    ),
    "list without names": ("tokenizer_config.json", b'{"chat_template": ["x"]}', "list of named templates"),
    "jinja not UTF-8": ("chat_template.jinja", b"\xff", "not UTF-8"),
    "jinja too large": ("chat_template.jinja", b"x" * (2**22 + 1), "too large"),
}


@pytest.mark.parametrize(("name", "content", "rule"), BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_a19_broken_template_files(tmp_path, name, content, rule):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFile, match=rule) as caught:
        ChatTemplate.from_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a19_a_gguf_template_that_is_no_string():
    with pytest.raises(CorruptFile, match="must be a string"):
        ChatTemplate.from_gguf({"tokenizer.chat_template": json.loads("7")}, Path("m.gguf"))
