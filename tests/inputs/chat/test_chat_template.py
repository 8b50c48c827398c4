"""Chat templates: where they are found, that they render as transformers renders them, and the life of the worker."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, TemplateError, UnsupportedModel
from lluda.inputs.chat import chat_template, template_worker
from lluda.inputs.chat.chat_template import ChatTemplate

HI = [{"role": "user", "content": "hi"}]
SOURCE = Path(chat_template.__file__).parents[3]


def worker_pid(template: ChatTemplate) -> int:
    template.start()
    return template._worker._process.pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


def in_another_process(code: str) -> str:
    """What ``code`` prints, run by a Python of its own."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment).stdout


FILES = {
    "tokenizer_config.json": json.dumps({"chat_template": "from config", "eos_token": {"content": "<e>"}}),
    "chat_template.jinja": "from jinja\r\n",
    "additional_chat_templates/tool_use.jinja": "tools",
    "chat_template.json": json.dumps({"chat_template": "from json"}),
    "processor_config.json": json.dumps({"chat_template": "from processor"}),
}


def write_templates(folder, names):
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(FILES[name].encode())


def test_the_later_file_counts(tmp_path):
    assert ChatTemplate.from_folder(tmp_path) is None
    for name, source in [
        ("tokenizer_config.json", "from config"),
        ("chat_template.jinja", "from jinja\n"),
        ("processor_config.json", "from processor"),
    ]:
        write_templates(tmp_path, [name])
        found = ChatTemplate.from_folder(tmp_path)
        assert (found.source, found.path, found.special_tokens) == (source, tmp_path / name, {"eos_token": "<e>"})


@pytest.mark.parametrize("tool", [False, True], ids=["", "tool_use"])
@pytest.mark.parametrize("jinja", [False, True], ids=["", "jinja"])
@pytest.mark.parametrize("legacy", [False, True], ids=["", "json"])
@pytest.mark.parametrize("processor", [False, True], ids=["", "processor"])
def test_files_count_as_for_transformers_processors_and_tokenizers(tmp_path, processor, legacy, jinja, tool):
    """What both would take, or an error where they, or transformers itself, would not agree."""
    processing = pytest.importorskip("transformers.processing_utils", reason="transformers is the reference here")
    flags = {"chat_template.jinja": jinja, "additional_chat_templates/tool_use.jinja": tool}
    flags |= {"chat_template.json": legacy, "processor_config.json": processor}
    write_templates(tmp_path, [name for name, wanted in flags.items() if wanted])
    if not (legacy and tool):
        expected = processing.ProcessorMixin.get_processor_dict(tmp_path)[0].get("chat_template")
    if processor and not (legacy and tool):
        assert ChatTemplate.from_folder(tmp_path).source == expected
    elif processor:
        with pytest.raises(ValueError, match="conflicting files"):
            processing.ProcessorMixin.get_processor_dict(tmp_path)
    elif legacy and (jinja or tool):
        with pytest.raises(UnsupportedModel, match=r"chat_template\.json and .* both hold a chat template"):
            ChatTemplate.from_folder(tmp_path)
    elif tool and not jinja:
        assert set(expected) == {"tool_use"}
        with pytest.raises(UnsupportedModel, match="none is named default"):
            ChatTemplate.from_folder(tmp_path)
    else:
        found = ChatTemplate.from_folder(tmp_path)
        named = expected if isinstance(expected, dict) else {"default": expected}
        assert (found and found.source, found and found.tool_source) == (named["default"], named.get("tool_use"))


def test_a_jinja_file_that_repeats_the_older_one_is_fine(tmp_path):
    write_templates(tmp_path, ["chat_template.json"])
    (tmp_path / "chat_template.jinja").write_text("from json")
    assert ChatTemplate.from_folder(tmp_path).source == "from json"


def test_named_templates_default_and_tool_use(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools: {{ tools|length }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template.render(HI) == "plain"
    assert template.render(HI, tools=[{}, {}]) == "tools: 2"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[1:]}))
    with pytest.raises(UnsupportedModel, match="tool_use"):
        ChatTemplate.from_folder(tmp_path)


def test_from_gguf_with_its_special_tokens(tmp_path):
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
        "tokenizer.ggml.tokens": ["<a>", "<b>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert ChatTemplate.from_gguf(metadata, tmp_path / "m.gguf").render(HI) == "<a>|<b>|"
    assert ChatTemplate.from_gguf({}, tmp_path / "m.gguf") is None
    with pytest.raises(CorruptFile, match="eos_token_id must be an id below 2"):
        ChatTemplate.from_gguf(metadata | {"tokenizer.ggml.eos_token_id": 2}, tmp_path / "m.gguf")


FEATURES = {
    "trimmed blocks": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "break and continue": "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}"
    "{% endif %}{{ i }}{% endfor %}",
    "tojson keeps html and unicode": "{{ {'b': '<é&\">', 'a': [1, none, true, 1.5]} | tojson }}",
    "tojson options": "{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}"
    "{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "undefined is empty": "[{{ nothing }}]",
    "tools and documents are none": "{{ tools is none }} {{ documents is none }} {{ tools is defined }}",
    "namespace": "{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.self }}",
    "generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "dict": "{{ dict(a=1, **{'b': 2}) | tojson }}",
    "year": "{{ strftime_now('%Y')|length }}",
    "message fields": "{% for m in messages %}{{ m.role }}:{{ m['content'] | upper | trim }}{% endfor %}",
    "macro": "{% macro f(x) -%} <{{ x }}> {%- endmacro %}{{ f(messages[0].content) }}",
}


@pytest.fixture(scope="module")
def renders_as_transformers():
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    return lambda source: utilities.render_jinja_template([HI], chat_template=source, add_generation_prompt=True)[0][0]


@pytest.mark.parametrize("source", FEATURES.values(), ids=FEATURES.keys())
def test_features_render_as_in_transformers(renders_as_transformers, source):
    assert ChatTemplate(source, Path("t.jinja")).render(HI) == renders_as_transformers(source)


def test_one_worker_serves_all_renderings():
    template = ChatTemplate("{{ messages[0].content }}", Path("t.jinja"))
    pid = worker_pid(template)
    assert [template.render([{"content": str(i)}]) for i in range(20)] == [str(i) for i in range(20)]
    with pytest.raises(TemplateError):
        template.render([])
    assert worker_pid(template) == pid


def test_threads_take_turns():
    template = ChatTemplate("{{ messages[0].content * 1000 }}", Path("t.jinja"))
    results: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: template.render([{"content": f"{i},"}])}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: f"{i}," * 1000 for i in range(8)}


