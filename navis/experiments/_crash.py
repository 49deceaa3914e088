"""What is to be done to an index until its process dies, and whether it agrees afterwards.

The crash experiment and the tests of recovery share it; `_kill` has the process.
"""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
# Ready, started, acknowledged, ended; thread, number of the step; time.monotonic().
ACK = struct.Struct("=cBId")
CHANGES = ("insert", "delete")


@dataclasses.dataclass(frozen=True)
class Step:
    """A call: insert of new ids or of known ones (which replaces), delete, or maintenance.

    Maintenance is any method without arguments: flush, checkpoint, compact.
    """

    kind: str
    ids: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()


Streams = list[list[Step]]
Place = tuple[int, int]  # thread, and number of the step in its stream


@dataclasses.dataclass(frozen=True)
class Settled:
    """What an index has of the steps that were done on it.

    Attributes:
        lost: Acknowledged steps that are not, or not wholly, there.
        unordered: Steps that are there although one before them in their thread is lost.
        strays: Ids that are there, or are not, though no step explains it; an id held twice too.
    """

    lost: list[Place]
    unordered: list[Place]
    strays: list[int]


class Model:
    """The ids that must be in the index, and which row of `vectors` each has."""

    def __init__(self, vectors: Matrix, built: int) -> None:
        self.vectors = vectors
        self.rows = {i: i for i in range(built)}
        self._used_row = self._used_id = built - 1
        self.history: list[Step] = []

    def streams(
        self,
        draw: random.Random,
        threads: int,
        steps: int,
        batch: int = 4,
        deletes: float = 0.06,
        replaces: float = 0.08,
    ) -> Streams:
        """Steps for each thread; no id is in two of them, so that order between them is free."""
        known = list(self.rows)
        draw.shuffle(known)
        # Steps of the last streams that were never done have taken nothing.
        self.next_row = self._used_row + 1
        self.next_id = self._used_id + 1
        streams: Streams = [[] for _ in range(threads)]
        for number in range(threads * steps):
            dice = draw.random()
            if dice < deletes and len(known) > 200:
                step = Step("delete", (known.pop(),))
            elif dice < deletes + replaces and known:
                step = Step("insert", (known.pop(),), self._new_rows(1))
            else:
                count = draw.randint(1, batch)
                ids = tuple(range(self.next_id, self.next_id + count))
                self.next_id += count
                step = Step("insert", ids, self._new_rows(count))
            streams[number % threads].append(step)
        return streams

    def _new_rows(self, count: int) -> tuple[int, ...]:
        self.next_row += count
        if self.next_row > len(self.vectors):
            raise ValueError(f"more than the {len(self.vectors)} vectors given are needed")
        return tuple(range(self.next_row - count, self.next_row))

    def settle(self, index: Any, streams: Streams, done: Sequence[int]) -> Settled:
        """Take over what is in the index; of each thread's step under way that is left open.

        Args:
            index: Open.
            streams: What its process was to do.
            done: How many steps of each thread were acknowledged.
        """
        present = index.ids().astype(np.int64)
        held = set(present.tolist())
        found = Settled([], [], np.sort(present)[1:][np.diff(np.sort(present)) == 0].tolist())
        looked_at = self._content(index, held, streams, done)
        for thread, stream in enumerate(streams):
            gone = False
            for number, step in enumerate(stream[: done[thread] + 1]):
                if step.kind not in CHANGES:
                    self.history += [step] if number < done[thread] else []
                    continue
                there = [
                    i not in held if step.kind == "delete" else looked_at.get(i) == r
                    for i, r in zip(step.ids, step.rows or step.ids, strict=True)
                ]
                if number < done[thread] and not all(there):
                    found.lost.append((thread, number))
                if gone and any(there):
                    found.unordered.append((thread, number))
                gone = gone or not all(there)
                self._apply(step, there)
        found.strays.extend(sorted(held ^ set(self.rows)))
        return found

    def _content(
        self, index: Any, held: set[int], streams: Streams, done: Sequence[int]
    ) -> dict[int, int]:
        """Of each id that a step gives a vector: the row it has, if it is the step's."""
        given = {
            i: r
            for stream, count in zip(streams, done, strict=True)
            for step in stream[: count + 1]
            for i, r in zip(step.ids, step.rows, strict=False)
            if i in held
        }
        if not given:
            return {}
        ids, rows = np.fromiter(given, np.uint64), np.fromiter(given.values(), np.int64)
        same = np.all(index.get(ids) == self.vectors[rows], axis=1)
        return {int(i): int(r) for i, r, yes in zip(ids, rows, same, strict=True) if yes}

    def _apply(self, step: Step, there: list[bool]) -> None:
        ids = tuple(i for i, yes in zip(step.ids, there, strict=True) if yes)
        rows = tuple(r for r, yes in zip(step.rows, there, strict=False) if yes)
        for i, row in zip(ids, rows, strict=False):
            self.rows[i] = row
        if step.kind == "delete":
            for i in ids:
                del self.rows[i]
        self._used_row = max((self._used_row, *rows))
        self._used_id = max((self._used_id, *ids))
        if ids:
            self.history.append(Step(step.kind, ids, rows))

    def replay(self, index: Any) -> None:
        """The same changes to another index, which nobody kills."""
        ids: list[int] = []
        rows: list[int] = []
        for step in [*self.history, Step("flush")]:
            if ids and (
                step.kind != "insert" or len(ids) >= 64 or not set(ids).isdisjoint(step.ids)
            ):
                index.insert(ids, self.vectors[rows], threads=2)
                ids, rows = [], []
            if step.kind == "insert":
                ids.extend(step.ids)
                rows.extend(step.rows)
            elif step.kind == "delete":
                index.delete(np.array(step.ids, np.uint64))
            else:
                getattr(index, step.kind)()

    def faults(self, index: Any) -> list[str]:
        """What verification says, and every id whose vector is not, bit by bit, what it must be."""
        found = list(index.verify()["faults"])
        ids = np.fromiter(self.rows, np.uint64)
        same = np.all(index.get(ids) == self._vectors(), axis=1)
        found += [f"id {i} has another vector" for i in ids[~same].tolist()]
        return found + [f"id {i} is not contained" for i in self.rows if i not in index]

    def own_nearest(self, index: Any, sample: int = 400, seed: int = 0) -> float:
        """Share of the newest ids, and of as many others, that are found as their own nearest."""
        ids = np.fromiter(self.rows, np.uint64)
        newest = np.argsort(ids)[::-1][:sample]
        others = np.random.default_rng(seed).choice(len(ids), min(sample, len(ids)), replace=False)
        some = np.union1d(newest, others)
        found, distances = index.search(self._vectors()[some], 1, L=100)
        return float(np.mean((found[:, 0] == ids[some]) & (distances[:, 0] == 0)))

    def recall(self, index: Any, queries: Matrix, k: int = 10, L: int = 40) -> float:
        """Share of the true k nearest among what a search gives."""
        ids, vectors = np.fromiter(self.rows, np.uint64), self._vectors()
        found, _ = index.search(queries, k, L=L)
        squares = np.einsum("nd,nd->n", vectors, vectors)
        hits = 0
        for query, got in zip(queries, found, strict=True):
            nearest = np.argpartition(squares - 2 * (vectors @ query), k)[:k]
            hits += len(set(ids[nearest].tolist()) & set(got.tolist()))
        return hits / (k * len(queries))

    def _vectors(self) -> Matrix:
        return self.vectors[np.fromiter(self.rows.values(), np.int64)]
