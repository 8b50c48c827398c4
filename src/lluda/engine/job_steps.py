"""What a step does with its jobs: rows of prompts, tokens, frames of speech.

A job that cannot go on is marked (`Job.fail`), and the others of the step are not: an error in the choice of one token,
in its text or its constraint is that request's alone. Where a step of several fails, each is tried by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lluda.engine.job import Job
from lluda.engine.observer import Reports
from lluda.engine.request import PromptLogprobs, SpeechChunk, Token
from lluda.engine.runner import Runner
from lluda.engine.scheduler import Step
from lluda.engine.sequence import Sequence as TokenSequence
from lluda.engine.speech.speech import Speech, make_frames
from lluda.errors import LludaError, OutOfMemory, RankLost


class JobSteps:
    """Steps of the jobs of one engine, on its thread. ``runner``: as the engine's."""

    def __init__(self, runner: Runner | None, reports: Reports) -> None:
        self._runner, self._reports = runner, reports

    def run(self, step: Step, jobs: Mapping[int, Job]) -> tuple[float, float]:
        """Seconds that its tokens and frames took, and its prompts' rows."""
        started = time.perf_counter()
        decoding = [jobs[number] for number in step.decode]
        if step.together:
            ((number, rows),) = step.prefill
            self._decode_with_prompt(decoding, jobs[number], rows)
        elif decoding:
            self._attempt(decoding, self._decode, self._decode_again)
        if decoding:
            self._reports.step("decode", time.perf_counter() - started, len(decoding))
        if step.frames:
            self._attempt([jobs[number] for number in step.frames], self._speak)
        decoded = time.perf_counter()
        for number, rows in () if step.together else step.prefill:
            begun = time.perf_counter()
            self._attempt([jobs[number]], lambda jobs, rows=rows: self._prefill(jobs[0], rows))  # type: ignore[misc]
            self._reports.step("prefill", time.perf_counter() - begun, rows)
        return decoded - started, time.perf_counter() - decoded

    def _attempt(
        self, jobs: Sequence[Job], work: Callable[[list[Job]], None], alone: Callable[[Job], None] | None = None
    ) -> None:
        """``work`` for those of ``jobs`` that go on. Where that fails, ``alone`` is tried for each; without it, or
        where there is but one, the error is theirs. One by which the device is lost is the engine's."""
        going = [job for job in jobs if job.goes_on]
        if not going:
            return
        try:
            work(going)
        except Exception as error:
            for job in going:
                if alone is None or len(going) == 1:
                    self.fail(job, error)
                else:
                    self._attempt([job], lambda jobs: alone(jobs[0]))

    def fail(self, job: Job, error: Exception) -> None:
        """``job`` cannot go on, for want of memory or by a fault. After one by which the device is lost nobody can:
        raises it."""
        if isinstance(error, RankLost):
            raise error
        if self._runner is not None and not isinstance(error, LludaError) and self._runner.model.backend.is_lost():
            raise error
        job.fail(self._explained(error))

    def _prefill(self, job: Job, wanted: int) -> None:
        sequence, runner = job.sequence, self._runner
        assert sequence is not None and sequence.slot is not None and runner is not None, "only these have prompts"
        cache, prompt = sequence.slot.cache, sequence.prompt
        rows = runner.chunk(cache.length, len(prompt), wanted)
        score = sequence.score if sequence.scores_prompt else None
        self._computed(job, runner.prefill_rows(prompt, cache, rows, sequence.observe, score))

    def _computed(self, job: Job, logits: Tensor | None) -> None:
        """Rows of a prompt were; ``logits`` after its last give the first token."""
        sequence, runner = job.sequence, self._runner
        assert sequence is not None and sequence.slot is not None and runner is not None, "only these have prompts"
        if len(sequence.prompt) > (runner.few_rows or 0):  # else a longer prompt sums the same rows in another order
            sequence.slot.prompt_rows = sequence.slot.cache.length
        if sequence.captured is not None:
            sequence.slot.captured = sequence.captured.hidden
        if logits is not None:
            self._begin_answer(job, sequence, runner, logits)
        if job.ahead is not None and job.goes_on:
            job.ahead.compute(sequence.prompt, sequence.captured, sequence.computed)

    def _begin_answer(self, job: Job, sequence: TokenSequence, runner: Runner, logits: Tensor) -> None:
        """With ``logits`` after the prompt's last row."""
        if sequence.scores_prompt:
            job.channel.put(PromptLogprobs(sequence.index, tuple(sequence.prompt_logprobs)))
        if not sequence.max_tokens:
            sequence.end_without_tokens()
            self._finish_text(job)
            return
        with runner.model.backend.single_threaded_torch():
            self._sampled(job, lambda s: s.sample(logits))
        if not job.goes_on:
            return
        now = time.monotonic()
        self._reports.tell(lambda observer: observer.first_token(now - job.submitted))
        if job.speech is not None:
            self._speak([job])

    def _decode_with_prompt(self, decoding: list[Job], prompt: Job, rows: int) -> None:
        """A token of each, and the next ``rows`` of one's prompt."""

        def together(jobs: list[Job]) -> None:
            self._take_together(jobs[:-1], jobs[-1], rows)

        def alone(job: Job) -> None:
            if job is prompt:
                self._prefill(job, rows)
            else:
                self._decode_again(job)

        self._attempt([*decoding, prompt], together, alone)

    def _take_together(self, decoding: list[Job], job: Job, rows: int) -> None:
        sequence, runner = job.sequence, self._runner
        assert sequence is not None and sequence.slot is not None and runner is not None, "only these have prompts"
        sequences = [each.sequence for each in decoding if each.sequence]
        ids = [each.tokens[-1].id for each in sequences]
        caches = [each.slot.cache for each in sequences if each.slot]
        logits, last = runner.step_with_prompt(ids, caches, sequence.prompt, sequence.slot.cache, rows)
        with runner.model.backend.single_threaded_torch():
            for each, row in zip(decoding, logits, strict=True):
                self._sampled(each, lambda s, row=row: s.sample(row))  # type: ignore[misc]
        self._attempt([job], lambda jobs: self._computed(jobs[0], last))

    def _decode_again(self, job: Job) -> None:
        """After a step that failed, of which some parts may have been computed."""
        assert job.sequence is not None, "only sequences decode"
        job.sequence.forget_unsampled()
        self._decode([job])

    def _decode(self, jobs: list[Job]) -> None:
        runner, sequences = self._runner, [job.sequence for job in jobs if job.sequence]
        assert runner is not None, "only sequences decode"
        ids = [sequence.tokens[-1].id for sequence in sequences]
        caches = [sequence.slot.cache for sequence in sequences if sequence.slot]
        choices = runner.choose_step(ids, caches, [sequence.sampler for sequence in sequences])
        with runner.model.backend.single_threaded_torch():
            for job, choice in zip(jobs, choices, strict=True):
                self._sampled(job, lambda s, choice=choice: s.take(s.sampler.accept(choice)))  # type: ignore[misc]

    def _sampled(self, job: Job, choose: Callable[[TokenSequence], Token]) -> None:
        """One token of ``job``."""
        sequence, speech = job.sequence, job.speech
        assert sequence is not None, "only sequences decode"
        try:
            token = choose(sequence)
            job.channel.put(token)
            if speech is not None and token.id not in job.request.end_ids and not speech.ended:
                speech.push_text(token.id)
            if sequence.finish_reason:
                self._finish_text(job)
        except Exception as error:
            self.fail(job, error)

    def _finish_text(self, job: Job) -> None:
        assert job.sequence is not None, "what ended"
        job.channel.put(job.sequence.completion())
        if job.speech is not None and not job.speech.ended:
            job.speech.end_text()

    def _speak(self, jobs: list[Job]) -> None:
        ready = {job.speech: job for job in jobs if job.speech is not None and job.speech.is_ready}
        if not ready:
            return
        chunks = make_frames(list(ready), self._reports)
        for speech, job in ready.items():
            try:
                self._take_frame(job, speech, chunks.get(speech))
            except Exception as error:
                self.fail(job, error)

    def _take_frame(self, job: Job, speech: Speech, chunk: SpeechChunk | None) -> None:
        if chunk is not None:
            job.hand_out(chunk, self._reports, speech.stack.sample_rate)
        if speech.error is not None:
            raise speech.error
        job.go_on_speaking()

    def _explained(self, error: Exception) -> BaseException:
        """``error``, or what to do about it where it is want of memory."""
        backend = self._runner.model.backend if self._runner is not None else None
        if not (isinstance(error, torch.OutOfMemoryError) or (backend and backend.is_out_of_memory(error))):
            return error
        if backend is not None:
            backend.release_memory()
        return OutOfMemory(
            "the device's memory ran out during this request, which is given up; what is loaded stays: ask for fewer "
            "sequences at once or a shorter prompt, or load with a smaller --max-context"
        )
