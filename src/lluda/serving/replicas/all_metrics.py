"""The counters of all replicas as one text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


def merged(replicas: Mapping[str, Sequence[Metric]]) -> bytes:
    """``replicas``: what each counts, by its number, which becomes the label ``replica``."""
    registry = CollectorRegistry()
    registry.register(_Merged(replicas))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, replicas: Mapping[str, Sequence[Metric]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, metrics in self._replicas.items():
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "replica": number}))
        yield from families.values()
