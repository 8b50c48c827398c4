"""What reaches the model beside the words: stdin, tools, documents, template variables, messages, a begun answer."""

from __future__ import annotations

import json

import pytest

import lluda as package
from lluda.api.model import Model
from tests.cli.conftest import TEMPLATE, write_model

GREEDY = ("-t", 0, "-n", 6)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
DOCUMENTS = [{"title": "a", "text": "hello"}]
TAKES_ALL = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for d in documents or [] %}[{{ d.title }}]{% endfor %}"
    "{{ level }}" + TEMPLATE
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One whose template takes all there is."""
    folder = write_model(tmp_path_factory.mktemp("chat") / "tiny")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TAKES_ALL}))
    return folder


@pytest.fixture(scope="module")
def loaded(model):
    return package.load(model)


@pytest.fixture
def file(tmp_path):
    """Writes a JSON file and gives its path."""

    def write(value):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def answered(lluda, *arguments, verb="generate", **options):
    printed = lluda(verb, *arguments, *GREEDY, "--json", **options)
    assert printed.code == 0, printed.err
    return json.loads(printed.out)


SENT = {
    "line end": b"hello\n",
    "line end of another system": b"hello\r\n",
    "byte order mark": b"\xef\xbb\xbfhello",
    "both": b"\xef\xbb\xbfhello\r\n",
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT.keys())
def test_a_prompt_through_a_pipe_is_the_prompt_as_an_argument(lluda, model, sent):
    """echo and Windows' programs add what nobody typed: the right prompt is that of the argument."""
    given = answered(lluda, "-m", model, "hello")
    piped = answered(lluda, "-m", model, "-", stdin=sent)
    assert piped["prompt"] == "hello"
    assert piped["token_ids"] == given["token_ids"]
    assert piped["prompt_tokens"] == given["prompt_tokens"]


def test_one_line_end_alone_is_dropped(lluda, model):
    assert answered(lluda, "-m", model, "-", stdin=b"hello\n\nw \n\n")["prompt"] == "hello\n\nw \n"


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT.keys())
def test_raw_takes_the_bytes_as_they_are(lluda, model, loaded, sent):
    found = answered(lluda, "-m", model, "--raw", "-", stdin=sent)
    assert found["prompt"] == sent.decode()
    assert found["prompt_tokens"] == len(loaded.tokenizer.encode(sent.decode(), allow_special=False))


@pytest.mark.parametrize("verb", ["generate", "ask", "speak"])
@pytest.mark.parametrize(
    ("sent", "rule"), [(b"a\xffb", "is not UTF-8: bad byte at offset 1"), (b"\n", "is empty"), (b"", "is empty")]
)
def test_what_is_no_text_on_stdin_is_refused_by_every_verb(lluda, model, verb, sent, rule):
    more = ("-o", "a.wav") if verb == "speak" else ()
    printed = lluda(verb, "-m", model, "-", *more, stdin=sent)
    assert printed.code == 2
    assert rule in printed.err


def test_tools_documents_and_variables_reach_the_template(lluda, model, loaded, file):
    options = ("--tools", file(TOOLS), "--documents", file(DOCUMENTS), "--template-arg", "level=3")
    found = answered(lluda, "-m", model, *options, "hello")
    messages = [{"role": "user", "content": "hello"}]
    given = {"tools": TOOLS, "documents": DOCUMENTS, "chat_template_kwargs": {"level": 3}}
    expected = loaded.chat(messages, temperature=0, max_tokens=6, **given)
    assert found["token_ids"] == list(expected.token_ids)
    assert found["prompt_tokens"] == expected.prompt_tokens > len(loaded.chat_prompt(messages))


def test_template_arguments_are_json_or_text(lluda, model, monkeypatch):
    seen = []
    monkeypatch.setattr(Model, "chat_stream", lambda _, __, ___, **options: seen.append(options) or iter(()))
    with pytest.raises(AssertionError, match="without a Completion"):
        lluda(
            "generate", "-m", model, "x", "--template-arg", "a=[1]", "--template-arg", "b=x=y", "--template-arg", "c="
        )
    assert seen == [{"chat_template_kwargs": {"a": [1], "b": "x=y", "c": ""}}]


def test_an_answer_that_is_begun_goes_on_from_there(lluda, model, loaded):
    found = answered(lluda, "-m", model, "hello", "--prefill", "w he")
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "w he"}]
    expected = loaded.chat(messages, temperature=0, max_tokens=6, continue_final_message=True)
    assert found["token_ids"] == list(expected.token_ids)
    assert loaded.tokenizer.decode(loaded.chat_prompt(messages, continue_final_message=True).ids).endswith("w he")


