"""What experiments share: how indexes are opened to be compared, and work on them measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from navis import Index
from navis.experiments._store import Set, recall_of
from navis.formats import Truth
from navis.layouts import PAGE, Shape, shape
from navis.measure import Meter

Array = npt.NDArray[Any]

# The design of DiskANN and OdinANN in our engine: a record is read for every expansion unless its
# page is in hand, the entrance graph stays as it was built, no lists are cached.
PACKED = {"entrance": "fixed", "cache": "none", "share_pages": True}
# As OdinANN inserts: one at a time, from the medoid, and its lists written soon after it.
PEERS = {**PACKED, "entrance": "none", "pending_bytes": 1, "in_flight": 1}
FULL = {"entrance": "dynamic", "cache": "lfu", "share_pages": True, "rerank": True}

LAYOUT_NAMES = {"packed": "packed", "selective": "full"}
MIB = 2**20


def shape_of(of: Set, layout: str, degree: int = 32) -> Shape:
    """Give the shape of a layout for a set's vectors."""
    return shape(of.dim * 4, degree, layout == "packed")


def searched(
    index: Index, queries: Array, truth: Truth | None = None, *, L: int = 40, **options: Any
) -> dict[str, Any]:
    """Search every query once: `Meter.result`, and `recall` where there is a truth."""
    warm(index, queries)
    with Meter(index) as meter:
        ids, _, micros = index.search(queries, 10, L=L, latencies=True, **options)
    result = meter.result(len(queries), micros)
    result["wall_s"], result["counts"] = meter.wall_s, meter.counts
    if truth is not None:
        result["recall"] = recall_of(ids, truth)
    return result


def warm(index: Index, queries: Array) -> None:
    """Let the index do what it does once, at its first search."""
    index.search(queries[:1], 1)


def inserted(
    index: Index, start: int, vectors: Array, *, batch: int = 16, checkpoint: bool = False
) -> dict[str, Any]:
    """Insert vectors as rows `start` and on: `Meter.insert_result` and what the kernel counted.

    With `checkpoint` what is pending is written before the meter stops, so that all writes of
    these inserts are among the counts.
    """
    with Meter(index) as meter:
        for first in range(0, len(vectors), batch):
            part = vectors[first : first + batch]
            index.insert(np.arange(start + first, start + first + len(part)), part)
        if checkpoint:
            index.checkpoint()
    result = meter.insert_result(len(vectors))
    result["wall_s"], result["counts"] = meter.wall_s, meter.counts
    result["write_bytes"] = page_bytes_written(meter.counts)
    result["all_write_bytes"] = (
        page_bytes_written(meter.counts)
        + meter.counts["wal_written_bytes"]
        + meter.counts["checkpoint_bytes"]
    )
    result["kernel_writes"] = meter.write_bytes
    result["kernel_reads"] = meter.read_bytes
    return result


def page_bytes_written(counts: dict[str, int]) -> int:
    """Bytes of record, edge and vector pages written, without the log and checkpoints."""
    return PAGE * (counts["flush_edge_pages"] + counts["flush_vector_pages"])


def budget(of: Set, share: float) -> int:
    """Give the memory budget that is this share of the base's raw bytes."""
    return int(share * of.raw_bytes)


class RawReads(contextlib.AbstractContextManager["RawReads"]):
    """Reads of 4 KiB past the page cache, one every few milliseconds, in a process of its own.

    What they take in the same minute is what the machine's disk owes to nobody's index.

    Attributes:
        worst_ms: The longest; `p50_ms` and `p99_ms` likewise; `reads` how many.
    """

    def __init__(self, file: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("_raw_reads.py")), str(file)]
        self.worst_ms = self.p50_ms = self.p99_ms = 0.0
        self.reads = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun
        return self

    def __exit__(self, *error: object) -> None:
        said, _ = self._process.communicate("")
        if self._process.returncode == 0 and said.strip():
            vars(self).update(json.loads(said))
