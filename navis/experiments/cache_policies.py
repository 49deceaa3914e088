"""Which edge lists to keep: aged frequency against recency, on traces and in the engine."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index
from navis.experiments._measure import inserted, searched
from navis.experiments._store import Set, Store

Array = npt.NDArray[Any]
_POLICIES = ("lfu", "lru")
_CAPACITY = 0.05  # of the edge lists, where the claims are made


def skewed(of: Set, count: int, random: np.random.Generator, *, hot: float = 0.05) -> Array:
    """Queries of which 80 % are near 5 % of the data: ten neighbourhoods of equal size.

    A query to a neighbourhood is one of its vectors, moved by a third of the way to another.
    """
    base = np.asarray(of.base)
    spots = 10
    each = max(2, int(hot * len(base) / spots))
    members = []
    for pivot in random.choice(len(base), spots, replace=False):
        away = ((base - base[pivot]) ** 2).sum(axis=1)
        members.append(np.argpartition(away, each - 1)[:each])
    spot = random.integers(spots, size=count)
    a, b = (random.integers(each, size=count) for _ in range(2))
    chosen = np.array([members[s][[i, j]] for s, i, j in zip(spot, a, b, strict=True)])
    near = base[chosen[:, 0]] + (base[chosen[:, 1]] - base[chosen[:, 0]]) / 3
    cold = random.random(count) >= 0.8
    uniform = base[random.integers(len(base), size=count)]
    other = base[random.integers(len(base), size=count)]
    near[cold] = (uniform + (other - uniform) / 10)[cold]
    return np.ascontiguousarray(near, np.float32)


def record(index: Index, queries: Array, L: int, *, seek: bool = False) -> tuple[Array, Array]:
    """Every access of these traversals: ids and depths, uint32."""
    paths = index.trace(queries, L, seek=seek)
    depths = [np.arange(len(path)) for path in paths]
    return np.concatenate(paths).astype(np.uint32), np.concatenate(depths).astype(np.uint32)


def hits(trace: list[tuple[Array, Array]], entries: int, policy: str) -> int:
    """Hits of a cache of so many lists, empty at first, over pieces of trace in their order."""
    if not trace:
        return 0
    core = importlib.import_module("navis._core")
    ids, depths = (np.concatenate(column) for column in zip(*trace, strict=True))
    found = core.simulate_cache(ids, depths, entries, getattr(core.CachePolicy, policy), [], 0)
    return int(found[0])


def ratio(
    before: list[tuple[Array, Array]], window: tuple[Array, Array], entries: int, policy: str
) -> float:
    """Hit ratio within a window of accesses, after what came before it."""
    more = hits([*before, window], entries, policy) - hits(before, entries, policy)
    return more / len(window[0])


def _mixed(index: Index, of: Set, queries: Array, s: dict[str, Any]) -> list[tuple[Array, Array]]:
    """Searches and, one in eight of them, position seekings, in turn."""
    at, pieces = len(of.base), []
    for first in range(0, len(queries), 64):
        pieces.append(record(index, queries[first : first + 64], s["L"]))
        pieces.append(record(index, of.rows(at, at + 8), 128, seek=True))
        at = at + 8 if at + 16 <= len(of.base) + len(of.more) else len(of.base)
    return pieces


def _simulated(index: Index, of: Set, queries: Array, s: dict[str, Any]) -> dict[str, Any]:
    trace = _mixed(index, of, queries, s)
    half = len(trace) // 2
    window = tuple(np.concatenate(column) for column in zip(*trace[half:], strict=True))
    ratios: dict[str, dict[str, float]] = {policy: {} for policy in _POLICIES}
    for share in s["capacities"]:
        entries = max(1, int(share * len(of.base)))
        for policy in _POLICIES:
            found = ratio(trace[:half], (window[0], window[1]), entries, policy)
            ratios[policy][f"{100 * share:g}"] = found
    at = f"{100 * _CAPACITY:g}"
    return {
        "hit_ratio": ratios,
        "accesses": sum(len(piece[0]) for piece in trace),
        "lfu_over_lru": ratios["lfu"][at] / max(1e-9, ratios["lru"][at]),
    }


def _scan(index: Index, of: Set, queries: Array, s: dict[str, Any]) -> dict[str, Any]:
    """What a burst of cold inserts between two runs of queries does to the second one."""
    half = len(queries) // 2
    before = [record(index, queries[:half], s["L"])]
    after = record(index, queries[half:], s["L"])
    at = len(of.base)
    burst = record(index, of.rows(at, at + s["burst"]), 128, seek=True)
    entries = max(1, int(_CAPACITY * len(of.base)))
    found: dict[str, Any] = {}
    for policy in _POLICIES:
        quiet = ratio(before, after, entries, policy)
        disturbed = ratio([*before, burst], after, entries, policy)
        found[policy] = {"quiet": quiet, "after_burst": disturbed, "drop": 1 - disturbed / quiet}
    return found


def _budget_for(base: Any, entries: int, limit: int) -> int | None:
    """The smallest memory budget, to a hundredth, whose cache holds so many lists."""

    def capacity(bytes_: int) -> int:
        try:
            with Index.open(base, readonly=True, memory_budget=bytes_) as index:
                return int(index.stats()["cache_capacity"])
        except UserError:
            return -1

    low, high = 1, limit
    if capacity(high) < entries:
        return None
    while high - low > high // 100:
        middle = (low + high) // 2
        low, high = (low, middle) if capacity(middle) >= entries else (middle, high)
    return high


def _live(store: Store, of: Set, queries: dict[str, Array], s: dict[str, Any]) -> dict[str, Any]:
    """The engine's own caches at one budget: hits and reads of searches after inserts."""
    base = store.index(of, layout="selective")
    bytes_ = _budget_for(base, int(_CAPACITY * len(of.base)), 4 * of.raw_bytes + (64 << 20))
    found: dict[str, Any] = {}
    for policy in (*_POLICIES, "none"):
        found[policy] = {}
        for kind, asked in queries.items():
            with (
                store.copy(base) as copy,
                Index.open(copy, cache=policy, memory_budget=bytes_) as index,  # type: ignore[arg-type]
            ):
                half = len(asked) // 2
                searched(index, asked[:half], L=s["L"])
                at = len(of.base)
                made = inserted(index, at, of.rows(at, at + s["live_inserts"]))
                index.checkpoint()  # changed lists held in memory are no merit of a cache
                result = searched(index, asked[half:], L=s["L"])
                found[policy][kind] = {
                    "hit_ratio": result["cache_hit_ratio"],
                    "requests": result["requests"],
                    "insert_requests": made["requests"],
                    "capacity": index.stats()["cache_capacity"],
                }
    return found


