"""Chrome trace-event JSON: pid is a rank or server, tid a stream. Perfetto opens it."""

import itertools
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shorthaul import atomic


class Tracer:
    """Collects the events of one process; times are seconds on a clock the processes share.

    `pid` is the rank or server, `name` what the viewer calls it. When not `enabled` every call
    returns at once and `write` writes nothing.
    """

    def __init__(self, pid: int, name: str, *, enabled: bool = True) -> None:
        self.pid = pid
        self.name = name
        self.enabled = enabled
        self._events: list[dict[str, Any]] = []
        self._tids: dict[str, int] = {}
        self._lock = threading.Lock()

    def _tid(self, tid: int | str) -> int:
        name = f"stream {tid}" if isinstance(tid, int) else tid
        if name not in self._tids:
            with self._lock:  # two threads must not both take the lowest free number
                taken = set(self._tids.values())
                free = next(n for n in itertools.count() if n not in taken)
                self._tids.setdefault(name, tid if isinstance(tid, int) else free)
        return self._tids[name]

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
        """Record the value of one or more quantities of the process from `at_s` on."""
        if self.enabled:
            event = {"ph": "C", "name": name, "pid": self.pid, "ts": at_s * 1e6}
            self._events.append({**event, "args": values})

    def events(self) -> list[dict[str, Any]]:
        """Give all events, the metadata that names process and streams first."""
        own: dict[str, Any] = {"ph": "M", "pid": self.pid}
        names = [{**own, "name": "process_name", "args": {"name": self.name}}]
        for name, tid in self._tids.items():
            names.append({**own, "name": "thread_name", "tid": tid, "args": {"name": name}})
        return names + self._events

    def write(self, path: Path | str) -> None:
        """Write the trace file, unless the tracer is disabled."""
        if self.enabled:
            _write(path, self.events())


def _write(path: Path | str, events: Iterable[dict[str, Any]]) -> None:
    document = {"traceEvents": list(events), "displayTimeUnit": "ms"}
    atomic.write_text(path, json.dumps(document, separators=(",", ":"), allow_nan=False))


def merge(paths: Iterable[Path | str], out: Path | str) -> None:
    """Join files written by `Tracer.write` into one; a missing or damaged one is a UserError."""
    documents = [atomic.read_json(path) for path in paths]
    _write(out, itertools.chain.from_iterable(document["traceEvents"] for document in documents))
