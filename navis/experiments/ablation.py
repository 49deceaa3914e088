"""What each part adds: packed, decoupled, re-ranking, page sharing, cache, dynamic entrance."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median, noise

from navis import Index
from navis.experiments._measure import PACKED, budget, inserted, searched
from navis.experiments._store import Set, Store

_ALONE = {"entrance": "fixed", "cache": "none", "share_pages": False, "rerank": False}
# Each row has what the one before it has, and one thing more.
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("packed", PACKED),
    "decoupled": ("selective", _ALONE),
    "re-ranking": ("selective", {**_ALONE, "rerank": True}),
    "page sharing": ("selective", {**_ALONE, "rerank": True, "share_pages": True}),
    "cache": (
        "selective",
        {**_ALONE, "rerank": True, "share_pages": True, "cache": "lfu"},
    ),
    "dynamic entrance": (
        "selective",
        {"rerank": True, "share_pages": True, "cache": "lfu", "entrance": "dynamic"},
    ),
}


def _step(store: Store, of: Set, layout: str, session: dict[str, Any], s: dict[str, Any]) -> Any:
    """Searches, inserts and searches again on a fresh copy."""
    at, count = len(of.base), s["inserts"]
    with (
        store.copy(store.index(of, for_budget=session["memory_budget"], layout=layout)) as copy,
        Index.open(copy, **session) as index,
    ):
        searched(index, of.queries, L=s["L"])  # fills what is to be filled
        search = searched(index, of.queries, store.truth(of, at), L=s["L"])
        insert = inserted(index, at, of.rows(at, at + count))
        index.checkpoint()
        after = searched(index, of.queries, store.truth(of, at + count), L=s["L"])
    return {
        "search_requests": search["requests"],
        "search_bytes": search["kernel_read_bytes"],
        "qps": search["qps"],
        "recall": search["recall"],
        "recall_after": after["recall"],
        "insert_requests": insert["requests"],
        "insert_reads": insert["edge_reads"] + insert["vector_reads"],
        "insert_bytes": insert["kernel_read_bytes"] + insert["kernel_write_bytes"],
        "inserts_per_s": insert["per_s"],
    }


def run(context: Context) -> Summary:
    """All rows of the table one after the other, round by round, for every set."""
    s, store = context.settings, Store(context)
    metrics: dict[str, Any] = {}
    tables, figures, aa = [], [], []
    for name, (base, more) in s["sets"].items():
        of = store.set(name, base, more, s["queries"])
        limit = budget(of, s["budgets"][name])
        rounds: dict[str, list[dict[str, Any]]] = {step: [] for step in STEPS}
        for number in range(s["rounds"]):
            for step, (layout, options) in STEPS.items():
                found = _step(store, of, layout, {**options, "memory_budget": limit}, s)
                rounds[step].append(found)
                context.run.metric(set=name, round=number, step=step, **found)
        middle = {
            step: {key: median([f[key] for f in found]) for key in found[0]}
            for step, found in rounds.items()
        }
        metrics[name] = _metrics(middle)
        tables.append(_table(name, middle))
        figures += _figures(name, middle)
        rates = [f["qps"] for f in rounds["packed"]]
        if len(rates) > 1:
            aa.append(noise(rates[:-1], rates[1:]))
    widest = max(aa, key=lambda n: n["spread"]) if aa else None
    shares = ", ".join(f"{name} {100 * share:g} %" for name, share in s["budgets"].items())
    note = f"All rows of a set under one memory budget, of the vectors' bytes: {shares}."
    return Summary(metrics, figures, tables, [note], noise=widest)


def _metrics(middle: dict[str, dict[str, float]]) -> dict[str, Any]:
    packed, ours = middle["packed"], list(middle.values())[1:]
    decoupled, whole = ours[0], ours[-1]
    return {
        "steps": middle,
        "decoupled_over_packed": {
            "search_requests": decoupled["search_requests"] / packed["search_requests"],
            "insert_requests": decoupled["insert_requests"] / packed["insert_requests"],
            "insert_reads": decoupled["insert_reads"] / packed["insert_reads"],
        },
        "whole_over_packed": {
            "search_requests": whole["search_requests"] / packed["search_requests"],
            "insert_requests": whole["insert_requests"] / packed["insert_requests"],
            "qps": whole["qps"] / packed["qps"],
            "inserts_per_s": whole["inserts_per_s"] / packed["inserts_per_s"],
        },
        # Decoupled, re-ranking, page sharing, cache: each saves. The entrance graph is for drift.
        "insert_reads_by_step": [f["insert_reads"] for f in ours[:-1]],
        "search_requests_by_step": [f["search_requests"] for f in ours[:-1]],
    }


def _table(name: str, middle: dict[str, dict[str, float]]) -> Table:
    columns = ["", "requests/search", "KiB/search", "recall@10", "search/s", "requests/insert",
               "KiB/insert", "insert/s", "recall@10 after"]  # fmt: skip
    rows = [
        [step if step in ("packed", "decoupled") else f"+ {step}",
         round(f["search_requests"], 1), round(f["search_bytes"] / 1024), round(f["recall"], 4),
         round(f["qps"]), round(f["insert_requests"], 1), round(f["insert_bytes"] / 1024),
         round(f["inserts_per_s"], 1), round(f["recall_after"], 4)]
        for step, f in middle.items()
    ]  # fmt: skip
    return Table(f"ablation_{name}", f"{name}: what each part adds", columns, rows)


def _figures(name: str, middle: dict[str, dict[str, float]]) -> list[Figure]:
    steps = [step if step in ("packed", "decoupled") else f"+ {step}" for step in middle]

    def bars(id: str, title: str, parts: dict[str, str], label: str) -> Figure:
        series = [Series(word, [f[key] for f in middle.values()]) for word, key in parts.items()]
        return Figure(f"{id}_{name}", f"{name}: {title}", "bars", list(steps), "", label, series)

    requests = {"search": "search_requests", "insert": "insert_requests"}
    rates = {"searches": "qps", "inserts": "inserts_per_s"}
    return [
        bars("requests", "requests per operation", requests, "requests"),
        bars("rates", "operations per second, one thread", rates, "per second"),
    ]


_COMMON = {"L": 40}
EXPERIMENT = Experiment(
    id="ablation",
    title="Ablation: from the packed layout to the whole",
    source="NAVIS, ablation; Must show 15",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "sets": {"S128": [4200, 300], "S768": [2000, 200]}, "queries": 100,
            "inserts": 200, "budgets": {"S128": 4.0, "S768": 1.2}, "rounds": 1,
        },
        "small": {
            **_COMMON,
            "sets": {"S128": [100000, 20000], "S768": [60000, 15000], "S1536": [30000, 7500]},
            # At 128 dimensions codes and tables alone are more than a tenth.
            "budgets": {"S128": 0.3, "S768": 0.1, "S1536": 0.1},
            "queries": 1000, "inserts": 1000, "rounds": 3,
        },
    },
    minutes={"smoke": 0.5, "small": 12},
    gigabytes={"small": 3},
)  # fmt: skip
