"""The engine: one thread that computes, and requests from any number of others.

``submit`` checks a request where it is made and returns a stream of its events. The thread then repeats: let go of what
was cancelled, begin what fits, run one step (`Scheduler`), hand out its tokens and samples. Every accepted request ends
exactly once: done, cancelled or failed. An error of one request is that request's alone.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lluda.engine.cache import CachePool, Prefix
from lluda.engine.forked import require_own_threads
from lluda.engine.request import Lifetime, Request, SpeechEvent, Status, Token
from lluda.engine.runner import Runner
from lluda.engine.scheduler import Entry, Scheduler, Step
from lluda.engine.sequence import Sequence as TokenSequence
from lluda.engine.speech.speech import Speech, SpeechStack, make_frames
from lluda.engine.speech.talker_prompt import CapturedHiddenStates
from lluda.engine.stream import CAPACITY, Channel, Stream
from lluda.errors import InvalidRequest, LimitExceeded, LludaError, OutOfMemory
from lluda.inputs.text.tokenizer import Tokenizer

MAX_RUNNING = 64
"""Requests that run at once, where memory allows."""

_DEADLINE_SECONDS = 0.05
"""How often deadlines are looked at while nothing can run."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Requests since the start and now: ``submitted`` ones are done, cancelled, failed, waiting or running.
    ``cached_positions``: of retained
    prefixes; ``kv_positions``: counted for what runs; ``kv_bytes``: allocated for both."""

    submitted: int
    done: int
    cancelled: int
    failed: int
    waiting: int
    running: int
    steps: int
    kv_positions: int
    cached_positions: int
    kv_bytes: int
    reused_tokens: int


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way: its tokens, its speech, who reads them and where it stands."""

    id: int
    request: Request
    channel: Channel
    entry: Entry
    sequence: TokenSequence | None
    speech: Speech | None
    lifetime: Lifetime = field(default_factory=Lifetime)

    def refresh(self) -> None:
        """What the scheduler is to know."""
        entry, sequence, speech = self.entry, self.sequence, self.speech
        entry.stalled = self.channel.is_full
        if sequence is not None:
            entry.prompt_left = sequence.prompt_left
            entry.decoding = bool(sequence.tokens) and not sequence.finish_reason
        if speech is not None:
            entry.speaking, entry.frames = speech.is_ready, speech.frames

    @property
    def is_over(self) -> bool:
        """Whether text and speech have both ended."""
        text = self.sequence is None or bool(self.sequence.finish_reason)
        return text and (self.speech is None or self.speech.ended)


class _Mailbox:
    """What other threads leave for the engine's. It outlives the engine, so that the thread can wait here without
    keeping the engine in memory."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.submitted: deque[_Job] = deque()
        self.calls: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self.awake = False
        self.closed = False

    def wake(self) -> None:
        """Something happened."""
        with self.changed:
            self.awake = True
            self.changed.notify_all()

    def wait(self, timeout: float | None) -> None:
        """Until something happens, or so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.awake, timeout)
            self.awake = False

    def close(self) -> None:
        """No one will come any more."""
        self.closed = True
        self.wake()


