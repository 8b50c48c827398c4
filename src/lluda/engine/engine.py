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
from collections.abc import Callable
from typing import TypeVar, cast

import torch

from lluda.engine.cache import MIN_REUSED, CachePool, Prefix
from lluda.engine.forked import require_own_threads
from lluda.engine.job import Job
from lluda.engine.job_steps import JobSteps
from lluda.engine.mailbox import Call, Mailbox
from lluda.engine.observer import EngineObserver, Reports, StepKind
from lluda.engine.request import Request, SpeechEvent, Status
from lluda.engine.runner import Runner
from lluda.engine.scheduler import LEAST_ROWS, Entry, Scheduler
from lluda.engine.sequence import Sequence as TokenSequence
from lluda.engine.speech.speech import Speech, SpeechStack
from lluda.engine.speech.talker_prompt import CapturedHiddenStates
from lluda.engine.stats import EngineStats
from lluda.engine.stream import CAPACITY, Channel, Stream
from lluda.errors import ContextExceeded, DeadlineExceeded, InvalidRequest, LludaError, RankLost
from lluda.inputs.text.tokenizer import Tokenizer

MAX_RUNNING = 64
"""Requests that run at once, where memory allows."""

_DEADLINE_SECONDS = 0.05
"""How often deadlines are looked at while nothing can run."""

