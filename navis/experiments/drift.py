"""A region that was not there at the build: how soon traversals reach it, by entrance graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index
from navis.experiments._measure import inserted, searched
from navis.experiments._store import Set, Store, recall_of
from navis.formats import Truth

_MODES = ("fixed", "dynamic")
_SHARE = 0.01  # entrance nodes per vector, the default of Index.build


def approach(
    index: Index, queries: npt.NDArray[Any], first: int, stop: int, L: int
) -> float | None:
    """Expansions until the first in rows [first, stop), itself included; mean over queries."""
    if not len(queries):
        return None
    took = []
    for path in index.trace(queries, L):
        there = np.flatnonzero((path >= first) & (path < stop))
        took.append(there[0] + 1 if there.size else len(path))
    return float(np.mean(took))


def _entrance(index: Index, made: dict[str, Any]) -> dict[str, Any]:
    held = index.stats()
    bound = _SHARE * held["live"]
    return {
        "entrance_nodes": held["entrance_nodes"],
        "of_bound": held["entrance_nodes"] / bound,
        "entrance_reads": made["counts"]["entrance_reads"],
        "promotions": made["counts"]["entrance_promotions"],
        "inserts_per_s": made["per_s"],
    }


def _far(store: Store, of: Set, L: int) -> dict[str, Any]:
    """Insert the far region with either entrance graph; then ask for it."""
    at, total = len(of.base), len(of.base) + len(of.more)
    half = len(of.queries) // 2
    whole = store.truth(of, total)
    truth = Truth(whole.ids[half:], None if whole.distances is None else whole.distances[half:])
    found: dict[str, Any] = {}
    for mode in _MODES:
        with (
            store.copy(store.index(of, layout="selective")) as copy,
            Index.open(copy, entrance=mode) as index,
        ):
            made = inserted(index, at, of.rows(at, total))
            late = of.queries[half:]
            result = searched(index, late, truth, L=L)
            found[mode] = {
                "approach": approach(index, late, at, total, L),
                "approach_seek": approach(index, late, at, total, 128),
                "expansions": result["expansions"],
                "recall": result["recall"],
                "recall_early": recall_of(
                    index.search(of.queries[:half], 10, L=L)[0],
                    Truth(whole.ids[:half]),
                ),
                **_entrance(index, made),
            }
    return found


def _speech(store: Store, of: Set, L: int) -> dict[str, Any]:
    """Nouns are built; verbs, adjectives and adverbs inserted, each followed by queries."""
    found: dict[str, Any] = {mode: {} for mode in _MODES}
    nouns = of.parts["noun"][1]
    for mode in _MODES:
        with (
            store.copy(store.index(of, rows=nouns, layout="selective")) as copy,
            Index.open(copy, entrance=mode) as index,
        ):
            for part in ("verb", "adj", "adv"):
                first, stop = of.parts[part]
                made = inserted(index, first, of.rows(first, stop))
                truth = store.truth(of, stop)
                nearest = truth.ids[:, 0]
                theirs = (nearest >= first) & (nearest < stop)
                found[mode][part] = {
                    "recall": searched(index, of.queries, truth, L=L)["recall"],
                    "approach": approach(index, of.queries[theirs], first, stop, L),
                    "queries": int(theirs.sum()),
                    **_entrance(index, made),
                }
    return found


def run(context: Context) -> Summary:
    """The synthetic far region, then WordNet's parts of speech."""
    s, store = context.settings, Store(context)
    of = store.set(f"D{s['dim']}", *s["far"], s["queries"])
    far = _far(store, of, s["L"])
    context.run.metric(far=far)
    dynamic, fixed = far["dynamic"], far["fixed"]
    metrics: dict[str, Any] = {
        "far": {
            **far,
            "approach_ratio": dynamic["approach"] / fixed["approach"],
            "of_bound": dynamic["of_bound"],
        },
        "entrance_reads": dynamic["entrance_reads"],
    }
    columns = ["set", "part", "entrance", "expansions to get there", "recall@10", "of the bound",
               "reads for it"]  # fmt: skip
    rows = [
        [of.name, "far region", mode, _rounded(far[mode]["approach"]),
         round(far[mode]["recall"], 4), round(far[mode]["of_bound"], 3),
         far[mode]["entrance_reads"]]
        for mode in _MODES
    ]  # fmt: skip
    figures = [
        Figure(
            "approach", "Expansions until a newly inserted far region is reached", "bars",
            ["search, L 40", "seeking, L 128"], "traversal", "expansions",
            [Series(mode, [far[mode]["approach"], far[mode]["approach_seek"]])
             for mode in _MODES],
        )
    ]  # fmt: skip
    if s["words"]:
        words = store.set("W384", s["words"][0], 0, s["words"][1])
        speech = _speech(store, words, s["L"])
        context.run.metric(speech=speech)
        metrics["words"] = {
            **speech,
            "recall_gain_points": [
                100 * (speech["dynamic"][p]["recall"] - speech["fixed"][p]["recall"])
                for p in speech["fixed"]
            ],
            "of_bound": [found["of_bound"] for found in speech["dynamic"].values()],
        }
        metrics["entrance_reads"] += sum(f["entrance_reads"] for f in speech["dynamic"].values())
        rows += [
            ["W384", part, mode, _rounded(f["approach"]), round(f["recall"], 4),
             round(f["of_bound"], 3), f["entrance_reads"]]
            for mode in _MODES for part, f in speech[mode].items()
        ]  # fmt: skip
        parts = list(speech["fixed"])
        figures.append(
            Figure(
                "words", "WordNet after nouns: recall@10 as parts of speech are inserted", "lines",
                parts, "inserted last", "recall@10",
                [Series(mode, [speech[mode][p]["recall"] for p in parts]) for mode in _MODES],
            )
        )  # fmt: skip
    table = Table("drift", "Drift", columns, rows,
                  "Of the bound: entrance nodes over 1 % of the vectors. Parts of speech overlap: "
                  "a mild drift.")  # fmt: skip
    return Summary(metrics, figures, [table])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


_COMMON = {"dim": 128, "L": 40}
EXPERIMENT = Experiment(
    id="drift",
    title="Drift: an entrance graph that keeps up, against one that stays as built",
    source="NAVIS, dynamic entrance graph; Must show 7",
    run=run,
    scales={
        "smoke": {**_COMMON, "far": [4600, 400], "queries": 100, "words": []},
        "small": {**_COMMON, "far": [92000, 8000], "queries": 500, "words": [0, 1000]},
    },
    minutes={"smoke": 0.2, "small": 9},
    gigabytes={"small": 1},
)  # fmt: skip