def run(context: Context) -> Summary:
    """Traces of both kinds of queries, replayed; then the engine itself at the same capacity."""
    s, store = context.settings, Store(context)
    base, more = s["set"][1:]
    of = store.set(s["set"][0], base, more, s["queries"])
    random = np.random.default_rng(context.seed)
    queries = {"uniform": of.queries, "skewed": skewed(of, s["queries"], random)}
    with Index.open(store.index(of, layout="selective"), readonly=True, cache="none") as index:
        traced = {kind: _simulated(index, of, asked, s) for kind, asked in queries.items()}
        scan = _scan(index, of, queries["skewed"], s)
    context.run.metric(traced=traced, scan=scan)
    live = _live(store, of, queries, s)
    context.run.metric(live=live)
    metrics = {**traced, "scan": scan, "live": live, "worst_drop": scan["lfu"]["drop"]}
    shares = [100 * share for share in s["capacities"]]
    figures = [
        Figure(
            f"hits_{kind}",
            f"Hit ratio by capacity, {kind} queries",
            "lines",
            list(shares),
            "capacity, % of the edge lists",
            "hit ratio",
            [Series(policy, list(traced[kind]["hit_ratio"][policy].values()))
             for policy in _POLICIES],
            note="Recorded searches at L 40 with an insert's seeking per eight of them, replayed.",
        )
        for kind in queries
    ]  # fmt: skip
    rows = [
        [kind, policy, round(traced[kind]["hit_ratio"][policy][f"{100 * _CAPACITY:g}"], 3)
         if policy in _POLICIES else None,
         round(live[policy][kind]["hit_ratio"], 3), round(live[policy][kind]["requests"], 1),
         round(live[policy][kind]["insert_requests"], 1)]
        for kind in queries for policy in live
    ]  # fmt: skip
    columns = ["queries", "policy", "hits, replayed", "hits, engine", "requests per search",
               "requests per insert"]  # fmt: skip
    table = Table("policies", "Policies at 5 % of the edge lists", columns, rows,
                  "In the engine lists found on a page in hand come second, and entrance nodes' "
                  "lists are held under every policy.")  # fmt: skip
    return Summary(metrics, figures, [table])


_COMMON = {"L": 40, "capacities": [0.01, 0.05, 0.1, 0.2]}
EXPERIMENT = Experiment(
    id="cache_policies",
    title="Cache policies for edge lists",
    source="NAVIS, entrance-graph-aware cache; Must show 8",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "set": ["S128", 4000, 400], "queries": 800, "burst": 100,
            "live_inserts": 100,
        },
        "small": {
            **_COMMON, "set": ["S128", 100000, 20000], "queries": 10000, "burst": 2000,
            "live_inserts": 2000,
        },
    },
    minutes={"smoke": 0.2, "small": 5},
    gigabytes={"small": 1},
)  # fmt: skip