_T = TypeVar("_T")


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
        self._stack: SpeechStack | None = None
        self._mailbox = Mailbox()
        self._jobs: dict[int, Job] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = dict.fromkeys((Status.DONE, Status.CANCELLED, Status.FAILED), 0)
        self._submitted = self._steps = self._reused = 0
        chunk = runner.prefill_chunk if runner else 1
        whole = runner is not None and runner.deterministic and runner.few_rows is None
        self.scheduler = Scheduler(max_running, chunk, whole)
        if runner is not None:
            self.scheduler.rows_together = runner.rows_together
            self.scheduler.least_rows = max(LEAST_ROWS, runner.model.backend.flat_rows)
        self.pool = CachePool(runner.new_cache, kv_positions, retained_positions) if runner else None
        self.error: BaseException | None = None
        """The fault that broke the engine, after which nothing is accepted."""
        self._fault: LludaError | None = None
        self.turn_started: float | None = None
        """When the turn that is under way began, of ``time.monotonic()``; None while there is nothing to do."""
        self.heartbeat = 0.0
        """When the last turn ended."""
        self._reports = Reports()
        self._job_steps = JobSteps(runner, self._reports)
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
            self._require_open()
            self._submitted += len(jobs)
            self._mailbox.submitted.extend(jobs)
            self._start()
        self._mailbox.wake()
        return Stream(channel, self)

    def call(self, work: Callable[[], _T], kind: StepKind | None = None) -> _T:
        """Run ``work`` on the engine's thread, between two steps, and wait for what it returns or raises: for what else
        computes with the model's weights, as encoders. ``kind``: as what its time is told to the observer."""
        require_own_threads()
        if threading.current_thread() is self._thread:
            return work()
        call = Call(work, kind)
        with self._lock:
            self._require_open()
            self._mailbox.calls.append(call)
            self._start()
        self._mailbox.wake()
        return cast("_T", call.result.result())

    @property
    def observer(self) -> EngineObserver | None:
        """Who is told what it does."""
        return self._reports.observer

    @observer.setter
    def observer(self, observer: EngineObserver | None) -> None:
        self._reports.observer = observer

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
            kv_budget=self.pool.budget if self.pool else 0,
            cached_positions=sum(slot.cache.length for slot in retained),
            kv_bytes=self.pool.nbytes if self.pool else 0,
            reused_tokens=self._reused,
        )

    def release_prefixes(self) -> None:
        """Let go of what is retained of ended requests."""
        if self.pool is not None:
            self.call(self._clear_prefixes)

    def fail(self, error: LludaError) -> None:
        """Nothing can be computed any more, because of ``error``: all that has not ended fails by it."""
        self._fault = error
        with self._lock:
            if not self._mailbox.closed:
                self._start()
        self._mailbox.wake()

    def close(self) -> None:
        """Cancel what has not ended, and end the thread. Nothing can be submitted any more."""
        with self._lock:
            self._mailbox.close()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _job(self, request: Request, channel: Channel) -> Job:
        """A request that was looked at. Errors as `submit`."""
        number = next(self._ids)
        spoken = request.speech
        captured = None
        stack = None
        if spoken is not None or request.captures:
            if self._speech is None:
                raise InvalidRequest("this engine has nothing that speaks; load an Omni model that does")
            stack = self._stack = self._speech()
            captured = CapturedHiddenStates(request.prompt, stack.talker.config.accept_hidden_layer)
        sequence = None
        if request.text is None:
            if self.runner is None:
                raise InvalidRequest("this engine only speaks given texts; load the whole model to ask it something")
            config, limit = self.runner.model.config, self.runner.cache_options.max_length
            sequence = TokenSequence(request, self.tokenizer, config.vocab_size, limit, captured)
        reuse = sequence is not None and request.reuse != "none"
        speech = None
        if stack and spoken:
            speech = Speech(stack, spoken, request.prompt, captured, request.index, reuse=reuse)
        ahead = stack.prefixes if stack and speech is None and reuse else None
        assert sequence or speech, "a request with a text to speak is spoken"
        positions = sequence.positions if sequence else 0
        if self.pool is not None and positions > self.pool.budget:
            raise ContextExceeded(
                f"the request may take {positions} positions but the KV cache has {self.pool.budget}; ask for fewer "
                "max_tokens, or load with more (max_sequences)"
            )
        entry = Entry(
            number,
            positions,
            shares_steps=request.prompt.positions is None and not (sequence and sequence.scores_prompt),
            priority=request.priority,
            deadline=request.deadline,
            spoken=speech is not None,
        )
        return Job(number, request, channel, entry, sequence, speech, ahead)

    def _require_open(self) -> None:
        if self.error is not None:
            raise LludaError(f"the engine stopped at an error ({type(self.error).__name__}); load the model again")
        if self._mailbox.closed:
            raise LludaError("this engine was closed; load the model again")

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            work = _work, weakref.ref(self), self._mailbox
            self._thread = threading.Thread(target=work[0], args=work[1:], name="lluda engine", daemon=True)
            self._thread.start()

    # On the engine's thread.

    def _clear_prefixes(self) -> None:
        assert self.pool is not None, "only what answers retains anything"
        self.pool.clear()
        if self._stack is not None:
            self._stack.prefixes.clear()

    def _turn(self) -> float | None:
        """Do what is to be done next. Seconds to wait before the next turn, where nothing happens meanwhile; None:
        for ever."""
        self.turn_started = time.monotonic()
        if self._fault is not None:
            raise self._fault
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
            self._steps += 1
            self.scheduler.measured(step, *self._job_steps.run(step, self._jobs))
            for number in step.numbers:
                self._settle(self._jobs[number])
        self.heartbeat = time.monotonic()
        if not step.is_empty or self._mailbox.calls:
            return 0.0
        self.turn_started = None
        return _DEADLINE_SECONDS if self.scheduler.has_deadlines else None

    def _break(self, error: BaseException) -> None:
        """A fault of the engine itself: nobody is left waiting, and nothing is accepted any more."""
        with self._lock:  # whoever submits has been received below, or sees that it is closed
            self.error = error
            self._mailbox.close()
        self.turn_started = None
        self._receive()
        for job in list(self._jobs.values()):
            self._end(job, Status.FAILED, error)

    def _receive(self) -> None:
        while self._mailbox.calls:
            call, started = self._mailbox.calls.popleft(), time.perf_counter()
            call.run()
            if call.kind is not None:
                self._reports.step(call.kind, time.perf_counter() - started, 1)
            if self._jobs and not self._mailbox.closed:
                break  # the others come after a step: answers that are under way do not wait for all of them
        while self._mailbox.submitted:
            job = self._mailbox.submitted.popleft()
            self._jobs[job.id] = job
            self.scheduler.add(job.entry)

    def _expire(self) -> None:
        for number in self.scheduler.expired(time.monotonic()):
            waited = "the deadline passed before the request could begin; try again later, or give it more time"
            self._end(self._jobs[number], Status.FAILED, DeadlineExceeded(waited))

    def _admit(self) -> None:
        while (entry := self.scheduler.next_to_admit()) is not None:
            job = self._jobs[entry.id]
            if (self.pool is not None and not self.pool.fits(entry.positions)) or self._shares_prompt(job):
                return
            try:
                self._begin(job)
            except Exception as error:
                self._job_steps.fail(job, error)
            self._settle(job)

    def _shares_prompt(self, job: Job) -> bool:
        """Whether another answer to the very same prompt is computing it now: it is worth waiting for its rows."""
        prompt = job.request.prompt
        if len(prompt) <= MIN_REUSED or job.request.reuse == "none" or job.request.sampling.prompt_logprobs is not None:
            return False
        same = (other for other in self._jobs.values() if other.entry.running and other.request.prompt is prompt)
        return any(other.sequence.prompt_left for other in same if other.sequence is not None)

    def _begin(self, job: Job) -> None:
        sequence, pool = job.sequence, self.pool
        job.lifetime.become(Status.RUNNING)
        job.entry.running = True
        queued = time.monotonic() - job.submitted
        self._reports.tell(lambda observer: observer.began(queued))
        if sequence is None:
            job.speak_text()
            return
        assert pool is not None, "a sequence has a runner"
        prefix = self._prefix(job, sequence, pool)
        exact = job.request.sampling.max_tokens == sequence.max_tokens  # else it is the room that there is
        slot = pool.acquire(sequence.positions, sequence.prompt, prefix, exact=exact)
        sequence.begin(slot, prefix.rows if prefix else 0)
        self._reused += sequence.reused

    def _prefix(self, job: Job, sequence: TokenSequence, pool: CachePool) -> Prefix | None:
        """What the prompt may begin with, as far as the request allows."""
        runner = self.runner
        assert runner is not None, "a sequence has a runner"
        reuse = job.request.reuse or ("prompt" if runner.deterministic else "any")
        if reuse == "none" or sequence.scores_prompt:  # stored rows have no logits
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

    def _settle(self, job: Job) -> None:
        """After what was done for it: end it where it is over, and give back what it needs no more."""
        if job.error is not None:
            self._end(job, Status.FAILED, job.error)
            return
        if job.sequence is not None and job.sequence.finish_reason:
            self._release(job)
        if job.is_over:
            self._end(job, Status.DONE)

    def _end(self, job: Job, status: Status, error: BaseException | None = None) -> None:
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
        self._reports.tell(lambda observer: observer.ended(status, error))
        job.channel.end(error)

    def _release(self, job: Job, *, retain: bool = True) -> None:
        """Give the slot back; what it holds is the prompt as far as it was computed, and the tokens after it. With
        ``retain`` others may begin with it."""
        sequence, pool = job.sequence, self.pool
        if sequence is None or sequence.slot is None or pool is None:
            return
        slot, sequence.slot = sequence.slot, None
        generated = [token.id for token in sequence.tokens][: max(0, slot.cache.length - len(sequence.prompt))]
        pool.release(slot, sequence.prompt.extended(generated), retain=retain and job.request.reuse != "none")

    def check_integrity(self) -> None:
        """Assert what must hold while nothing runs: all that was accepted has ended, and nothing is held for it."""
        assert not self._jobs and not len(self.scheduler), "idle with requests"
        assert sum(self._ended.values()) == self._submitted, f"{self._submitted} accepted, {self._ended} ended"
        if self.pool is not None:
            self.pool.check_integrity()
            assert not self.pool.running, "idle with slots taken"


def _work(engine: weakref.ref[Engine], mailbox: Mailbox) -> None:
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
                if isinstance(error, RankLost):  # a fault of what lies outside, of which the requests are told
                    return
                raise
            del here
            if over:
                return
            if seconds != 0.0:
                mailbox.wait(seconds)
