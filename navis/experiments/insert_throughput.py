"""Inserts per second, alone and beside searches: the packed layout against ours, in pairs."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
from shorthaul.errors import UserError
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median, noise, paired_ratio

from navis import Index, workload
from navis.experiments._measure import FULL, PACKED, RawReads, budget, inserted, searched, warm
from navis.experiments._store import Set, Store

_LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("packed", PACKED),
    "full": ("selective", FULL),
}
PAPER = {"insert": 2.74, "search": 1.37, "latency": 1 - 0.2526}


def _tuned(store: Store, of: Set, layout: str, session: dict[str, Any], s: dict[str, Any]) -> Any:
    """The beam and number of traversals in flight with which this layout inserts fastest.

    Both layouts are tuned over the same choices, one after the other twice, on one copy.
    """
    choices = list(itertools.product(s["beams"], s["in_flights"]))
    rates: dict[tuple[int, int], list[float]] = {choice: [] for choice in choices}
    if len(choices) == 1:
        return choices[0], {}
    at = len(of.base)
    base = store.index(of, for_budget=session["memory_budget"], layout=_LAYOUTS[layout][0])
    with store.copy(base) as copy:
        for beam, in_flight in choices * 2:
            try:
                opened = Index.open(copy, **session, beam=beam, in_flight=in_flight)
            except UserError:  # the memory budget has no room for so many in flight
                continue
            with opened as index:
                warm(index, of.queries)
                found = inserted(index, at, of.rows(at, at + s["tuning"]))
                rates[beam, in_flight].append(found["per_s"])
                at += s["tuning"]
                index.checkpoint()  # or the next opening would replay the log
    means = {choice: float(np.mean(found)) for choice, found in rates.items() if found}
    return max(means, key=lambda choice: means[choice]), means


def _round(
    store: Store, of: Set, layout: str, session: dict[str, Any], s: dict[str, Any]
) -> dict[str, Any]:
    """On a fresh copy: inserts alone, searches alone, one thread of each, then recall."""
    at, alone, both = len(of.base), s["inserts"], s["inserts_beside"]
    base = store.index(of, for_budget=session["memory_budget"], layout=_LAYOUTS[layout][0])
    with store.copy(base) as copy, Index.open(copy, **session) as index:
        searched(index, of.queries, L=s["L"])  # the cache is as full as it will be
        insert = inserted(index, at, of.rows(at, at + alone))
        at += alone
        search = workload.run(
            index, np.empty(0, np.uint64), of.rows(0, 0), of.queries, L=s["L"],
            insert_threads=0, search_threads=1, seconds=s["seconds"],
        ).summary()  # fmt: skip
        with RawReads(base / ("records.dat" if layout == "packed" else "vectors.dat")) as raw:
            beside = workload.run(
                index, np.arange(at, at + both), of.rows(at, at + both), of.queries, L=s["L"],
                insert_threads=1, search_threads=1,
            ).summary()  # fmt: skip
        after = searched(index, of.queries, store.truth(of, at + both), L=s["L"])
    return {
        "inserts_per_s": insert["per_s"],
        "requests": insert["requests"],
        "edge_reads": insert["edge_reads"],
        "vector_reads": insert["vector_reads"],
        "kernel_bytes": (insert["kernel_read_bytes"] + insert["kernel_write_bytes"]),
        "cpu_ms": insert["cpu_ms"],
        "search_alone": search,
        "beside": beside,
        "raw": {"worst_ms": raw.worst_ms, "p99_ms": raw.p99_ms, "reads": raw.reads},
        "stall_ms": beside["search_ms"]["max"] - raw.worst_ms,
        "p99_over_alone": beside["search_ms"]["p99"] / search["search_ms"]["p99"],
        "recall": after["recall"],
    }


def _compared(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def each(layout: str, *path: str) -> list[float]:
        values = []
        for found in rounds[layout]:
            value: Any = found
            for part in path:
                value = value[part]
            values.append(float(value))
        return values

    def ratio(*path: str) -> dict[str, float]:
        return paired_ratio(each("full", *path), each("packed", *path))

    recall = {layout: median(each(layout, "recall")) for layout in _LAYOUTS}
    return {
        "insert": {
            "throughput": ratio("inserts_per_s"),
            "requests": ratio("requests")["median"],
            "bytes": ratio("kernel_bytes")["median"],
            "per_s": {layout: median(each(layout, "inserts_per_s")) for layout in _LAYOUTS},
            "requests_each": {layout: median(each(layout, "requests")) for layout in _LAYOUTS},
        },
        "beside": {
            "insert_throughput": ratio("beside", "inserts_per_s"),
            "search_throughput": ratio("beside", "searches_per_s"),
            "mean_latency": ratio("beside", "search_ms", "mean"),
            "p99_latency": ratio("beside", "search_ms", "p99"),
            "recall": recall,
            "recall_gap_points": 100 * abs(recall["full"] - recall["packed"]),
            "p99_over_alone": median(each("full", "p99_over_alone")),
            "stall_ms": max(each("full", "stall_ms")),
            "raw_worst_ms": max(each("full", "raw", "worst_ms")),
            "short": sum(found["beside"]["short"] for found in rounds["full"]),
        },
        "rounds": len(rounds["full"]),
    }


def run(context: Context) -> Summary:
    """Packed, full, packed, full, … each on a fresh copy of its index, inserting the same rows."""
    s, store = context.settings, Store(context)
    metrics: dict[str, Any] = {}
    aa: list[dict[str, float]] = []
    rows: list[list[Any]] = []
    for name, (base, more) in s["sets"].items():
        of = store.set(name, base, more, s["queries"])
        sessions, tuned = {}, {}
        for layout, (_, options) in _LAYOUTS.items():
            session = {**options, "memory_budget": budget(of, s["budget"])}
            (beam, in_flight), tried = _tuned(store, of, layout, session, s)
            sessions[layout] = {**session, "beam": beam, "in_flight": in_flight}
            tuned[layout] = {"beam": beam, "in_flight": in_flight}
            shown = {f"beam {b}, {f} in flight": rate for (b, f), rate in tried.items()}
            context.run.metric(set=name, layout=layout, tuned=tuned[layout], tried=shown)
        rounds: dict[str, list[dict[str, Any]]] = {layout: [] for layout in _LAYOUTS}
        for number in range(s["rounds"]):
            for layout in _LAYOUTS:
                found = _round(store, of, layout, sessions[layout], s)
                rounds[layout].append(found)
                context.run.metric(set=name, round=number, layout=layout, **found)
        metrics[name] = {**_compared(rounds), "tuned": tuned}
        with contextlib.suppress(ValueError):  # one round has no pair
            rates = [r["inserts_per_s"] for r in rounds["packed"]]
            aa.append(noise(rates[:-1], rates[1:]))
        rows += [_row(name, layout, rounds[layout]) for layout in _LAYOUTS]
    widest = max(aa, key=lambda n: n["spread"]) if aa else None
    return Summary(metrics, _figures(metrics), [_table(rows)], [_NOTE], noise=widest)


_NOTE = (
    "Both layouts are one engine with the same log and the same durability, each with the beam and "
    "the number of traversals in flight with which it inserts fastest. Packed is the design of "
    "DiskANN and OdinANN: records, an entrance graph that stays as it was built, no cache of lists."
)


def _row(name: str, layout: str, rounds: list[dict[str, Any]]) -> list[Any]:
    def middle(read: Any) -> float:
        return median([read(found) for found in rounds])

    return [
        name,
        layout,
        round(middle(lambda f: f["inserts_per_s"]), 1),
        round(middle(lambda f: f["requests"]), 1),
        round(middle(lambda f: f["cpu_ms"]), 2),
        round(middle(lambda f: f["beside"]["inserts_per_s"]), 1),
        round(middle(lambda f: f["beside"]["searches_per_s"]), 1),
        round(middle(lambda f: f["beside"]["search_ms"]["mean"]), 2),
        round(middle(lambda f: f["beside"]["search_ms"]["p99"]), 2),
        round(middle(lambda f: f["search_alone"]["search_ms"]["p99"]), 2),
        round(middle(lambda f: f["raw"]["worst_ms"]), 1),
        round(middle(lambda f: f["recall"]), 4),
    ]


def _table(rows: list[list[Any]]) -> Table:
    columns = [
        "set", "layout", "insert/s alone", "requests per insert", "CPU ms per insert",
        "insert/s beside", "search/s beside", "mean ms", "p99 ms", "p99 ms without inserts",
        "longest raw read, ms", "recall@10",
    ]  # fmt: skip
    return Table("throughput", "Inserts and searches, medians of the rounds", columns, rows,
                 "Beside: one insert and one search thread at the same time.")  # fmt: skip


def _figures(metrics: dict[str, Any]) -> list[Figure]:
    names = list(metrics)

    def ratios(title: str, id: str, part: str, key: str, paper: float) -> Figure:
        found = [metrics[name][part][key] for name in names]
        ours = Series(
            "full", [f["median"] for f in found],
            low=[f["low"] for f in found], high=[f["high"] for f in found],
        )  # fmt: skip
        theirs = Series("NAVIS", [paper] * len(names), kind="paper")
        return Figure(id, title, "bars", names, "set", "full / packed", [ours, theirs],
                      note="The paper's: its best over OdinANN, on its own servers.")  # fmt: skip

    return [
        ratios("Insert throughput over packed", "insert_ratio", "insert", "throughput",
               PAPER["insert"]),
        ratios("Search throughput beside inserts, over packed", "search_ratio", "beside",
               "search_throughput", PAPER["search"]),
        ratios("Mean search latency beside inserts, over packed", "latency_ratio", "beside",
               "mean_latency", PAPER["latency"]),
        Figure(
            "insert_per_s", "Inserts per second", "bars", names, "set", "inserts per second",
            [Series(layout, [metrics[n]["insert"]["per_s"][layout] for n in names])
             for layout in _LAYOUTS],
        ),
    ]  # fmt: skip


COMMON = {"beams": [4, 8], "in_flights": [4, 8], "L": 40}
EXPERIMENT = Experiment(
    id="insert_throughput",
    title="Insert and concurrent search throughput, packed against full",
    source="NAVIS, abstract; Must show 2 and 3",
    run=run,
    scales={
        "smoke": {
            **COMMON, "sets": {"S768": [3000, 400]}, "queries": 200, "budget": 0.9, "rounds": 2,
            "beams": [4], "in_flights": [4], "tuning": 64, "inserts": 160, "inserts_beside": 160,
            "seconds": 0.5,
        },
        "small": {
            **COMMON, "sets": {"S768": [60000, 15000], "S1536": [30000, 7500]}, "queries": 1000,
            "budget": 0.1, "rounds": 5, "tuning": 256, "inserts": 1500, "inserts_beside": 1500,
            "seconds": 4.0,
        },
    },
    minutes={"smoke": 0.5, "small": 14},
    gigabytes={"small": 3},
)  # fmt: skip
