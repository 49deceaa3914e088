"""The paper's workload: insert threads add the rest of a set while search threads loop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from navis.measure import Meter

if TYPE_CHECKING:
    from navis.index import Index

Array = npt.NDArray[Any]


@dataclass
class Result:
    """What a stretch of the workload did.

    Attributes:
        wall_s: Seconds until the inserts (or the given time) ended.
        inserted: Vectors inserted.
        searched: Queries answered.
        micros: float32, one latency per query, in order of answering per thread.
        counts: Differences of `Index.counters()`.
        cpu_s: CPU of the process.
        read_bytes: By the kernel's count (ru_inblock), `write_bytes` by ru_oublock.
        short: Answers with fewer than k ids, a repeated id, or an id never inserted.
    """

    wall_s: float = 0.0
    inserted: int = 0
    searched: int = 0
    micros: Array = field(default_factory=lambda: np.empty(0, np.float32))
    counts: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    read_bytes: int = 0
    write_bytes: int = 0
    short: int = 0

    def summary(self) -> dict[str, Any]:
        """Rates, latencies in milliseconds, requests per operation."""
        counts = self.counts
        inserts, searches = max(1, self.inserted), max(1, self.searched)
        seek = counts["seek_edge_reads"] + counts["seek_vector_reads"]
        flush = counts["flush_reads"] + counts["flush_edge_writes"] + counts["flush_vector_writes"]
        found: dict[str, Any] = {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "inserts_per_s": self.inserted / self.wall_s,
            "searches_per_s": self.searched / self.wall_s,
            "requests_per_insert": (seek + flush + counts["wal_writes"]) / inserts,
            "reads_per_insert": seek / inserts,
            "requests_per_search": (counts["search_edge_reads"] + counts["search_vector_reads"])
            / searches,
            "kernel_read_bytes": self.read_bytes,
            "kernel_write_bytes": self.write_bytes,
            "short": self.short,
        }
        if len(self.micros):
            p50, p99 = np.percentile(self.micros, [50, 99])
            found["search_ms"] = {
                "mean": float(self.micros.mean()) / 1e3,
                "p50": float(p50) / 1e3,
                "p99": float(p99) / 1e3,
                "max": float(self.micros.max()) / 1e3,
            }
        return found


def run(
    index: Index,
    ids: Array,
    vectors: Array,
    queries: Array,
    *,
    k: int = 10,
    L: int = 40,
    insert_threads: int = 1,
    search_threads: int = 1,
    batch: int = 16,
    seconds: float | None = None,
) -> Result:
    """Insert all vectors with some threads while others search, until the inserts are done.

    Args:
        index: Open for writing.
        ids: (n,), the vectors' ids.
        vectors: (n, d).
        queries: (nq, d), searched round and round, `batch` at a time.
        k: Neighbours per query.
        L: Search list.
        insert_threads: Threads that insert; 0 searches only, for `seconds`.
        search_threads: Threads that search.
        batch: Vectors per insert call, and queries per search call.
        seconds: Stop after this time even when inserts are left.
    """
    result = Result()
    stop, lock = threading.Event(), threading.Lock()
    failures: list[BaseException] = []
    latencies: list[Array] = []
    position = 0

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    def inserting() -> None:
        nonlocal position
        while not stop.is_set():
            with lock:
                start = position
                position += batch
            if start >= len(vectors):
                return
            part = slice(start, min(start + batch, len(vectors)))
            index.insert(ids[part], vectors[part])
            with lock:
                result.inserted += part.stop - part.start

    def searching(offset: int) -> None:
        at, own, micros, short = offset, 0, [], 0
        while not stop.is_set():
            rows = np.arange(at, at + batch) % len(queries)
            found, _, took = index.search(queries[rows], k, L=L, latencies=True)
            ordered = np.sort(found, axis=1)
            short += int(np.any(ordered[:, 1:] == ordered[:, :-1], axis=1).sum())
            short += int(np.any(found == np.iinfo(np.uint64).max, axis=1).sum())
            own += batch
            at += batch
            micros.append(took)
        with lock:
            result.searched += own
            result.short += short
            latencies.extend(micros)

    with Meter(index) as meter:
        writers = [
            threading.Thread(target=guarded, args=(inserting,)) for _ in range(insert_threads)
        ]
        readers = [
            threading.Thread(target=guarded, args=(lambda i=i: searching(i * 997),))
            for i in range(search_threads)
        ]
        started = time.perf_counter()
        for thread in (*writers, *readers):
            thread.start()
        if writers:
            deadline = None if seconds is None else started + seconds
            for thread in writers:
                thread.join(None if deadline is None else max(0, deadline - time.perf_counter()))
        else:
            stop.wait(seconds)
        result.wall_s = time.perf_counter() - started
        stop.set()
        for thread in (*writers, *readers):
            thread.join()
    if failures:
        raise failures[0]
    result.counts, result.cpu_s = meter.counts, meter.cpu_s
    result.read_bytes, result.write_bytes = meter.read_bytes, meter.write_bytes
    if latencies:
        result.micros = np.concatenate(latencies)
    return result
