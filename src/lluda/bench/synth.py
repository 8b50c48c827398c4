"""A config's network with random weights made on the device, without a file.

``lluda bench --synth CONFIG_DIR`` says what a GPU (or, with ``--device cpu``, a CPU) would do before 70 GB are
downloaded. Rates are of the engine as it is used, the host in the loop; the share of bandwidth is bytes of weights read
over what a copy on the GPU moves, or a read of the CPU's memory.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from lluda.backends import select_backend
from lluda.bench import bandwidth
from lluda.bench.job import DECODE_PROMPT
from lluda.bench.machine import available_cores, read_machine
from lluda.bench.random_weights import random_parameters
from lluda.bench.report import Bandwidth, Conditions, EngineState, MeasuredModel, Report, Row, make_row
from lluda.bench.synth_speech import speech_samples, wait_for
from lluda.bench.weight_traffic import bytes_per_step, weights_per_step
from lluda.config.model import ModelConfig
from lluda.engine.generation import Generator
from lluda.engine.kv_cache import CacheOptions
from lluda.errors import InvalidRequest, MissingDependency, OutOfMemory
from lluda.files.json_file import read_json_object
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.build import all_parameters, build_text_model, text_parameters
from lluda.parameters import ParameterSpec

if TYPE_CHECKING:
    from lluda.backends.backend import ComputeBackend
    from lluda.models.causal_lm import CausalLM

CONTEXT = 4096
_COPY_BYTES = 4 << 30
_RESERVE = 2 << 30
"""Bytes that caches, activations and graphs take beside the weights."""

_BYTES = {"bf16": 2.0, "packed": 1.52, "q8_0": 34 / 32}
"""Of a weight."""

FORMATS = {"bf16": "BF16", "packed": "packed BF16", "q8_0": "Q8_0"}
"""How weights are held, and what a row calls it."""

Samples = dict[str, tuple[str, list[float]]]
"""By test its unit and its samples."""


@dataclass(frozen=True, slots=True)
class SynthSettings:
    """``backend``: as `select_backend` takes it; ``against``: ``transformers`` or nothing; ``weights``: a key of
    `FORMATS`; ``speech``: whether to measure a voice where there is one; ``prompts``: tokens of the prefills;
    ``generate``: tokens decoded after 128; ``repeat``: rounds; ``threads`` of the CPU, None: all cores;
    ``allow_unknown_config`` as `lluda.load` takes it."""

    device: str = "cuda"
    backend: str = "auto"
    weights: str = "bf16"
    speech: bool = True
    against: tuple[str, ...] = ()
    prompts: tuple[int, ...] = (145, 2048)
    generate: int = 128
    repeat: int = 5
    threads: int | None = None
    allow_unknown_config: bool = False

    def __post_init__(self) -> None:
        if self.weights not in FORMATS:
            raise InvalidRequest(f"weights {self.weights!r:.40} are not one of {', '.join(FORMATS)}")
        if not self.prompts or not all(1 <= rows <= CONTEXT for rows in self.prompts):
            raise InvalidRequest(f"prompts of {self.prompts} tokens: lengths must be from 1 to {CONTEXT}")
        if not 1 <= self.generate <= CONTEXT - DECODE_PROMPT:
            raise InvalidRequest(
                f"{self.generate} tokens to decode: must be from 1 to {CONTEXT - DECODE_PROMPT}, for the context has "
                f"{CONTEXT} positions and {DECODE_PROMPT} go before"
            )
        if self.repeat < 1 or (self.threads is not None and self.threads < 1):
            raise InvalidRequest(f"repeat ({self.repeat}) and threads ({self.threads}) must be at least 1")


def run_synth_bench(config_dir: Path, settings: SynthSettings, told: Callable[[str], None] = print) -> Report:
    """Measure the network of ``config_dir``'s config.json; ``told`` hears what is being done.

    Raises:
        InvalidRequest: a device that cannot be used.
        OutOfMemory: a device that is too small; the message says by how much.
    """
    config, held = read_synth_config(config_dir, allow_unknown=settings.allow_unknown_config), FORMATS[settings.weights]
    threads = settings.threads or available_cores()
    torch.set_num_threads(threads)
    backend = _backend(settings)
    _require_room(config, backend, settings)
    measured = device_bandwidth(backend.device, settings.repeat, threads)
    told(f"{backend.describe()}; making random weights")
    network = _Network(config, backend, settings)
    told(f"measuring, {settings.repeat} rounds of each test")
    samples: Samples = {}
    state = EngineState("lluda", held, None, "ok", backend.describe())
    try:
        for test, values in network.samples(settings):
            samples[test] = values
    except Exception as error:  # what was measured before is kept, as it is of an engine in a process of its own
        traceback.print_exc()
        state = EngineState("lluda", held, None, "failed", f"{type(error).__name__}: {error}")
    states = [state]
    device = _device_name(backend.device)
    step_bytes = network.step_bytes
    rows = [_row("lluda", held, test, *values, step_bytes, measured) for test, values in samples.items()]
    for row in rows:
        told(f"{row.test}: {row.median:.4g} {row.unit}")
    # What they hold is most of the device's memory.
    del network, backend
    gc.collect()
    if settings.device.startswith("cuda"):
        torch.cuda.empty_cache()
    if "transformers" in settings.against:
        told("transformers")
        theirs, state = _peer(config_dir, settings)
        rows += [_row("transformers", "BF16", test, *values, None, measured) for test, values in theirs.items()]
        states.append(state)
    return Report(
        model=MeasuredModel(
            str(config_dir), config.model_type, "random, made on the device", weights_per_step(config.text)
        ),
        machine=read_machine(("transformers", "triton")),
        settings=Conditions(threads, settings.repeat, device, asdict(settings) | {"context": CONTEXT}),
        bandwidth=measured,
        other_load=0.0,
        engines=tuple(states),
        rows=tuple(rows),
    )


def _backend(settings: SynthSettings) -> ComputeBackend:
    """On a GPU the cuda backend, if no other is named: what is measured there is not to be another for want of it."""
    on_gpu = settings.device.startswith("cuda")
    name = "cuda" if on_gpu and settings.backend == "auto" else settings.backend
    return select_backend(name, settings.device, "bf16", "packed" if settings.weights == "packed" else "bf16")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _peer(config_dir: Path, settings: SynthSettings) -> tuple[Samples, EngineState]:
    """transformers' samples and how it fared: what was measured before it is kept whatever it does."""
    from lluda.bench.synth_peer import peer_samples

    try:
        samples = peer_samples(config_dir, settings)
    except MissingDependency as error:
        return {}, EngineState("transformers", "BF16", None, "not installed", str(error))
    except Exception as error:  # it may raise anything
        return {}, EngineState("transformers", "BF16", None, "failed", f"{type(error).__name__}: {error}")
    return samples, EngineState("transformers", "BF16", None, "ok", "BF16, sdpa, dynamic cache, random weights")