def test_threads_never_get_each_others_answers():
    """The worker is started before, so that renderings overlap and not starts."""
    template = ChatTemplate("{% for i in range(3000) %}{% endfor %}{{ messages[0].content * 500 }}", Path("t.jinja"))
    template.start()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: template.render([{"content": f"{i},"}]), range(80)))
    assert found == [f"{i}," * 500 for i in range(80)]


def test_a_killed_worker_is_replaced():
    template = ChatTemplate("{{ messages[0].content }}", Path("t.jinja"))
    first = worker_pid(template)
    os.kill(first, signal.SIGKILL)
    template._worker._process.wait()
    assert template.render(HI) == "hi"
    assert worker_pid(template) != first


def test_the_worker_ends_with_its_template():
    template = ChatTemplate("x", Path("t.jinja"))
    pid = worker_pid(template)
    template.close()
    assert not is_alive(pid)
    assert template.render(HI) == "x"
    pid = worker_pid(template)
    del template
    gc.collect()
    assert not is_alive(pid)


RUN = "from pathlib import Path; from lluda.inputs.chat.chat_template import ChatTemplate; import os\n"


def test_the_worker_ends_with_the_interpreter():
    pid = int(in_another_process(RUN + "t = ChatTemplate('x', Path('t')); t.start(); print(t._worker._process.pid)"))
    assert gone_within(pid, 5)


@pytest.mark.parametrize(
    "source", ["x", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"]
)
def test_the_worker_ends_when_its_parent_is_killed(source):
    """Idle it sees the socket close; rendering, its own alarm ends it."""
    code = RUN + (
        f"t = ChatTemplate({source!r}, Path('t')); t.start(); print(t._worker._process.pid, flush=True)\n"
        "import threading, time; threading.Timer(0.5, lambda: os.kill(os.getpid(), 9)).start()\n"
        "t.render([]); time.sleep(60)"
    )
    assert gone_within(int(in_another_process(code)), 6)


def test_a_forked_process_uses_a_worker_of_its_own():
    code = RUN + (
        "t = ChatTemplate('{{ messages[0].c }}', Path('t')); t.start(); pid = t._worker._process.pid\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    assert t.render([{'c': 'child'}]) == 'child' and t._worker._process.pid != pid\n"
        "    raise SystemExit\n"
        "status = os.waitpid(child, 0)[1]\n"
        "print(status, t.render([{'c': 'parent'}]), t._worker._process.pid == pid)"
    )
    assert in_another_process(code).split() == ["0", "parent", "True"]


def test_the_worker_is_out_of_reach_of_the_terminals_interrupt():
    template = ChatTemplate("x", Path("t.jinja"))
    assert os.getsid(worker_pid(template)) != os.getsid(0)


def test_the_worker_is_light():
    command = [sys.executable, "-P", "-X", "importtime", template_worker.__file__]
    # Without a socket it ends once everything is imported.
    found = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    names = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in found.stderr.splitlines() if "|" in line}
    assert "jinja2" in names
    assert not names & {"torch", "numpy", "lluda", "tokenizers", "transformers"}


def test_modules_in_the_current_folder_are_not_taken(tmp_path, monkeypatch):
    for name in ("jinja2", "json", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the folder was imported')")
    monkeypatch.chdir(tmp_path)
    assert ChatTemplate("x", Path("t.jinja")).render(HI) == "x"


def test_a_worker_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(template_worker, "__file__", "/nonexistent/worker.py")
    with pytest.raises(TemplateError, match="cannot be rendered: its process ended without an answer"):
        ChatTemplate("x", Path("t.jinja")).render(HI)


def test_messages_beyond_the_limit_and_of_other_types_are_refused(monkeypatch):
    template = ChatTemplate("{{ messages|length }}", Path("t.jinja"))
    with pytest.raises(InvalidRequest, match="must be JSON values"):
        template.render([{"content": object()}])
    monkeypatch.setattr(chat_template, "MAX_REQUEST", 1000)
    with pytest.raises(LimitExceeded, match="at most 1000"):
        template.render([{"content": "x" * 1000}])
    assert template.render([{}]) == "1"
