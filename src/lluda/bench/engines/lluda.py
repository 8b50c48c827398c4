"""lluda itself, through the engine that ``generate`` uses: `Generator.prefill` and `Generator.step`."""

from __future__ import annotations

from collections.abc import Sequence

from lluda.bench.formats import held_format, load_options
from lluda.bench.job import Job
from lluda.bench.session import RELEASED_SAMPLING, EngineInfo, Session, SteppingSession
from lluda.bench.weight_traffic import bytes_per_step, weights_per_step
from lluda.config.model import resolve_dtype
from lluda.engine.generation import Generator
from lluda.engine.kv_cache import KVCache
from lluda.engine.loading import LoadOptions, ModelFiles, load_network
from lluda.engine.sampler import Sampler
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.thinker import PREFIX as THINKER_PREFIX
from lluda.weights.loader import LoadReport


def open_session(job: Job) -> Session:
    """Load the folder or .gguf file with the job's backend and format."""
    return LludaSession(job)


class LludaSession(SteppingSession):
    """One KV cache per stream; all streams share each step."""

    samples = True

    def __init__(self, job: Job) -> None:
        options = LoadOptions(
            device=job.device,
            backend=job.backend,
            max_context=job.positions,
            threads=job.threads,
            **load_options(job.format),
        )
        files = ModelFiles.find(job.model, allow_unknown_config=job.allow_unknown_config)
        self._generator, report = _generator(files, options)
        text = files.config.text
        # An Omni model's decoder has the names of a text model's after its thinker's.
        sizes = {name.removeprefix(THINKER_PREFIX): size for name, size in report.sizes.items()}
        self._bytes_per_weight = bytes_per_step(text, sizes) / weights_per_step(text)
        self._format = held_format(job.format, job.model, report.formats)
        self._caches: list[KVCache] = []
        self._samplers: list[Sampler] = []

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        backend = self._generator.model.backend
        return EngineInfo(self._format, self._bytes_per_weight, backend.describe())

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See ``SteppingSession``."""
        self._samplers = []
        self._caches = [self._generator.new_cache() for _ in prompts]
        rows = [self._generator.prefill(list(p), cache) for p, cache in zip(prompts, self._caches, strict=True)]
        return [int(row.argmax()) for row in rows]

    def sample(self, prompts: Sequence[Sequence[int]]) -> None:
        """See ``SteppingSession``."""
        vocabulary = self._generator.model.config.vocab_size
        self._samplers = [Sampler(RELEASED_SAMPLING, prompt, vocabulary) for prompt in prompts]

    def step(self, tokens: list[int]) -> list[int]:
        """See ``SteppingSession``."""
        logits = self._generator.step(tokens, self._caches)
        if self._samplers:
            with self._generator.model.backend.single_threaded_torch():
                return [one.sample(row).id for one, row in zip(self._samplers, logits, strict=True)]
        # As the sampler chooses greedily: numpy's argmax (see lluda.engine.sampler).
        chosen: list[int] = logits.cpu().numpy().argmax(-1).tolist()
        return chosen


def _generator(files: ModelFiles, options: LoadOptions) -> tuple[Generator, LoadReport]:
    """As `lluda.load` makes it, without a tokenizer: the bench feeds ids, and checkpoints from ``lluda synth`` may have
    none."""
    network, report = load_network(files, options)
    dtype = resolve_dtype(options.dtype, files.config.dtype)
    no_text = Tokenizer.empty()
    cache_options = files.cache_options(options, dtype)
    return Generator(network, no_text, (), cache_options, options.prefill_rows), report