def read_synth_config(config_dir: Path, *, allow_unknown: bool = False) -> ModelConfig:
    """The config.json of a folder."""
    path = config_dir / "config.json"
    return ModelConfig.from_hf(read_json_object(path), str(path), allow_unknown=allow_unknown)


def device_bandwidth(device: torch.device, rounds: int, threads: int) -> Bandwidth | None:
    """GB/s (10^9 bytes): of a GPU, read and written by copies on it; of a CPU, read."""
    if device.type != "cuda":
        nbytes = min(bandwidth.BUFFER_BYTES, psutil.virtual_memory().available // 4)
        reading = bandwidth.measure_bandwidth(threads, nbytes)
        return Bandwidth.of([reading.bytes_per_second / 1e9], reading.method)
    nbytes = min(_COPY_BYTES, int(torch.cuda.mem_get_info(device)[0]) // 4)
    source = torch.empty(nbytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    target.copy_(source)
    rates = [2 * nbytes / seconds(lambda: target.copy_(source), device) / 1e9 for _ in range(rounds)]
    return Bandwidth.of(rates, "device-to-device copy, bytes both ways")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``work``, what it started on the device included."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


class _Network:
    """The network under test; speech, where the config has it."""

    def __init__(self, config: ModelConfig, backend: ComputeBackend, settings: SynthSettings) -> None:
        self._config, self._backend = config, backend
        specs = _parameters(config, speech=settings.speech)
        self._parameters = random_parameters(specs, backend, q8_0=settings.weights == "q8_0")
        self._speaks = settings.speech and bool(config.omni and config.omni.speech)
        self._model: CausalLM = build_text_model(config, self._parameters, lambda _: backend)
        options = CacheOptions(CONTEXT, "preallocated")
        self._generator = Generator(self._model, Tokenizer.empty(), (), options, CONTEXT)
        sizes: Mapping[str, int] = {name: value.nbytes for name, value in self._parameters.values.items()}
        prefix = "thinker." if config.omni else ""
        self.step_bytes = bytes_per_step(config.text, {name.removeprefix(prefix): n for name, n in sizes.items()})

    def samples(self, settings: SynthSettings) -> Iterator[tuple[str, tuple[str, list[float]]]]:
        """Every test with its unit and samples, after one warm-up each."""
        yield f"tg{settings.generate}", ("tok/s", list(self._decode(settings)))
        for rows in settings.prompts:
            yield f"pp{rows}", ("tok/s", list(self._prefill(rows, settings.repeat)))
        if self._speaks:
            yield from speech_samples(self._config, self._parameters, self._generator, settings.repeat).items()

    def _decode(self, settings: SynthSettings) -> Iterator[float]:
        cache = self._generator.new_cache()
        for _ in range(settings.repeat + 1):
            cache.truncate(0)
            token = int(self._generator.prefill(self._prompt(DECODE_PROMPT), cache).argmax())
            started = time.perf_counter()
            for _ in range(settings.generate):
                token = self._generator.greedy_step([token], [cache])[0]
            yield settings.generate / (time.perf_counter() - started)

    def _prefill(self, rows: int, repeat: int) -> Iterator[float]:
        cache, prompt = self._generator.new_cache(), self._prompt(rows)

        def run() -> None:
            cache.truncate(0)
            self._generator.prefill(prompt, cache)

        for _ in range(repeat + 1):
            yield rows / seconds(run, self._backend.device)

    def _prompt(self, rows: int) -> list[int]:
        return [7 * row % self._config.text.vocab_size for row in range(rows)]


def _row(
    engine: str, held: str, test: str, unit: str, samples: list[float], step_bytes: float | None,
    bandwidth: Bandwidth | None,
) -> Row:  # fmt: skip
    """The first sample is the warm-up's."""
    roofs = [bandwidth.median] * len(samples) if bandwidth else []
    return make_row(engine, held, test, unit, samples[1:], step_bytes if test.startswith("tg") else None, roofs)


def _parameters(config: ModelConfig, *, speech: bool) -> list[ParameterSpec]:
    return all_parameters(config) if speech else text_parameters(config)


def _require_room(config: ModelConfig, backend: ComputeBackend, settings: SynthSettings) -> None:
    on_gpu = backend.device.type == "cuda"
    free = torch.cuda.mem_get_info(backend.device)[0] if on_gpu else psutil.virtual_memory().available
    require_room(config, settings, str(backend.device), int(free))


def require_room(config: ModelConfig, settings: SynthSettings, device: str, free: int) -> None:
    """OutOfMemory if the network does not fit ``free`` bytes of ``device``: by how much, and what would fit."""

    def needed(weights: str, *, speech: bool) -> float:
        specs = _parameters(config, speech=speech)
        return _BYTES[weights] * sum(spec.elements for spec in specs if spec.tied_to is None) + _RESERVE

    least = needed(settings.weights, speech=settings.speech)
    if least <= free:
        return
    others = [(weights, speech) for weights in FORMATS for speech in (settings.speech, False)]
    fitting = next((other for other in dict.fromkeys(others) if needed(other[0], speech=other[1]) <= free), None)
    remedy = "take a smaller config, or a device with more memory"
    if fitting:
        without = " without its voice (--no-speech)" if settings.speech and not fitting[1] else ""
        remedy = f"{FORMATS[fitting[0]]} weights{without} fit"
    raise OutOfMemory(
        f"the network needs {least / 1e9:.1f} GB on {device} but {free / 1e9:.1f} GB are free, "
        f"{(least - free) / 1e9:.1f} GB too few; {remedy}"
    )