def test_a_whole_conversation_is_taken_from_a_file(lluda, model, loaded, file):
    messages = [
        {"role": "system", "content": "he"},
        {"role": "user", "content": "w"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "hell"},
    ]
    found = answered(lluda, "-m", model, "--messages", file(messages))
    assert found["token_ids"] == list(loaded.chat(messages, temperature=0, max_tokens=6).token_ids)
    assert found["prompt"] == messages
    begun = [*messages, {"role": "assistant", "content": "hello"}]
    found = answered(lluda, "-m", model, "--messages", file(begun), "--continue-final-message")
    expected = loaded.chat(begun, temperature=0, max_tokens=6, continue_final_message=True)
    assert found["token_ids"] == list(expected.token_ids)


REFUSED = {
    "no prompt": ((), "no prompt given"),
    "raw without a prompt": (("--raw",), "no prompt given: --raw continues a text"),
    "raw with tools": (("--raw", "x", "--tools", "t.json"), "--raw uses no chat template"),
    "two prompts": (("x", "--messages", "MESSAGES"), "leave out the prompt"),
    "two systems": (("--messages", "MESSAGES", "--system", "x"), "leave out the prompt, media and --system"),
    "two beginnings": (("--messages", "MESSAGES", "--prefill", "x", "--continue-final-message"), "give one of them"),
    "nothing to continue": (("x", "--continue-final-message"), "give --messages FILE"),
    "no file": (("x", "--tools", "nowhere.json"), "there is no such file"),
    "an object": (("x", "--tools", "OBJECT"), "must hold a JSON list"),
    "tools of texts": (("x", "--tools", "TEXTS"), "tools must be a list of JSON objects"),
    "no JSON": (("x", "--documents", "NO_JSON"), "not JSON"),
    "no value": (("x", "--template-arg", "level"), "must be KEY=VALUE"),
    "an argument of its own": (("x", "--template-arg", "tools=[]"), "must not name tools"),
    "messages of another form": (("--messages", "TEXTS"), "must be a dictionary"),
    "no role": (("--messages", "NO_ROLE"), "role must be one of"),
}


@pytest.mark.parametrize(("options", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(lluda, model, file, monkeypatch, options, rule):
    monkeypatch.setattr("lluda.load", lambda *_, **__: pytest.fail("loaded"), raising=False)
    made = {
        "MESSAGES": [{"role": "user", "content": "x"}],
        "OBJECT": {},
        "TEXTS": ["x"],
        "NO_JSON": "{",
        "NO_ROLE": [{"content": "x"}],
    }
    printed = lluda("generate", "-m", model, *(file(made[one]) if one in made else one for one in options))
    assert printed.code == 2
    assert rule in printed.err


def test_a_variable_that_the_template_does_not_read_is_refused(lluda, model):
    printed = lluda("generate", "-m", model, "x", "--template-arg", "levle=3")
    assert printed.code == 2
    assert "the chat template does not read levle" in printed.err


def test_a_chat_has_tools_takes_their_results_and_drops_a_mark(lluda, model, loaded, file):
    printed = lluda(
        "chat", "-m", model, *GREEDY, "--tools", file(TOOLS), stdin=b"\xef\xbb\xbfhello\r\n/tool hell\n/tool\n"
    )
    talk = loaded.conversation(tools=TOOLS)
    turns = [{"role": "user", "content": "hello"}], [{"role": "tool", "content": "hell"}]
    expected = [list(talk.send(turn, temperature=0, max_tokens=6))[-1].text for turn in turns]
    assert printed.out == "".join(text + "\n" for text in expected)
    assert "/tool needs the result as a text" in printed.err


def test_a_conversation_keeps_what_was_continued_as_one_message(loaded):
    talk = loaded.conversation()
    new = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "w he"}]
    answer = list(talk.send(new, temperature=0, max_tokens=4, continue_final_message=True))[-1]
    assert talk.messages == [new[0], {"role": "assistant", "content": "w he" + answer.text}]
    fresh = loaded.chat(new, temperature=0, max_tokens=4, continue_final_message=True)
    assert answer.token_ids == fresh.token_ids
    assert list(talk.ask("w", temperature=0, max_tokens=2))


def test_unknown_arguments_of_a_chat_are_one_clear_error(loaded):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(package.InvalidRequest, match="toolz"):
        loaded.chat(messages, toolz=[])
    with pytest.raises(package.InvalidRequest, match=r"ChatOptions: .*temperature"):
        loaded.conversation(temperature=0)