_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that still computes while the interpreter goes away would find its kernels gone."""
    for engine in list(_open_engines):
        engine.close()


class Engine:
    """Runs requests on one model.

    Args:
        runner: of what answers in text; None: it only speaks given texts.
        speech: gives what speaks, when it is first needed; None: it cannot speak.
        kv_positions: positions that all running requests may take together.
        max_running: requests at once.
        retained_positions: of ended requests, kept for prompts that begin with the same rows.
    """

    def __init__(
        self,
        runner: Runner | None,
        tokenizer: Tokenizer,
        speech: Callable[[], SpeechStack] | None = None,
        *,
        kv_positions: int = 0,
        max_running: int = MAX_RUNNING,
        retained_positions: int = 0,
    ) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self._speech = speech
        self._mailbox = _Mailbox()
        self._jobs: dict[int, _Job] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = dict.fromkeys((Status.DONE, Status.CANCELLED, Status.FAILED), 0)
        self._submitted = self._steps = self._reused = 0
        chunk = runner.prefill_chunk if runner else 1
        whole = runner is not None and runner.deterministic and runner.few_rows is None
        self.scheduler = Scheduler(max_running, chunk, whole, runner.rows_together if runner else 0)
        self.pool = CachePool(runner.new_cache, kv_positions, retained_positions) if runner else None
        weakref.finalize(self, self._mailbox.close)
        _open_engines.add(self)

    def submit(self, *requests: Request, capacity: int = CAPACITY) -> Stream[SpeechEvent]:
        """Accept requests, all or none; their events come in one stream, of which ``capacity`` may wait for a reader.

        Raises:
            InvalidRequest, LimitExceeded: one that cannot be run as it is; nothing was accepted.
            LludaError: the engine was closed, or this process is a fork of one that had computed.
        """
        require_own_threads()
        channel = Channel(len(requests), self._mailbox.wake, capacity)
        jobs = [self._job(request, channel) for request in requests]
        with self._lock:
            if self._mailbox.closed:
                raise LludaError("this engine was closed; load the model again")
            self._submitted += len(jobs)
            self._mailbox.submitted.extend(jobs)
            self._start()
        self._mailbox.wake()
        return Stream(channel, self)

    def call(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` on the engine's thread, between two steps, and wait for what it returns or raises: for what else
        computes with the model's weights, as encoders."""
        require_own_threads()
        if threading.current_thread() is self._thread:
            return work()
        future: Future[_T] = Future()
        with self._lock:
            if self._mailbox.closed:
                raise LludaError("this engine was closed; load the model again")
            self._mailbox.calls.append((work, future))  # type: ignore[arg-type]
            self._start()
        self._mailbox.wake()
        return future.result()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all that was accepted has ended; whether it has, within ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_idle:
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(0.002)
        return True

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        stats = self.stats()
        return stats.waiting + stats.running == 0

    def stats(self) -> EngineStats:
        """Counters, as they are now."""
        ended = dict(self._ended)
        open_requests = self._submitted - sum(ended.values())
        running = self.scheduler.running
        retained = list(self.pool.retained) if self.pool else []
        return EngineStats(
            submitted=self._submitted,
            done=ended[Status.DONE],
            cancelled=ended[Status.CANCELLED],
            failed=ended[Status.FAILED],
            waiting=max(0, open_requests - running),
            running=running,
            steps=self._steps,
            kv_positions=self.pool.used if self.pool else 0,
            cached_positions=sum(slot.cache.length for slot in retained),
            kv_bytes=self.pool.nbytes if self.pool else 0,
            reused_tokens=self._reused,
        )

    def release_prefixes(self) -> None:
        """Let go of what is retained of ended requests."""
        pool = self.pool
        if pool is not None:
            self.call(pool.clear)

    def close(self) -> None:
        """Cancel what has not ended, and end the thread. Nothing can be submitted any more."""
        with self._lock:
            self._mailbox.close()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _job(self, request: Request, channel: Channel) -> _Job:
        """A request that was looked at. Errors as `submit`."""
        number = next(self._ids)
        spoken = request.speech
        captured = None
        stack = None
        if spoken is not None:
            if self._speech is None:
                raise InvalidRequest("this engine has nothing that speaks; load an Omni model that does")
            stack = self._speech()
            captured = CapturedHiddenStates(request.prompt, stack.talker.config.accept_hidden_layer)
        sequence = None
        if request.text is None:
            if self.runner is None:
                raise InvalidRequest("this engine only speaks given texts; load the whole model to ask it something")
            config, limit = self.runner.model.config, self.runner.cache_options.max_length
            sequence = TokenSequence(request, self.tokenizer, config.vocab_size, limit, captured)
        speech = Speech(stack, spoken, request.prompt, captured) if stack and spoken else None
        assert sequence or speech, "a request with a text to speak is spoken"
        positions = sequence.positions if sequence else 0
        if self.pool is not None and positions > self.pool.budget:
            raise LimitExceeded(
                f"the request may take {positions} positions but the KV cache has {self.pool.budget}; ask for fewer "
                "max_tokens, or load with more (max_sequences)"
            )
        entry = Entry(
            number,
            positions,
            is_text=request.prompt.positions is None,
            priority=request.priority,
            deadline=request.deadline,
            spoken=speech is not None,
        )
        return _Job(number, request, channel, entry, sequence, speech)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            work = _work, weakref.ref(self), self._mailbox
            self._thread = threading.Thread(target=work[0], args=work[1:], name="lluda engine", daemon=True)
            self._thread.start()

    # On the engine's thread.

    def _turn(self) -> float | None:
        """Do what is to be done next. Seconds to wait before the next turn, where nothing happens meanwhile; None:
        for ever."""
        self._receive()
        for job in list(self._jobs.values()):
            if job.channel.cancelled or self._mailbox.closed:
                self._end(job, Status.CANCELLED)
        self._expire()
        self._admit()
        for job in self._jobs.values():
            job.refresh()
        step = self.scheduler.step(time.monotonic())
        if not step.is_empty:
            self._run(step)
            return 0.0
        return _DEADLINE_SECONDS if self.scheduler.has_deadlines else None

    def _break(self, error: BaseException) -> None:
        """A fault of the engine itself: nobody is left waiting, and nothing is accepted any more."""
        with self._lock:  # whoever submits has been received below, or sees that it is closed
            self._mailbox.close()
        self._receive()
        for job in list(self._jobs.values()):
            self._end(job, Status.FAILED, error)

    def _receive(self) -> None:
        while self._mailbox.calls:
            work, future = self._mailbox.calls.popleft()
            if future.set_running_or_notify_cancel():
                _answer(work, future)
        while self._mailbox.submitted:
            job = self._mailbox.submitted.popleft()
            self._jobs[job.id] = job
            self.scheduler.add(job.entry)

    def _expire(self) -> None:
        for number in self.scheduler.expired(time.monotonic()):
            waited = "the deadline passed before the request could begin; try again later, or give it more time"
            self._end(self._jobs[number], Status.FAILED, LimitExceeded(waited))

    def _admit(self) -> None:
        while (entry := self.scheduler.next_to_admit()) is not None:
            job = self._jobs[entry.id]
            if self.pool is not None and not self.pool.fits(entry.positions):
                return
            try:
                self._begin(job)
            except Exception as error:
                self._end(job, Status.FAILED, self._explained(error))

    def _begin(self, job: _Job) -> None:
        sequence, pool = job.sequence, self.pool
        job.lifetime.become(Status.RUNNING)
        job.entry.running = True
        if sequence is not None:
            assert pool is not None, "a sequence has a runner"
            prefix = self._prefix(job, sequence, pool)
            explicit = job.request.sampling.max_tokens is not None
            slot = pool.acquire(sequence.positions, sequence.prompt, prefix, exact=explicit)
            sequence.begin(slot, prefix.rows if prefix else 0)
            self._reused += sequence.reused
        elif job.speech is not None:
            for number, text in job.request.text or ():
                job.channel.put(Token(job.request.index, number, text))
                job.speech.push_text(number)
            job.speech.end_text()
            self._end_if_over(job)  # there may be nothing to say

    def _prefix(self, job: _Job, sequence: TokenSequence, pool: CachePool) -> Prefix | None:
        """What the prompt may begin with, as far as the request allows."""
        runner = self.runner
        assert runner is not None, "a sequence has a runner"
        reuse = job.request.reuse or ("prompt" if runner.deterministic else "any")
        if reuse == "none":
            return None
        prefix = pool.find(sequence.prompt, prompt_rows_only=reuse == "prompt")
        if prefix is None:
            return None
        rows = prefix.rows
        if sequence.captured is not None:
            rows = sequence.captured.take_over(prefix.slot.captured, rows)
        if reuse == "prompt":
            rows = runner.reusable(rows, len(sequence.prompt))
        return Prefix(prefix.slot, rows) if rows > 0 else None

    def _run(self, step: Step) -> None:
        self._steps += 1
        started = time.perf_counter()
        decoding = [self._jobs[number] for number in step.decode]
        if step.together:
            ((number, rows),) = step.prefill
            self._attempt([*decoding, self._jobs[number]], lambda jobs: self._decode_with_prompt(jobs, rows))
        elif decoding:
            self._attempt(decoding, self._decode)
        if step.frames:
            self._attempt([self._jobs[number] for number in step.frames if number in self._jobs], self._speak)
        decoded = time.perf_counter()
        for number, rows in () if step.together else step.prefill:
            if number in self._jobs:
                self._attempt([self._jobs[number]], lambda jobs, rows=rows: self._prefill(jobs[0], rows))  # type: ignore[misc]
        self.scheduler.measured(step, decoded - started, time.perf_counter() - decoded)

    def _attempt(self, jobs: list[_Job], work: Callable[[list[_Job]], None]) -> None:
        """``work`` for ``jobs``; what it cannot do for want of memory, or by a fault, is the end of these alone."""
        try:
            work(jobs)
        except Exception as error:
            explained = self._explained(error)
            for job in jobs:
                if not job.lifetime.ended:
                    self._end(job, Status.FAILED, explained)

    def _prefill(self, job: _Job, wanted: int) -> None:
        sequence, runner = job.sequence, self.runner
        assert sequence is not None and sequence.slot is not None and runner is not None, "only these have prompts"
        cache, prompt = sequence.slot.cache, sequence.prompt
        rows = runner.chunk(cache.length, len(prompt), wanted)
        self._computed(job, runner.prefill_rows(prompt, cache, rows, sequence.observe))

    def _computed(self, job: _Job, logits: Tensor | None) -> None:
        """Rows of a prompt were; ``logits`` after its last give the first token."""
        sequence, runner = job.sequence, self.runner
        assert sequence is not None and sequence.slot is not None and runner is not None, "only these have prompts"
        if len(sequence.prompt) > (runner.few_rows or 0):  # else a longer prompt sums the same rows in another order
            sequence.slot.prompt_rows = sequence.slot.cache.length
        if logits is None:
            return
        if sequence.captured is not None:
            sequence.slot.captured = dict(sequence.captured.hidden)
        with runner.model.backend.single_threaded_torch():
            self._sampled(job, lambda s: s.sample(logits))
        if job.speech is not None and job.lifetime.status is Status.RUNNING:
            self._speak([job])

    def _decode_with_prompt(self, jobs: list[_Job], rows: int) -> None:
        """A token of each but the last, and rows of the last one's prompt."""
        *decoding, job = jobs
        sequence, runner = job.sequence, self.runner
        assert sequence is not None and sequence.slot is not None and runner is not None, "only these have prompts"
        sequences = [each.sequence for each in decoding if each.sequence]
        ids = [each.tokens[-1].id for each in sequences]
        caches = [each.slot.cache for each in sequences if each.slot]
        logits, last = runner.step_with_prompt(ids, caches, sequence.prompt, sequence.slot.cache, rows)
        with runner.model.backend.single_threaded_torch():
            for each, row in zip(decoding, logits, strict=True):
                self._sampled(each, lambda s, row=row: s.sample(row))  # type: ignore[misc]
        self._computed(job, last)

    def _decode(self, jobs: list[_Job]) -> None:
        runner, sequences = self.runner, [job.sequence for job in jobs if job.sequence]
        assert runner is not None, "only sequences decode"
        ids = [sequence.tokens[-1].id for sequence in sequences]
        caches = [sequence.slot.cache for sequence in sequences if sequence.slot]
        if all(s.sampler.takes_argmax for s in sequences) and runner.launches_whole(len(jobs)):
            for job, token, peak in zip(jobs, *runner.argmax_step(ids, caches), strict=True):
                self._sampled(job, lambda s, token=token, peak=peak: s.take(s.sampler.take_argmax(token, peak)))  # type: ignore[misc]
            return
        rows = runner.step(ids, caches)
        with runner.model.backend.single_threaded_torch():
            for job, logits in zip(jobs, rows, strict=True):
                self._sampled(job, lambda s, logits=logits: s.sample(logits))  # type: ignore[misc]

    def _sampled(self, job: _Job, choose: Callable[[TokenSequence], Token]) -> None:
        """One token of ``job``; logits that define none end it alone."""
        assert job.sequence is not None, "only sequences decode"
        try:
            token = choose(job.sequence)
        except LludaError as error:
            self._end(job, Status.FAILED, error)
        else:
            self._take(job, token)

    def _take(self, job: _Job, token: Token) -> None:
        sequence, speech = job.sequence, job.speech
        assert sequence is not None, "its token"
        job.channel.put(token)
        if speech is not None and token.id not in job.request.end_ids and not speech.ended:
            speech.push_text(token.id)
        if sequence.finish_reason:
            self._release(job)
            job.channel.put(sequence.completion())
            if speech is not None and not speech.ended:
                speech.end_text()
        self._end_if_over(job)

    def _speak(self, jobs: list[_Job]) -> None:
        ready = {job.speech: job for job in jobs if job.speech is not None and job.speech.is_ready}
        if not ready:
            return
        chunks = make_frames(list(ready))
        for speech, job in ready.items():
            if speech in chunks:
                job.channel.put(chunks[speech])
                if job.entry.first_frame is None:
                    job.entry.first_frame = time.monotonic()
            if speech.error is not None:
                self._end(job, Status.FAILED, speech.error)
            else:
                self._end_if_over(job)

    def _end_if_over(self, job: _Job) -> None:
        if job.is_over:
            self._end(job, Status.DONE)

    def _end(self, job: _Job, status: Status, error: BaseException | None = None) -> None:
        """The one end of a request."""
        job.lifetime.become(status)
        self.scheduler.remove(job.id)
        del self._jobs[job.id]
        sequence, speech = job.sequence, job.speech
        cancelled = "cancelled" if status is Status.CANCELLED else None
        if sequence is not None:
            if cancelled and not sequence.finish_reason:
                job.channel.put(sequence.completion(cancelled))
            self._release(job, retain=status is not Status.FAILED)  # what failed may have stored NaN
        if speech is not None:
            if status is not Status.FAILED:
                job.channel.put(speech.completion(cancelled))
            speech.close()
        self._ended[status] += 1
        job.channel.end(error)

    def _release(self, job: _Job, *, retain: bool = True) -> None:
        """Give the slot back; what it holds is the prompt as far as it was computed, and the tokens after it. With
        ``retain`` others may begin with it."""
        sequence, pool = job.sequence, self.pool
        if sequence is None or sequence.slot is None or pool is None:
            return
        slot, sequence.slot = sequence.slot, None
        generated = [token.id for token in sequence.tokens][: max(0, slot.cache.length - len(sequence.prompt))]
        pool.release(slot, sequence.prompt.extended(generated), retain=retain and job.request.reuse != "none")

    def _explained(self, error: Exception) -> BaseException:
        backend = self.runner.model.backend if self.runner is not None else None
        if not (isinstance(error, torch.OutOfMemoryError) or (backend and backend.is_out_of_memory(error))):
            return error
        if backend is not None:
            backend.release_memory()
        return OutOfMemory(
            "the device's memory ran out during this request, which is given up; what is loaded stays: ask for fewer "
            "sequences at once or a shorter prompt, or load with a smaller --max-context"
        )

    def check_integrity(self) -> None:
        """Assert what must hold while nothing runs: all that was accepted has ended, and nothing is held for it."""
        assert not self._jobs and not len(self.scheduler), "idle with requests"
        assert sum(self._ended.values()) == self._submitted, f"{self._submitted} accepted, {self._ended} ended"
        if self.pool is not None:
            self.pool.check_integrity()
            assert not self.pool.running, "idle with slots taken"


def _work(engine: weakref.ref[Engine], mailbox: _Mailbox) -> None:
    """The engine's thread. Between steps it holds the engine; while it waits, it does not."""
    with torch.inference_mode():
        while True:
            here = engine()
            if here is None:
                return
            over = mailbox.closed  # before the turn, which then ends all there is
            try:
                seconds = here._turn()
            except BaseException as error:
                here._break(error)
                raise
            del here
            if over:
                return
            if seconds != 0.0:
                mailbox.wait(seconds)


def _answer(work: Callable[[], object], future: Future[object]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
