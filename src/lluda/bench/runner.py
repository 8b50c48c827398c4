"""A benchmark run: every engine in turn, in a process of its own, round after round, so that what disturbs the machine
disturbs all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean

from lluda.backends import best_device, device_runtime, memory_available, usable_device
from lluda.bench.engines import ENGINES, PEERS, require_peer
from lluda.bench.formats import BYTES_PER_WEIGHT, format_name
from lluda.bench.machine import available_cores, read_machine
from lluda.bench.prediction.prediction import Prediction
from lluda.bench.prediction.products import Products
from lluda.bench.prediction.weight_traffic import weights_per_step
from lluda.bench.process.job import LISTENING_TESTS, OMNI_TESTS, Job, Plan
from lluda.bench.process.peer_files import prepare_files, warm_page_cache
from lluda.bench.process.supervisor import BANDWIDTH, run_worker
from lluda.bench.random_weights import require_memory
from lluda.bench.report import Bandwidth, Conditions, EngineState, MeasuredModel, Report, Row, make_row
from lluda.bench.session import EngineInfo
from lluda.bench.source import read_random_config
from lluda.config.decoder import DecoderConfig
from lluda.config.model import ModelConfig
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import InvalidRequest, LimitExceeded, LludaError, UnsupportedModel
from lluda.weights.model_folder import VOCABULARIES, tokenizer_files

Progress = Callable[[str, int, int], None]
"""Called with what is going on, and work done and in all (turns of engines, or bytes of a copy)."""


_OF_BANDWIDTH = {"tg", "streams", "speech"}
"""Families whose rows have a share of the machine's bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to run. ``random``: the network of a config.json with random weights made on the device, each engine once
    and each test ``repeat`` times; else a checkpoint, each engine ``repeat`` times. ``formats`` are lluda's; peers run
    in BF16 (llama.cpp: in the type its file has). ``timeout``: seconds for one round of an engine. ``threads`` None:
    every core this process may use. ``tensor_parallel``: processes that share lluda's text model."""

    random: bool = False
    against: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("BF16",)
    backend: str = "auto"
    device: str = "cpu"
    plan: Plan = field(default_factory=Plan)
    repeat: int = 5
    threads: int | None = None
    tensor_parallel: int = 1
    timeout: float = 900.0
    cache_dir: Path | None = None
    allow_unknown_config: bool = False

    def __post_init__(self) -> None:
        for name in self.against:
            if require_peer(name) != "transformers" and self.random:
                raise InvalidRequest(f"random weights are compared with transformers alone, not with {name}")
        for name in self.formats:
            format_name(name)
        if self.tensor_parallel < 1:
            raise InvalidRequest(f"tensor_parallel (--tp) must be at least 1, not {self.tensor_parallel}")
        if self.repeat < 1 or self.timeout <= 0 or (self.threads is not None and self.threads < 1):
            raise InvalidRequest("repeat, timeout and threads must be at least 1")


@dataclass(slots=True)
class _Entrant:
    """One engine in one format, and what is known of it so far."""

    job: Job
    status: str = "ok"
    detail: str = ""
    info: EngineInfo | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    reads: dict[str, float] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    """The device's bandwidth in GB/s around the turn of each sample."""

    @property
    def format(self) -> str:
        return self.info.format if self.info else self.job.format

    def take_turn(self, timeout: float) -> float:
        """Run the job once; returns the load of other work meanwhile. After a failure there are no more turns."""
        result = run_worker(self.job, timeout)
        self.info = result.info or self.info
        for sample in result.samples:
            self.samples.setdefault(sample.test, []).append(sample.value)
            self.units[sample.test] = sample.unit
            if sample.reads is not None:
                self.reads[sample.test] = sample.reads
        if result.error is not None:
            self.status, self.detail = "failed", result.error
        elif self.info:
            self.detail = self.info.settings
        return result.other_load

    def state(self) -> EngineState:
        return EngineState(self.job.engine, self.format, ENGINES[self.job.engine].version, self.status, self.detail)


@dataclass(slots=True)
class _Streaming:
    """Turns between those of the engines: the device's bandwidth."""

    job: Job
    timeout: float
    samples: list[float] = field(default_factory=list)
    method: str = ""
    failures: int = 0

    def take_turn(self) -> None:
        """LludaError if the first one fails. A later one must not cost what the engines have measured."""
        result = run_worker(self.job, self.timeout, BANDWIDTH)
        if result.error is not None and not self.samples:
            raise LludaError(f"the machine's bandwidth could not be measured: {result.error}")
        if result.error is not None:
            self.failures += 1
            return
        self.samples += [sample.value for sample in result.samples]
        self.method = result.info.settings if result.info else ""

    @property
    def around_the_last_turn(self) -> float:
        """Mean of what was measured before and behind it."""
        return mean(self.samples[-2:])

    @property
    def bandwidth(self) -> Bandwidth | None:
        failed = f"; {self.failures} measurements failed" if self.failures else ""
        return Bandwidth.of(self.samples, self.method + failed)


