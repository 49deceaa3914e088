"""Filtered search: recall and reads by selectivity, beside filtering what was found unfiltered."""

from __future__ import annotations

from typing import Any

import numpy as np
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Filter, Index
from navis.experiments._measure import Array, warm
from navis.experiments._store import Set, Store, recall_of
from navis.formats import Truth
from navis.groundtruth import exact
from navis.measure import Meter

K = 10


class Filtered:
    """A filter for each query, what matches it, and the exact neighbours among that.

    Attributes:
        share: Of the vectors that match a filter, on average.
        matches: bool (groups, n); `group` of each query is its row.
    """

    def __init__(self, of: Set, filters: list[Filter], matches: Array, group: Array) -> None:
        self.filters, self.matches, self.group = [filters[g] for g in group], matches, group
        self.share = float(matches[np.unique(group)].mean())
        ids = np.full((len(of.queries), 2 * K), -1, np.int64)
        distances = np.full(ids.shape, np.inf, np.float32)
        for g in np.unique(group):
            mine = group == g
            nearest = exact(of.base, of.queries[mine], 2 * K, exclude=~matches[g])
            ids[mine], distances[mine] = nearest.ids, nearest.distances
        self.truth = Truth(ids, distances)

    def wrong(self, ids: Array) -> int:
        """Answers that do not match."""
        n = self.matches.shape[1]
        inside = ids < n
        matching = self.matches[self.group[:, None], np.where(inside, ids, 0).astype(np.int64)]
        return int((~matching & inside).sum())

    def kept(self, ids: Array) -> Array:
        """The first K that match of each row; 2**64 - 1 where there are fewer."""
        out = np.full((len(ids), K), np.iinfo(np.uint64).max)
        for row, (found, g) in enumerate(zip(ids, self.group, strict=True)):
            some = found[self.matches[g][found.astype(np.int64)]][:K]
            out[row, : len(some)] = some
        return out


def _asked(of: Set, s: dict[str, Any], seed: int) -> tuple[Any, Array, dict[str, Filtered]]:
    """Labels and values of the vectors; the filters of every kind and selectivity.

    A vector has one label for each selectivity, drawn at random, and a random value.
    """
    draw, n = np.random.default_rng(seed), len(of.base)
    groups = {share: round(1 / share) for share in s["shares"]}
    drawn = {share: draw.integers(0, count, n) for share, count in groups.items()}
    values = draw.random(n)
    first = dict(zip(groups, np.cumsum([0, *groups.values()]), strict=False))
    labels = np.stack([drawn[share] + first[share] for share in groups], axis=1)
    found = {}
    for share, count in groups.items():
        group = draw.integers(0, count, len(of.queries))
        every = np.arange(count)
        found[f"label {share:g}"] = Filtered(
            of,
            [Filter(any_of=(int(first[share] + g),)) for g in every],
            drawn[share] == every[:, None],
            group,
        )
        lows = every / count
        found[f"range {share:g}"] = Filtered(
            of,
            [Filter(between=(float(low), float(low + share))) for low in lows],
            (values >= lows[:, None]) & (values <= lows[:, None] + share),
            group,
        )
    return labels.tolist(), values, found


def _search(index: Index, of: Set, L: int, k: int = K, **options: Any) -> tuple[Array, float]:
    """Ids, and requests per query."""
    with Meter(index) as meter:
        ids, _ = index.search(of.queries, k, L=L, **options)
    return ids, meter.reads / len(of.queries)


