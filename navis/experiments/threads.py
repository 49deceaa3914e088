"""Two threads against one, for searches and for inserts."""

from __future__ import annotations

import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median, noise, paired_ratio

from navis import Index
from navis.experiments._measure import FULL, budget, warm
from navis.experiments._store import Set, Store
from navis.measure import Meter

_TOGETHER = 512  # inserts of a call; with few the end of each, where one thread waits, would count


def _search(index: Index, of: Set, passes: int, L: int, threads: int) -> float:
    queries = np.concatenate([of.queries] * passes)
    with Meter(index) as meter:
        index.search(queries, 10, L=L, threads=threads)
    return len(queries) / meter.wall_s


def _insert(store: Store, of: Set, count: int, session: dict[str, Any], threads: int) -> float:
    """Each on a fresh copy; one call, so that the threads and not their caller set the pace."""
    at = len(of.base)
    with (
        store.copy(store.index(of, layout="selective")) as copy,
        Index.open(copy, **session) as index,
    ):
        warm(index, of.queries)
        rows = of.rows(at, at + count)
        with Meter(index) as meter:
            for first in range(0, count, _TOGETHER):
                part = rows[first : first + _TOGETHER]
                index.insert(np.arange(at + first, at + first + len(part)), part, threads=threads)
    return count / meter.wall_s


def _compute(threads: int, seconds: float) -> float:
    """Give checksums a second of so many threads that share nothing: what processors can do."""
    end = time.perf_counter() + seconds

    def work(_: int) -> int:
        data, count = bytes(1 << 18), 0
        while time.perf_counter() < end:
            zlib.crc32(data)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads))) / seconds


def _rates(
    store: Store, of: Set, s: dict[str, Any], session: dict[str, Any]
) -> dict[str, dict[int, list[float]]]:
    """One, two, one, two … threads; searches in one open index, inserts in fresh copies."""
    kinds = ("search", "insert", "checksums")
    found: dict[str, dict[int, list[float]]] = {kind: {1: [], 2: []} for kind in kinds}
    with Index.open(store.index(of, layout="selective"), readonly=True, **session) as index:
        _search(index, of, 1, s["L"], 1)
        for _ in range(s["rounds"]):
            for threads in (1, 2):
                rate = _search(index, of, s["passes"], s["L"], threads)
                found["search"][threads].append(rate)
            for threads in (1, 2):
                found["checksums"][threads].append(_compute(threads, s["seconds"]))
    for _ in range(s["rounds"]):
        for threads in (1, 2):
            rate = _insert(store, of, s["inserts"], session, threads)
            found["insert"][threads].append(rate)
    return found


def run(context: Context) -> Summary:
    """With pages in the system's memory, where processors are the limit; then from the disk."""
    s, store = context.settings, Store(context)
    base, more = s["set"][1:]
    of = store.set(s["set"][0], base, more, s["queries"])
    session = {**FULL, "memory_budget": budget(of, s["budget"])}
    ways = {
        "memory": {**session, "direct": False, "durability": "none"},
        "disk": session,
    }
    metrics: dict[str, Any] = {"cores": os.cpu_count()}
    rows, bars, aa = [], [], None
    for way, options in ways.items():
        found = _rates(store, of, s, options)
        context.run.metric(
            way=way, **{k: {str(t): v for t, v in each.items()} for k, each in found.items()}
        )
        metrics[way] = {
            kind: {
                "two_over_one": paired_ratio(each[2], each[1]),
                "per_s": {"one": median(each[1]), "two": median(each[2])},
            }
            for kind, each in found.items()
        }
        for kind in found:
            one, two = (metrics[way][kind]["per_s"][n] for n in ("one", "two"))
            ratio = metrics[way][kind]["two_over_one"]["median"]
            rows.append([kind, way, round(one), round(two), round(ratio, 3)])
            bars.append((f"{kind}, {way}", one, two))
        alone = found["search"][1]
        if way == "memory" and len(alone) > 1:
            aa = noise(alone[:-1], alone[1:])
    figure = Figure(
        "threads", "Throughput by threads", "bars", [name for name, _, _ in bars], "operation",
        "per second",
        [Series("one thread", [one for _, one, _ in bars]),
         Series("two threads", [two for _, _, two in bars])],
        log_y=True,
    )  # fmt: skip
    table = Table(
        "threads", "Two threads against one", ["operation", "pages", "one", "two", "ratio"], rows,
        "memory: pages through the system's page cache, so that processors are the limit. disk: "
        "past it; one thread has 16 reads under way, which is most of what this disk can do. "
        "Checksums: two threads that share nothing, in turns with the searches: what the machine "
        "gave a second thread in those seconds.",
    )  # fmt: skip
    return Summary(metrics, [figure], [table], noise=aa)


EXPERIMENT = Experiment(
    id="threads",
    title="Throughput of two threads against one",
    source="notes, check 23; Must show 13",
    run=run,
    scales={
        "smoke": {
            "set": ["S128", 3000, 400], "queries": 200, "passes": 2, "inserts": 256, "L": 40,
            "budget": 8.0, "rounds": 2, "seconds": 0.05,
        },
        "small": {
            "set": ["S128", 100000, 20000], "queries": 1000, "passes": 4, "inserts": 3000,
            "L": 40, "budget": 0.25, "rounds": 11, "seconds": 0.5,
        },
    },
    minutes={"smoke": 0.4, "small": 4},
    gigabytes={"small": 1},
)  # fmt: skip
