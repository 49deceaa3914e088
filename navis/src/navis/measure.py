"""What a stretch of work on an index cost: time, CPU, requests, bytes."""

from __future__ import annotations

import resource
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy.typing as npt

    from navis.index import Index

_READS = ("search_edge_reads", "search_vector_reads", "seek_edge_reads", "seek_vector_reads",
          "flush_reads")  # fmt: skip
_WRITES = ("flush_edge_writes", "flush_vector_writes", "wal_writes")


class Meter:
    """Differences of clock, rusage and the index's counters over a `with` block.

    Attributes:
        wall_s: Seconds.
        cpu_s: Seconds of CPU of this process.
        counts: Differences of `Index.counters()`.
        read_bytes: By `ru_inblock`, the kernel's count; `write_bytes` by `ru_oublock`.
    """

    def __init__(self, index: Index) -> None:
        self._index = index

    def __enter__(self) -> Self:
        self._before = self._now()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        before, after = self._before, self._now()
        self.wall_s = after[0] - before[0]
        self.cpu_s = after[1] - before[1]
        self.read_bytes = (after[2] - before[2]) * 512
        self.write_bytes = (after[3] - before[3]) * 512
        self.counts = {name: after[4][name] - before[4][name] for name in after[4]}

    def _now(self) -> tuple[float, float, int, int, dict[str, int]]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counts = self._index.counters()
        return (
            time.perf_counter(),
            time.process_time(),
            usage.ru_inblock,
            usage.ru_oublock,
            counts,
        )

    @property
    def reads(self) -> int:
        """Read requests."""
        return sum(self.counts[name] for name in _READS)

    @property
    def writes(self) -> int:
        """Write requests, the log's among them."""
        return sum(self.counts[name] for name in _WRITES)

    def result(self, n: int, micros: npt.NDArray[Any] | None = None) -> dict[str, Any]:
        """Per-operation figures of n searches, with percentiles of their latencies."""
        import numpy as np

        counts = self.counts
        looked = counts["search_expansions"] or 1
        found: dict[str, Any] = {
            "queries": n,
            "qps": n / self.wall_s,
            "cpu_ms": self.cpu_s / n * 1e3,
            "requests": self.reads / n,
            "edge_reads": counts["search_edge_reads"] / n,
            "vector_reads": counts["search_vector_reads"] / n,
            "vectors": counts["search_vectors"] / n,
            "expansions": counts["search_expansions"] / n,
            "bytes": counts["search_read_bytes"] / n,
            "kernel_read_bytes": self.read_bytes / n,
            "cache_hit_ratio": counts["search_cached"] / looked,
            "shared_ratio": counts["search_shared"] / looked,
        }
        if micros is not None:
            p50, p99 = np.percentile(micros, [50, 99])
            found |= {
                "mean_ms": float(np.mean(micros)) / 1e3,
                "p50_ms": float(p50) / 1e3,
                "p99_ms": float(p99) / 1e3,
                "max_ms": float(np.max(micros)) / 1e3,
            }
        return found

    def insert_result(self, n: int) -> dict[str, Any]:
        """Per-insert figures of n inserts."""
        counts = self.counts
        looked = counts["seek_expansions"] or 1
        return {
            "inserts": n,
            "per_s": n / self.wall_s,
            "cpu_ms": self.cpu_s / n * 1e3,
            "requests": (self.reads + self.writes) / n,
            "edge_reads": counts["seek_edge_reads"] / n,
            "vector_reads": counts["seek_vector_reads"] / n,
            "vectors": counts["seek_vectors"] / n,
            "expansions": counts["seek_expansions"] / n,
            "read_bytes": counts["seek_read_bytes"] / n,
            "edge_pages_written": counts["flush_edge_pages"] / n,
            "vector_pages_written": counts["flush_vector_pages"] / n,
            "wal_bytes": counts["wal_written_bytes"] / n,
            "kernel_read_bytes": self.read_bytes / n,
            "kernel_write_bytes": self.write_bytes / n,
            "cache_hit_ratio": counts["seek_cached"] / looked,
            "shared_ratio": counts["seek_shared"] / looked,
        }
