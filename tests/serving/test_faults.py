"""Faults inside the engine, injected (E9 to E11, E13): one request's is that request's alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from lluda.engine.runner import Runner
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sequence import Sequence
from lluda.inputs.text.text_stream import TextStream
from lluda.models.code2wav import Code2Wav
from tests.serving.asking import LONG, ask, wait_for
from tests.serving.oracle import GOLDEN_BODY, check_error, check_well
from tests.serving.running import RunningServer

SPEECH = {"model": "tiny-omni", "input": "One two three.", "voice": "lark", "response_format": "pcm"}


class InjectedFault(Exception):
    """With what an answer must not show: /root/secret.py at 0xdeadbeef."""


def failing(original: Callable[..., Any], error: BaseException, calls: int = 1) -> Callable[..., Any]:
    """``original``, whose next so many calls raise ``error``."""
    left = calls

    def method(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise error
        return original(*arguments, **options)

    return method


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("owner", "method"), [(Sampler, "sample"), (Sequence, "take"), (TextStream, "push"), (Runner, "prefill_rows")]
)
def test_fault_of_one_request_is_500_with_a_number(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    method: str,
    stream: bool,
) -> None:
    check_well(server)
    fault = InjectedFault(InjectedFault.__doc__)
    sampled = GOLDEN_BODY | {"stream": stream, "temperature": 0.5}  # else some kernels choose the token
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, failing(getattr(owner, method), fault))
        response = server.post("/example", sampled)
    error = check_error(response, 500, "internal_error")
    assert response.headers["x-should-retry"] == "false"
    number = re.search(r"err_([0-9a-f]{8})", error["message"])
    assert number and number[1] in caplog.text and "secret" in caplog.text, "the log has what the answer has not"
    check_well(server)


def test_fault_inside_a_stream_is_its_last_message(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    original, taken = Sequence.take, []

    def take(self: Sequence, sampled: Any) -> Any:
        taken.append(1)
        if len(taken) == 3:
            raise InjectedFault
        return original(self, sampled)

    with monkeypatch.context() as patch:
        patch.setattr(Sequence, "take", take)
        text = server.post("/example", GOLDEN_BODY | {"stream": True}).text
    messages = text.split("\n\n")[:-1]
    assert len(messages) == 3 and '"code":"internal_error"' in messages[2] and "[DONE]" not in text
    check_well(server)


def test_others_go_on_beside_a_fault(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [GOLDEN_BODY | {"prompt": [9, number, 7], "max_tokens": 40} for number in range(6)]
    alone = [server.post("/example", body).json() for body in bodies]
    original = Sequence.take

    def take(self: Sequence, sampled: Any) -> Any:
        if self.max_tokens == 77:
            raise InjectedFault
        return original(self, sampled)

    with monkeypatch.context() as patch, ThreadPoolExecutor(8) as threads:
        patch.setattr(Sequence, "take", take)
        bad = [threads.submit(server.post, "/example", GOLDEN_BODY | {"max_tokens": 77}) for _ in range(2)]
        good = [threads.submit(server.post, "/example", body) for body in bodies]
        assert [each.result().status_code for each in bad] == [500, 500]
        assert [each.result().json() for each in good] == alone
    check_well(server)


def test_no_memory_on_the_device_is_503(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            Runner, "prefill_rows", failing(Runner.prefill_rows, torch.OutOfMemoryError("CUDA at 0xdeadbeef"))
        )
        response = server.post("/example", GOLDEN_BODY)
    check_error(response, 503, "out_of_memory")
    assert response.headers["retry-after"]
    check_well(server)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_end_the_request(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    original = Sequence.sample
    with monkeypatch.context() as patch:
        patch.setattr(Sequence, "sample", lambda self, logits: original(self, torch.full_like(logits, value)))
        response = server.post("/example", GOLDEN_BODY | {"temperature": 0.5})
    check_error(response, 500, "numerical")
    check_well(server)


def test_metrics_that_fail_change_nothing(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = server.model.engine.observer
    with monkeypatch.context() as patch:
        for method in ("step", "began", "first_token"):
            patch.setattr(type(observer), method, failing(lambda *_: None, InjectedFault(), 10**6))
        assert server.post("/example", GOLDEN_BODY).status_code == 200
    check_well(server)


def test_sound_that_fails_breaks_its_answer_off_and_leaks_nothing(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = server.post("/v1/audio/speech", SPEECH).content
    with monkeypatch.context() as patch:
        patch.setattr(Code2Wav, "_push", failing(Code2Wav._push, InjectedFault(), 10))
        check_error(server.post("/v1/audio/speech", SPEECH), 500, "internal_error")
    assert server.post("/v1/audio/speech", SPEECH).content == whole
    check_well(server)


def test_step_that_fails_for_two_is_made_again_for_each(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt beside an answer: nobody knows whose fault it was, and alone both get on."""
    alone = server.post("/example", GOLDEN_BODY | {"prompt": [5] * 300}).json()
    with ask(server, LONG):
        wait_for(lambda: server.model.engine.stats().running == 1)
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "step_with_prompt", failing(Runner.step_with_prompt, InjectedFault()))
            assert server.post("/example", GOLDEN_BODY | {"prompt": [5] * 300}).json() == alone
        assert server.model.engine.stats().running == 1
    check_well(server)
