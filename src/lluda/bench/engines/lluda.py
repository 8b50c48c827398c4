"""lluda itself, through the steps that ``generate`` runs: `Runner.prefill` and `Runner.step`."""

from __future__ import annotations

from collections.abc import Sequence

from lluda.bench.prediction.weight_traffic import bytes_per_step, weights_per_step
from lluda.bench.process.job import Job
from lluda.bench.session import RELEASED_SAMPLING, EngineInfo, Session, SteppingSession
from lluda.bench.source import open_source
from lluda.engine.kv_cache import KVCache
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampler import Sampler
from lluda.models.thinker import PREFIX as THINKER_PREFIX


def open_session(job: Job) -> Session:
    """Load what the job's source gives, with its backend and format."""
    return LludaSession(job)


class LludaSession(SteppingSession):
    """One KV cache per stream; all streams share each step."""

    samples = True

    def __init__(self, job: Job) -> None:
        source = open_source(job)
        self._runner, tensors = source.runner(job.positions)
        text = source.config.text
        # An Omni model's decoder has the names of a text model's after its thinker's.
        sizes = {name.removeprefix(THINKER_PREFIX): size for name, size in tensors.items()}
        bytes_per_weight = bytes_per_step(text, sizes) / weights_per_step(text)
        backend = self._runner.model.backend
        self._info = EngineInfo(source.format, bytes_per_weight, backend.describe(), backend.name)
        self._caches: list[KVCache] = []
        self._samplers: list[Sampler] = []

    @property
    def runner(self) -> Runner:
        """See ``Session``."""
        return self._runner

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        return self._info

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See ``SteppingSession``."""
        self._samplers = []
        self._caches = [self._runner.new_cache() for _ in prompts]
        rows = [self._runner.prefill(list(p), cache) for p, cache in zip(prompts, self._caches, strict=True)]
        return [int(row.argmax()) for row in rows]

    def sample(self, prompts: Sequence[Sequence[int]]) -> None:
        """See ``SteppingSession``."""
        vocabulary = self._runner.model.config.vocab_size
        self._samplers = [Sampler(RELEASED_SAMPLING, prompt, vocabulary) for prompt in prompts]

    def step(self, tokens: list[int]) -> list[int]:
        """See ``SteppingSession``."""
        if not self._samplers and self._runner.launches_whole(len(tokens)):
            return self._runner.greedy_step(tokens, self._caches)
        if self._samplers:
            choices = self._runner.choose_step(tokens, self._caches, self._samplers)
            with self._runner.model.backend.single_threaded_torch():
                return [one.accept(choice).id for one, choice in zip(self._samplers, choices, strict=True)]
        logits = self._runner.step(tokens, self._caches)
        # As the sampler chooses greedily: numpy's argmax (see lluda.engine.sampling.sampler).
        chosen: list[int] = logits.cpu().numpy().argmax(-1).tolist()
        return chosen