def _compare(index: Index, of: Set, asked: Filtered, s: dict[str, Any]) -> dict[str, Any]:
    """Filtering in the traversal; and after it: same L, as many requests, same recall."""
    found: dict[str, Any] = {"share": asked.share, "recall": [], "requests": [], "wrong": 0}
    for L in s["L"]:
        ids, requests = _search(index, of, L, filter=asked.filters)
        found["recall"].append(recall_of(ids, asked.truth))
        found["requests"].append(requests)
        found["wrong"] += asked.wrong(ids)
    at = s["L"].index(s["claimed_L"])
    after: list[tuple[int, float, float]] = []  # L, recall, requests
    L = s["claimed_L"]
    while L <= s["longest"] and (not after or after[-1][1] < found["recall"][at]):
        ids, requests = _search(index, of, L, k=L)
        after.append((L, recall_of(asked.kept(ids), asked.truth), requests))
        L *= 2
    as_dear = next((r for _, r, requests in after if requests >= found["requests"][at]), 0.0)
    reached = after[-1][1] >= found["recall"][at]
    return {
        **found,
        "claimed_recall": found["recall"][at],
        "claimed_requests": found["requests"][at],
        "after": after,
        "after_as_dear": as_dear,
        "above_points": 100 * (found["recall"][at] - max(as_dear, after[0][1])),
        "after_as_good": after[-1][2] / found["requests"][at] if reached else None,
    }


def run(context: Context) -> Summary:
    """Labels and ranges of each selectivity, in one index built with them."""
    s, store = context.settings, Store(context)
    of = store.set(s["set"][0], s["set"][1], 0, s["queries"])
    labels, values, asked = _asked(of, s, context.seed)
    folder = context.workdir / "index"
    found: dict[str, dict[str, Any]] = {}
    with Index.build(
        folder, of.base, layout="selective", labels=labels, values=values, seed=context.seed,
        cache="none",
    ) as index:  # fmt: skip
        warm(index, of.queries)
        for name, each in asked.items():
            found[name] = _compare(index, of, each, s)
            context.run.metric(filter=name, **found[name])
    every = list(found.values())
    metrics: dict[str, Any] = {
        "least_recall": min(f["claimed_recall"] for f in every),
        "least_above_points": min(f["above_points"] for f in every),
        "not_matching": sum(f["wrong"] for f in every),
        **{name.replace(" ", "_").replace("0.", "0_"): f for name, f in found.items()},
    }
    figures = [
        Figure(
            f"filters_{share:g}".replace(".", "_"), f"{100 * share:g} % match: recall by requests",
            "lines", [float(L) for L in s["L"]], "L", "recall@10",
            [Series(kind, found[f"{kind} {share:g}"]["recall"]) for kind in ("label", "range")],
        )
        for share in s["shares"]
    ]  # fmt: skip
    columns = ["filter", "matching, %", "L", "recall@10", "requests", "filtered after, same L",
               "filtered after, as many requests", "filtered after, as good: requests"]  # fmt: skip
    rows = [
        [name, round(100 * f["share"], 2), s["claimed_L"], round(f["claimed_recall"], 4),
         round(f["claimed_requests"], 1), round(f["after"][0][1], 4), round(f["after_as_dear"], 4),
         round(f["after"][-1][2]) if f["after_as_good"] else f"> {f['after'][-1][2]:.0f}"]
        for name, f in found.items()
    ]  # fmt: skip
    note = (
        "Filtered after: k = L unfiltered results, of which the first ten that match are kept; L "
        f"doubled until that is as good, up to {s['longest']}."
    )
    return Summary(metrics, figures, [Table("filters", "Filtered search", columns, rows, note)])


EXPERIMENT = Experiment(
    id="filters",
    title="Filtered search against filtering afterwards",
    source="notes, check 20; Must show 11",
    run=run,
    scales={
        "smoke": {
            "set": ["S128", 2000], "queries": 100, "shares": [0.1, 0.01], "L": [40, 80],
            "claimed_L": 40, "longest": 640,
        },
        "small": {
            "set": ["S128", 20000], "queries": 500, "shares": [0.1, 0.01], "L": [40, 80, 160],
            "claimed_L": 40, "longest": 640,
        },
    },
    minutes={"smoke": 0.2, "small": 3},
    gigabytes={"small": 0.1},
)  # fmt: skip
