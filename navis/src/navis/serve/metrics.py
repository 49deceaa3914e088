"""Prometheus metrics, in a registry of the server's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

import navis

if TYPE_CHECKING:
    from navis.index import Index

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counts of requests, and of the index when asked.

    Attributes:
        under_way: Requests being answered, health and metrics not among them.
    """

    def __init__(self, index: Index, durability: str) -> None:
        self.under_way = 0
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "navis_http_requests",
            "Requests answered.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "navis_http_request_seconds",
            "From a request's headers to the end of its answer.",
            ["endpoint"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        under_way = Gauge(
            "navis_http_requests_under_way",
            "Requests being answered, health and metrics not among them.",
            registry=self._registry,
        )
        under_way.set_function(lambda: self.under_way)
        about = Gauge(
            "navis_index_info",
            "What is served; always 1.",
            ["version", "layout", "metric", "dtype", "dim", "durability"],
            registry=self._registry,
        )
        about.labels(
            navis.__version__, index.layout, index.metric, index.dtype, index.dim, durability
        ).set(1)
        self._registry.register(_OfIndex(index))

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(endpoint, status).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """Give everything in the text format; asks the index, so not on the event loop."""
        return generate_latest(self._registry)


class _OfIndex(Collector):
    """The index's own counts and sizes, whatever they are called there."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def describe(self) -> list[Metric]:
        return []  # or registration would ask the index

    def collect(self) -> Iterator[Metric]:
        for name, count in self._index.counters().items():
            what = f"The engine's counter {name}, since opening."
            yield CounterMetricFamily(f"navis_engine_{name}", what, value=count)
        for name, value in self._index.stats().items():
            if isinstance(value, int | float):  # words are no samples
                yield GaugeMetricFamily(f"navis_index_{name}", f"The index's {name}.", value=value)