def run_bench(model: str, settings: Settings, progress: Progress | None = None) -> Report:
    """Measure ``model``: a folder, .gguf file or hub name, or with ``settings.random`` a folder with a config.json.

    A peer that is not installed or cannot run the model is reported, as is an engine that fails; the others go on.

    Raises:
        ModelNotFound, CorruptFile, UnsupportedModel: the model cannot be had, read or run by lluda.
        LimitExceeded: prompts longer than the model's context.
        InvalidRequest: tests of speech or sound of a model without them; a device that cannot be used.
        OutOfMemory: a device that random weights do not fit; the message says by how much.
    """
    notify: Progress = progress or (lambda _what, _done, _total: None)
    if settings.device == "auto":
        settings = replace(settings, device=best_device())
    path, config = _find(model, settings)
    if settings.random:
        settings = _for_random_weights(path, config, settings)
    _require_runnable(path, config, settings)
    threads = settings.threads or available_cores()
    entrants = _entrants(path, config, settings, threads, notify)
    bandwidth, other_load = _run_rounds(entrants, settings, notify)
    return Report(
        model=MeasuredModel(
            str(path),
            config.model_type,
            "random, made on the device" if settings.random else "the checkpoint's",
            weights_per_step(config.text),
        ),
        machine=read_machine((*(ENGINES[peer].distribution for peer in PEERS), "numpy", "triton")),
        settings=_conditions(settings, threads),
        bandwidth=bandwidth,
        other_load=other_load,
        engines=tuple(entrant.state() for entrant in entrants),
        rows=tuple(row for entrant in entrants for row in _predicted(_rows(entrant, config.text), entrant, config)),
    )


def _find(model: str, settings: Settings) -> tuple[Path, ModelConfig]:
    if settings.random:
        return Path(model), read_random_config(Path(model), allow_unknown=settings.allow_unknown_config)
    files = ModelFiles.find(model, allow_unknown_config=settings.allow_unknown_config)
    return files.path, files.config


def _for_random_weights(folder: Path, config: ModelConfig, settings: Settings) -> Settings:
    """Without tests that the model has nothing for. InvalidRequest, OutOfMemory: the device cannot run it."""
    tests = tuple(test for test in settings.plan.tests if _has(config, test))
    if set(LISTENING_TESTS) & set(tests) and not any(name in tokenizer_files(folder) for name in VOCABULARIES):
        raise InvalidRequest(f"listen needs a tokenizer and a template: copy the model's into {folder}")
    speaks = bool({"speech", "turn", *LISTENING_TESTS} & set(tests))
    device = str(usable_device(settings.device))
    for name in settings.formats:
        free = memory_available(settings.device)
        require_memory(
            config, format_name(name), speech=speaks, device=device, free=free, ranks=settings.tensor_parallel
        )
    return replace(settings, plan=replace(settings.plan, tests=tests))


def _has(config: ModelConfig, test: str) -> bool:
    """Whether a model has what a test is of."""
    omni = config.omni
    if test in LISTENING_TESTS:
        return omni is not None
    return test not in OMNI_TESTS or (omni is not None and (test in ("audio", "vision") or omni.speech is not None))


def _require_runnable(path: Path, config: ModelConfig, settings: Settings) -> None:
    """Before anything is measured. Errors as `run_bench`."""
    for test in settings.plan.tests:
        if not _has(config, test):
            raise InvalidRequest(f"{path}: test {test} needs an Omni model that has it; leave it out of --tests")
    needed, limit = settings.plan.positions(config.text.max_context), config.text.max_context
    if settings.plan.text_tests and needed > limit:
        raise LimitExceeded(
            f"the tests need {needed} positions but the model has {limit}; use smaller --prompt or --gen"
        )
    usable_device(settings.device)


def _entrants(path: Path, config: ModelConfig, settings: Settings, threads: int, notify: Progress) -> list[_Entrant]:
    text = config.text
    job = Job(
        engine="lluda",
        model=str(path),
        random=settings.random,
        backend=settings.backend,
        device=settings.device,
        threads=threads,
        tensor_parallel=settings.tensor_parallel,
        vocab_size=text.vocab_size,
        context=text.max_context,
        allow_unknown_config=settings.allow_unknown_config,
        plan=settings.plan,
        rounds=settings.repeat if settings.random else 1,
    )
    ours = [_Entrant(replace(job, format=format_name(name))) for name in settings.formats]
    peers = [
        _peer(replace(job, engine=name, tensor_parallel=1), path, config, settings, notify) for name in settings.against
    ]
    return ours + peers


