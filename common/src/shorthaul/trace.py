"""Chrome trace-event JSON: pid is a rank or server, tid a stream. Perfetto opens it."""

import itertools
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shorthaul import atomic


class Tracer:
    """Collects the events of one process.

    Args:
        pid: Rank or server number.
        name: What the viewer calls the process, such as `rank 0`.
        enabled: When false every call returns at once and `write` writes nothing.

    Times are seconds on any clock the processes share; the file holds microseconds.
    """

    def __init__(self, pid: int, name: str, *, enabled: bool = True) -> None:
        self.pid = pid
        self.name = name
        self.enabled = enabled
        self._events: list[dict[str, Any]] = []
        self._tids: dict[str, int] = {}
        self._lock = threading.Lock()

    def _tid(self, tid: int | str) -> int:
        if isinstance(tid, int):
            self._tids.setdefault(f"stream {tid}", tid)
            return tid
        if tid not in self._tids:
            with self._lock:  # two threads must not both take the lowest free number
                taken = set(self._tids.values())
                free = next(n for n in itertools.count() if n not in taken)
                self._tids.setdefault(tid, free)
        return self._tids[tid]

    def _add(self, phase: str, name: str, tid: int | str, at_s: float, **rest: Any) -> None:
        event = {"ph": phase, "name": name, "pid": self.pid, "tid": self._tid(tid)}
        self._events.append({**event, "ts": at_s * 1e6, **rest})

    def span(self, name: str, tid: int | str, start_s: float, end_s: float, **args: Any) -> None:
        """Record work that took from `start_s` to `end_s`; `args` appear when it is clicked."""
        if self.enabled:
            self._add("X", name, tid, start_s, dur=(end_s - start_s) * 1e6, args=args)

    def instant(self, name: str, tid: int | str, at_s: float, **args: Any) -> None:
        """Record a moment."""
        if self.enabled:
            self._add("i", name, tid, at_s, s="t", args=args)

    def counter(self, name: str, at_s: float, **values: float) -> None:
        """Record the value of one or more quantities from `at_s` on."""
        if self.enabled:
            # A counter belongs to the process: naming a stream for it would draw an empty row.
            event = {"ph": "C", "name": name, "pid": self.pid, "ts": at_s * 1e6}
            self._events.append({**event, "args": values})

    def events(self) -> list[dict[str, Any]]:
        """Give all events, the metadata that names process and streams first."""
        whole: dict[str, Any] = {"ph": "M", "pid": self.pid}
        meta: list[dict[str, Any]] = [
            {**whole, "name": "process_name", "args": {"name": self.name}},
            {**whole, "name": "process_sort_index", "args": {"sort_index": self.pid}},
        ]
        for name, tid in self._tids.items():
            meta.append({**whole, "name": "thread_name", "tid": tid, "args": {"name": name}})
        return meta + self._events

    def write(self, path: Path | str) -> None:
        """Write the trace file, unless the tracer is disabled."""
        if self.enabled:
            _write(path, self.events())


def _write(path: Path | str, events: Iterable[dict[str, Any]]) -> None:
    document = {"traceEvents": list(events), "displayTimeUnit": "ms"}
    atomic.write_text(path, json.dumps(document, separators=(",", ":"), allow_nan=False))


def merge(paths: Iterable[Path | str], out: Path | str) -> None:
    """Join the traces of several processes into one file.

    Args:
        paths: Files written by `Tracer.write`.
        out: The joined file; it may be one of `paths`.

    Raises:
        UserError: A file is missing or is no trace.
    """
    documents = [atomic.read_json(path) for path in paths]
    _write(out, itertools.chain.from_iterable(document["traceEvents"] for document in documents))
