"""Recall, answers and freshness while one thread inserts and two search; the graph that results."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index
from navis.experiments._measure import FULL, searched
from navis.experiments._store import Set, Store

_NONE = np.iinfo(np.uint64).max
_CALL = 16  # vectors of one acknowledgement, queries of one call


@dataclass
class _Beside:
    """One insert thread and two that search; the second of them asks for what was acknowledged.

    Ids are rows, so a thread that searches knows which ids can exist: those below `issued`.
    """

    index: Index
    of: Set
    start: int
    stop: int
    L: int
    answered: int = 0
    short: int = 0
    duplicate: int = 0
    unknown: int = 0
    asked: int = 0
    first: int = 0
    issued: int = 0
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _failures: list[BaseException] = field(default_factory=list)
    _acknowledged: queue.SimpleQueue[tuple[int, npt.NDArray[Any]]] = field(
        default_factory=queue.SimpleQueue
    )

    def run(self) -> None:
        """Until all rows are inserted and asked for."""
        self.issued = self.start
        work = [self._inserting, lambda: self._searching(0), self._asking]
        threads = [threading.Thread(target=self._guarded, args=(w,)) for w in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failures.append(error)
            self._done.set()

    def _inserting(self) -> None:
        rows = self.of.rows(self.start, self.stop)
        for at in range(self.start, self.stop, _CALL):
            if self._done.is_set():
                return
            part = rows[at - self.start : at - self.start + _CALL]
            self.issued = at + len(part)  # before the first of them can be seen
            self.index.insert(np.arange(at, at + len(part)), part)
            self._acknowledged.put((at, part))
        self._done.set()

    def _searching(self, at: int) -> None:
        while not self._done.is_set():
            self._search(at)
            at += _CALL

    def _search(self, at: int) -> None:
        rows = np.arange(at, at + _CALL) % len(self.of.queries)
        ids, _ = self.index.search(self.of.queries[rows], 10, L=self.L)
        known = self.issued
        ordered = np.sort(ids, axis=1)
        with self._lock:
            self.answered += len(rows)
            self.short += int(np.any(ids == _NONE, axis=1).sum())
            self.duplicate += int(np.any(ordered[:, 1:] == ordered[:, :-1], axis=1).sum())
            self.unknown += int(np.any((ids >= known) & (ids != _NONE), axis=1).sum())

    def _asking(self) -> None:
        at = len(self.of.queries) // 2
        while True:
            try:
                row, vectors = self._acknowledged.get(block=False)
            except queue.Empty:
                if self._done.is_set() and self._acknowledged.empty():
                    return
                self._search(at)
                at += _CALL
                continue
            ids, _ = self.index.search(vectors, 1, L=self.L)
            self.asked += len(vectors)
            self.first += int((ids[:, 0] == np.arange(row, row + len(vectors))).sum())


def occluded_share(index: Index, of: Set, ids: npt.NDArray[Any]) -> float:
    """Share of these nodes' edges that a nearer neighbour in the same list alpha-occludes.

    On squared distances: alpha² d(r, q) ≤ d(p, q) with r nearer to p than q.
    """
    alpha2 = float(index._core.options.alpha) ** 2
    edges = occluded = 0
    lists = index.neighbours(ids)
    wanted = np.unique(np.concatenate([*lists, ids.astype(np.uint64)])).astype(np.int64)
    vectors = index.get(wanted).astype(np.float32)
    place = dict(zip(wanted.tolist(), range(len(wanted)), strict=True))
    for node, found in zip(ids.tolist(), lists, strict=True):
        if len(found) == 0:
            continue
        own = vectors[place[int(node)]]
        those = vectors[[place[int(i)] for i in found]]
        away = ((those - own) ** 2).sum(axis=1)
        between = ((those[:, None] - those[None]) ** 2).sum(axis=2)
        nearer = away[:, None] < away[None]
        hit = (nearer & (alpha2 * between <= away[None])).any(axis=0)
        edges += len(found)
        occluded += int(hit.sum())
    return occluded / max(1, edges)


def run(context: Context) -> Summary:
    """Batch after batch into one index; after each the exact truth and a fresh build."""
    s, store = context.settings, Store(context)
    base, more = s["set"][1:]
    of = store.set(s["set"][0], base, more, s["queries"])
    random = np.random.default_rng(context.seed)
    steps: list[dict[str, Any]] = []
    totals = {"answered": 0, "short": 0, "duplicate": 0, "unknown": 0, "asked": 0, "first": 0}
    with (
        store.copy(store.index(of, layout="selective")) as copy,
        Index.open(copy, **FULL) as index,
    ):
        built = random.choice(base, min(s["sample"], base), replace=False)
        occluded = {"built": occluded_share(index, of, built)}
        for start in range(base, base + more, s["batch"]):
            stop = min(start + s["batch"], base + more)
            beside = _Beside(index, of, start, stop, s["L"])
            beside.run()
            for name in totals:
                totals[name] += getattr(beside, name)
            truth = store.truth(of, stop)
            step = {"rows": stop, "recall": searched(index, of.queries, truth, L=s["L"])["recall"]}
            if (stop - base) % s["fresh_every"] == 0 or stop == base + more:
                fresh = store.index(of, rows=stop, layout="selective", threads=s["build_threads"])
                with Index.open(fresh, readonly=True) as other:
                    step["fresh"] = searched(other, of.queries, truth, L=s["L"])["recall"]
            steps.append(step)
            context.run.metric(**step, **totals)
        late = base + random.choice(more, min(s["sample"], more), replace=False)
        occluded["inserted"] = occluded_share(index, of, late)
        occluded["built_after"] = occluded_share(index, of, built)
    return _summary(s, steps, totals, occluded)


def _summary(
    s: dict[str, Any], steps: list[dict[str, Any]], totals: dict[str, int], occluded: dict[str, Any]
) -> Summary:
    gaps = [100 * (f["fresh"] - f["recall"]) for f in steps if "fresh" in f]
    metrics = {
        "recall": [f["recall"] for f in steps],
        "fresh": [f.get("fresh") for f in steps],
        "below_fresh_points": gaps,
        "wrong_answers": totals["short"] + totals["duplicate"] + totals["unknown"],
        "answers": totals,
        "own_top1_share": totals["first"] / max(1, totals["asked"]),
        "occluded": {
            **occluded,
            "inserted_minus_built_points": 100 * (occluded["inserted"] - occluded["built"]),
        },
    }
    figure = Figure(
        "recall_over_time",
        f"{s['set'][0]}: recall@10 at L {s['L']} while the index grows",
        "lines",
        [f["rows"] for f in steps],
        "vectors",
        "recall@10",
        [
            Series("navis", [f["recall"] for f in steps]),
            Series("fresh build", [f.get("fresh") for f in steps]),
        ],
        note="Against the exact neighbours of the time; one insert and two search threads.",
    )
    table = Table(
        "answers",
        "Answers while inserting, and edges",
        ["what", "found"],
        [
            ["queries answered", totals["answered"]],
            ["fewer than ten ids", totals["short"]],
            ["an id twice", totals["duplicate"]],
            ["an id never inserted", totals["unknown"]],
            ["acknowledged vectors asked for from another thread", totals["asked"]],
            ["found first", totals["first"]],
            ["α-occluded edges of built nodes, %", round(100 * occluded["built"], 1)],
            ["the same after the inserts, %", round(100 * occluded["built_after"], 1)],
            ["α-occluded edges of inserted nodes, %", round(100 * occluded["inserted"], 1)],
        ],
        "A public peer's inserted nodes have 66 % occluded edges, its built ones 38 %.",
    )
    return Summary(metrics, [figure], [table])


_COMMON = {"L": 40, "build_threads": 1}
EXPERIMENT = Experiment(
    id="recall_over_time",
    title="Recall, freshness and graph quality under concurrent inserts",
    source="NAVIS, recall under updates; Must show 6",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "set": ["S128", 3000, 600], "queries": 200, "batch": 300,
            "fresh_every": 600, "sample": 100,
        },
        "small": {
            **_COMMON, "set": ["S128", 100000, 20000], "queries": 1000, "batch": 5000,
            "fresh_every": 5000, "sample": 1000,
        },
    },
    minutes={"smoke": 0.3, "small": 12},
    gigabytes={"small": 1},
)  # fmt: skip