def _peer(job: Job, path: Path, config: ModelConfig, settings: Settings, notify: Progress) -> _Entrant:
    engine = ENGINES[job.engine]
    if not engine.installed:
        remedy = f"pip install {engine.distribution} (or lluda[bench])"
        return _Entrant(job, status="not installed", detail=remedy)

    def copying(done: int, total: int) -> None:
        notify(f"copying for {job.engine}", done, total)

    try:
        job = replace(job, plan=replace(job.plan, tests=_peer_tests(job, path)))
        opened = prepare_files(job.engine, path, config, settings.cache_dir, copying)
    except UnsupportedModel as error:
        return _Entrant(job, status="not supported", detail=str(error))
    return _Entrant(replace(job, model=opened))


def _peer_tests(job: Job, path: Path) -> tuple[str, ...]:
    """Those of the job's tests that its engine can run. UnsupportedModel: there are none."""
    speaks = ENGINES[job.engine].speech is not None and path.is_dir() and not job.random and job.device == "cpu"
    tests = job.plan.text_tests + (job.plan.omni_tests if speaks else ())
    if not tests:
        raise UnsupportedModel(f"{job.engine} runs none of the tests {', '.join(job.plan.tests)} of this model")
    return tests


def _run_rounds(entrants: Sequence[_Entrant], settings: Settings, notify: Progress) -> tuple[Bandwidth | None, float]:
    """All turns; the machine's bandwidth, and the largest load of other work during a turn."""
    rounds = entrants[0].job.rounds
    turns = [(number, entrant) for number in range(1, settings.repeat // rounds + 1) for entrant in entrants]
    streaming = _Streaming(entrants[0].job, settings.timeout)
    wanted, loads = bool(_OF_BANDWIDTH & set(settings.plan.tests)), [0.0]
    models = [] if settings.random else [entrant.job.model for entrant in entrants if entrant.status == "ok"]
    for path in dict.fromkeys(models):
        notify("reading the weights once", 0, len(turns))
        warm_page_cache(Path(path))
    if wanted:
        streaming.take_turn()
    for done, (number, entrant) in enumerate(turns):
        notify(f"round {number} of {settings.repeat // rounds}: {entrant.job.engine}", done, len(turns))
        if entrant.status != "ok":
            continue
        loads.append(entrant.take_turn(settings.timeout * rounds))
        if wanted:
            streaming.take_turn()
            entrant.bandwidths += [streaming.around_the_last_turn] * rounds
    return streaming.bandwidth, max(loads)


def _rows(entrant: _Entrant, text: DecoderConfig) -> list[Row]:
    return [
        make_row(
            entrant.job.engine,
            entrant.format,
            test,
            entrant.units[test],
            samples,
            entrant.reads.get(test) or _bytes_per_token(test, text, entrant.info),
            entrant.bandwidths,
        )
        for test, samples in entrant.samples.items()
    ]


def _predicted(rows: list[Row], entrant: _Entrant, config: ModelConfig) -> list[Row]:
    """The same rows, with what was to be expected of them where products were measured."""
    products, info = Products.of_samples({row.test: row.median for row in rows}), entrant.info
    if products is None or info is None:
        return rows
    bytes_per_weight = info.bytes_per_weight or BYTES_PER_WEIGHT[entrant.job.format]
    prediction, plan = Prediction(config, products, bytes_per_weight, info.backend), entrant.job.plan
    expected = {row.test: row.value for row in prediction.rows(plan.prompts, plan.generate)}
    return [replace(row, predicted=expected.get(row.test)) for row in rows]


def _bytes_per_token(test: str, text: DecoderConfig, info: EngineInfo | None) -> float | None:
    """Bytes of weights read for one token of a decode test: streams share one reading. How many experts several streams
    choose together depends on their texts, so that is left open."""
    greedy = test.removesuffix("_sampled")
    streams = int(greedy.removeprefix("streams")) if test.startswith("streams") else 1
    decodes = test.startswith(("tg", "streams"))
    if info is None or not decodes or (text.moe is not None and streams > 1):
        return None
    return weights_per_step(text) * info.bytes_per_weight / streams


def _conditions(settings: Settings, threads: int) -> Conditions:
    options = asdict(settings) | {"cache_dir": str(settings.cache_dir) if settings.cache_dir else None}
    device = device_runtime(settings.device).name()
    return Conditions(threads, settings.repeat, device, options)
