"""A process that changes an index, its death, and what is found then; see `_crash`."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from navis import Index
from navis.experiments._crash import ACK, CHANGES, Matrix, Model, Place, Settled, Step, Streams

CHILD = Path(__file__).with_name("_crash_child.py")
# A deadline of a child, not a measurement: a hundred times what an idle machine needs.
PATIENCE_S = 100.0


class Child:
    """A running _crash_child.py; `acknowledged` counts the steps of each thread."""

    def __init__(
        self,
        work: Path,
        folder: Path,
        vectors: Path,
        streams: Streams,
        options: dict[str, Any],
        acks: Path | None = None,
        environment: dict[str, str] | None = None,
        wrap: Callable[[list[str]], list[str]] = list,
    ) -> None:
        plan = {
            **{"folder": str(folder), "vectors": str(vectors), "options": options},
            "acks": str(acks) if acks else None,
            "streams": [[dataclasses.astuple(s) for s in stream] for stream in streams],
        }
        (work / "plan.json").write_text(json.dumps(plan))
        self.errors = work / "errors.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                wrap([sys.executable, str(CHILD), str(work / "plan.json")]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )
        self.acknowledged = [0] * len(streams)
        self.started: Place | None = None  # of maintenance under way
        self.seconds: list[float] = []  # of finished maintenance
        self.ready = self.ended = False
        self._begun = 0.0
        self._rest = b""

    def _read(self, timeout: float) -> bool:
        """Take what there is; False at the end, or when nothing came in time."""
        assert self.process.stdout
        out = self.process.stdout.fileno()
        if not select.select([out], [], [], max(0.0, timeout))[0]:
            return False
        got = os.read(out, 1 << 16)
        self._rest += got
        whole = len(self._rest) // ACK.size * ACK.size
        for what, thread, number, at in ACK.iter_unpack(self._rest[:whole]):
            self.ready = self.ready or what == b"R"
            self.ended = self.ended or what == b"E"
            if what == b"S":
                self.started, self._begun = (thread, number), at
            if what == b"A":
                self.acknowledged[thread] = number + 1
                if self.started == (thread, number):
                    self.started = None
                    self.seconds.append(at - self._begun)
        self._rest = self._rest[whole:]
        return bool(got)

    def wait(self, condition: Callable[[], bool], patience: float = PATIENCE_S) -> None:
        """Read until the condition holds, or the steps have all been done."""
        deadline = time.monotonic() + patience
        while not condition() and not self.ended:
            if not self._read(deadline - time.monotonic()):
                self.kill()
                raise RuntimeError(f"the child is stuck or dead: {self.errors.read_text()}")

    def wait_for(self, steps: int) -> None:
        """Read until so many steps are acknowledged."""
        self.wait(lambda: sum(self.acknowledged) >= steps)

    def kill(self) -> list[int]:
        """SIGKILL; gives the acknowledged steps of each thread."""
        self.process.send_signal(signal.SIGKILL)
        while self._read(PATIENCE_S):
            pass
        self._close()
        return self.acknowledged

    def died(self) -> tuple[int, str]:
        """Read to its end, which is its own doing: exit code and what it said."""
        while self._read(PATIENCE_S):
            pass
        self._close()
        return self.process.returncode, self.errors.read_text()

    def end(self) -> None:
        """Let it close its index in good order."""
        self.wait(lambda: self.ended)
        assert self.process.stdin
        self.process.stdin.close()
        self._close()
        if self.process.returncode:
            raise RuntimeError(f"the child failed: {self.errors.read_text()}")

    def _close(self) -> None:
        self.process.wait(PATIENCE_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


@dataclasses.dataclass(frozen=True)
class Round:
    """What was found after one kill; `kind` is what the process was killed in."""

    kind: str
    struck: bool  # of maintenance: whether it was under way
    acknowledged: int
    ids: int
    reopen_s: float
    replayed: int
    torn_bytes: int
    settled: Settled
    faults: list[str]
    own_nearest: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"killed in {self.kind}{'' if self.struck else ' (just behind it)'}: "
            f"{self.acknowledged} acknowledged, {self.ids} ids, reopened in {self.reopen_s:.3f} s, "
            f"{self.replayed} records replayed, {self.torn_bytes} bytes of a torn tail, "
            f"{len(self.settled.lost)} lost, {len(self.faults)} faults"
        )


class Rounds:
    """Kill after kill on one folder; each process recovers from what the last one left."""

    def __init__(
        self,
        work: Path,
        folder: Path,
        vectors_file: Path,
        model: Model,
        options: dict[str, Any],
        draw: random.Random,
    ) -> None:
        self.work, self.folder, self.model = work, folder, model
        self.vectors_file, self.options, self.draw = vectors_file, options, draw
        self.done: list[Round] = []

    def kill_in(self, kind: str, steps: int, batch: int = 4, least: int = 1) -> Round:
        """Kill a process whose two threads change the index, in `kind`; examine what is left.

        In insert the kill comes after `least` to `steps` acknowledgements; in maintenance, which
        one of the threads does again and again between its changes, while that is under way.
        """
        maintaining = kind not in CHANGES
        of = {"deletes": 0.3} if kind == "compact" else {}
        streams = self.model.streams(self.draw, 2, steps, batch, **of)
        if maintaining:
            streams[1] = [s for step in streams[1] for s in (step, Step(kind))]
        options = {**self.options, "durability": ("sync", "group")[len(self.done) % 2]}
        child = Child(self.work, self.folder, self.vectors_file, streams, options)
        if maintaining:
            some = self.draw.randint(0, 3)
            child.wait(lambda: child.started is not None and len(child.seconds) >= some)
            time.sleep(self.draw.random() * statistics.median(child.seconds or [0.1]))
        else:
            child.wait_for(self.draw.randint(least, steps))
            time.sleep(self.draw.random() * 0.01)  # between two acknowledgements, or in one
        done = child.kill()
        struck = not maintaining or child.started is not None
        self.done.append(self._examine(kind, struck, streams, done))
        return self.done[-1]

    def _examine(self, kind: str, struck: bool, streams: Streams, done: list[int]) -> Round:
        """Open as a process would, or only to read, so that the next one meets the crash itself."""
        begun = time.monotonic()
        with Index.open(self.folder, **self.options, readonly=len(self.done) % 2 == 0) as index:
            seconds = time.monotonic() - begun
            held = index.stats()
            settled = self.model.settle(index, streams, done)
            return Round(
                kind,
                struck,
                sum(done),
                len(self.model.rows),
                seconds,
                int(held["replayed_records"]),
                int(held["dropped_wal_bytes"]),
                settled,
                self.model.faults(index),
                self.model.own_nearest(index, seed=len(self.done)),
            )

    def compare(self, never_killed: Path, queries: Matrix, L: int = 40) -> tuple[float, float]:
        """Recall now, and that of a copy of the first index to which the same is done in peace."""
        with Index.open(never_killed, **{**self.options, "durability": "none"}) as index:
            self.model.replay(index)
            in_peace = self.model.recall(index, queries, L=L)
        with Index.open(self.folder, **self.options) as index:
            return self.model.recall(index, queries, L=L), in_peace
