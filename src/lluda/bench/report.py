"""From samples to rows: medians, shares of the machine's bandwidth, and ratios against each peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lluda.bench.machine import Machine


@dataclass(frozen=True, slots=True)
class Row:
    """One test of one engine: ``samples`` in the order of the rounds, and what they come to.

    ``roofline_fraction`` (rows of decoding, talker and code predictor): bytes of weights read a second over the
    machine's streaming bandwidth around the same turn (it moves, where a host is shared), of which the median; None
    where no count of bytes is sure. ``predicted``: the median that `bench.prediction` expects from the products
    measured in the same run; None of peers, of tests that it knows nothing of, and without the test ``products``.
    """

    engine: str
    format: str
    test: str
    median: float
    min: float
    max: float
    unit: str
    roofline_fraction: float | None
    samples: tuple[float, ...]
    predicted: float | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times better lluda's median is than the peer's: higher rates, or shorter times and less memory."""

    format: str
    test: str
    against: str
    times_better: float


@dataclass(frozen=True, slots=True)
class EngineState:
    """How an engine fared. ``detail``: the settings it ran with, or why it did not."""

    engine: str
    format: str
    version: str | None
    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Streaming read bandwidth in GB/s (10^9 bytes), sampled before and behind every turn."""

    median: float
    min: float
    max: float
    method: str

    @classmethod
    def of(cls, samples: Sequence[float], method: str) -> Bandwidth | None:
        """None without samples."""
        return cls(median(samples), min(samples), max(samples), method) if samples else None


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """What was measured. ``path``: the checkpoint, or the folder of the config.json that random weights were made for;
    ``weights_per_step``: numbers (not bytes) that a decode step of one row reads."""

    path: str
    model_type: str
    weights: str
    weights_per_step: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """What it was measured under. ``threads`` of the CPU; ``repeat`` rounds; ``options``: all else that was chosen."""

    threads: int
    repeat: int
    device: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. ``other_load``: the largest share of all cores that other work took during a worker's run."""

    model: MeasuredModel
    machine: Machine
    settings: Conditions
    bandwidth: Bandwidth | None
    other_load: float
    engines: tuple[EngineState, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """What was measured, and how."""
        settings = self.settings
        return f"{self.model.path} on {settings.device}, {settings.threads} threads, {settings.repeat} rounds"

    @property
    def failed(self) -> bool:
        """Whether an engine that was started did not do its tests."""
        return any(state.status == "failed" for state in self.engines)

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Each lluda row against the same test of each peer."""
        ours = [row for row in self.rows if row.engine == "lluda"]
        theirs = [row for row in self.rows if row.engine != "lluda"]
        return tuple(
            Ratio(our.format, our.test, their.engine, _times_better(our, their))
            for our in ours
            for their in theirs
            if our.test == their.test
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return asdict(self) | {"ratios": [asdict(ratio) for ratio in self.ratios]}


def make_row(
    engine: str, format: str, test: str, unit: str, samples: Sequence[float], bytes_per_token: float | None,
    bandwidths: Sequence[float],
) -> Row:  # fmt: skip
    """``bytes_per_token``: bytes of weights read for each token of the rate, or in the time of a row in ms; None where
    that is not known. ``bandwidths``: the device's in GB/s around each sample, or none."""
    shares = []
    if bytes_per_token:
        rates = [1e3 / sample if unit == "ms" else sample for sample in samples]
        shares = [rate * bytes_per_token / (limit * 1e9) for rate, limit in zip(rates, bandwidths, strict=False)]
    share = median(shares) if shares else None
    return Row(engine, format, test, median(samples), min(samples), max(samples), unit, share, tuple(samples))


def _times_better(our: Row, their: Row) -> float:
    higher_is_better = our.unit.endswith("/s")
    best, other = (our.median, their.median) if higher_is_better else (their.median, our.median)
    return best / other if other else float("inf")
