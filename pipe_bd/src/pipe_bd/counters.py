"""What a rank did, counted exactly, and where its time went."""

from __future__ import annotations

import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shorthaul.trace import Tracer

BUSY = ("data", "teacher", "student", "update")
WAIT = ("recv_wait", "send_wait", "allreduce_wait", "barrier")


@dataclass
class Counters:
    """Exact counts of one rank; all are totals over the run.

    Attributes:
        teacher_calls: forward passes per teacher block.
        teacher_rows: rows put through each teacher block.
        student_steps: updates per "block/candidate".
        loader_reads: batches (or row ranges of batches) read from the source.
        loader_rows: rows read from the source.
        relay_bytes: bytes of boundary tensors sent, per cut "a->b" of stages.
        relay_messages: sends behind relay_bytes.
        allreduce_bytes: bytes this rank sends in ring all-reduces: 2(g−1)/g of each buffer.
        allreduce_calls: all-reduces this rank took part in.
        batchnorm_bytes: the same for the statistics of synchronised BatchNorm and their gradients;
            not in allreduce_bytes.
        batchnorm_calls: all-reduces behind batchnorm_bytes.
        peak_sends: most boundary batches handed to the transport and not yet taken by the receiver.
        peak_receives: most receives posted at a time.
        seconds: time per activity (:data:`BUSY` and :data:`WAIT`).
    """

    teacher_calls: Counter[str] = field(default_factory=Counter)
    teacher_rows: Counter[str] = field(default_factory=Counter)
    student_steps: Counter[str] = field(default_factory=Counter)
    loader_reads: int = 0
    loader_rows: int = 0
    relay_bytes: Counter[str] = field(default_factory=Counter)
    relay_messages: int = 0
    allreduce_bytes: float = 0.0
    allreduce_calls: int = 0
    batchnorm_bytes: float = 0.0
    batchnorm_calls: int = 0
    peak_sends: int = 0
    peak_receives: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: dict(v) if isinstance(v, dict) else v for k, v in vars(self).items()}


class Clock:
    """Adds the time of an activity to the counters and, when tracing, to the trace."""

    def __init__(self, counters: Counters, tracer: Tracer | None) -> None:
        self.counters, self.tracer = counters, tracer

    @contextmanager
    def span(self, kind: str, label: str = "", **args: Any) -> Iterator[None]:
        """Time one activity of the given kind."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.counters.seconds[kind] += end - start
            if self.tracer is not None:
                self.tracer.span(label or kind, kind, start, end, **args)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process.

    Linux hands ru_maxrss on to a process that is started from this one; VmHWM begins anew.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
