"""What the stop rule of re-ranking saves and loses, in searches and in inserts."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index
from navis.experiments._measure import inserted, searched
from navis.experiments._store import Set, Store

_BARE = {"cache": "none"}  # reads are of vectors; lists are of no interest here


def _search(store: Store, of: Set, lists: list[int], margins: list[float]) -> dict[str, Any]:
    """Searches that stop as calibrated, that read all candidates, and with given margins."""
    truth = store.truth(of, len(of.base))
    base = store.index(of, layout="selective")
    found: dict[str, Any] = {"L": lists, "stop": [], "full": [], "margins": {}}
    with Index.open(base, readonly=True, rerank=True, **_BARE) as index:
        found["stop"] = [searched(index, of.queries, truth, L=L) for L in lists]
        for margin in margins:
            found["margins"][margin] = searched(
                index, of.queries, truth, L=lists[-1], margin=margin
            )
    with Index.open(base, readonly=True, rerank=False, **_BARE) as index:
        found["full"] = [searched(index, of.queries, truth, L=L) for L in lists]
    pairs = list(zip(found["stop"], found["full"], strict=True))
    found["loss_points"] = [100 * (f["recall"] - s["recall"]) for s, f in pairs]
    found["reads_over_full"] = [s["vector_reads"] / f["vector_reads"] for s, f in pairs]
    found["vectors_over_full"] = [s["vectors"] / f["vectors"] for s, f in pairs]
    return found


def _insert(store: Store, of: Set, count: int, lists: list[int]) -> dict[str, Any]:
    """The same inserts with and without the stop rule; then both graphs searched alike."""
    at, total = len(of.base), len(of.base) + count
    base, truth = store.index(of, layout="selective"), store.truth(of, total)
    result: dict[str, Any] = {}
    for name, rerank in (("stop", True), ("full", False)):
        with store.copy(base) as copy:
            with Index.open(copy, rerank=rerank) as index:
                made = inserted(index, at, of.rows(at, total), checkpoint=True)
            with Index.open(copy, readonly=True, rerank=False, **_BARE) as index:
                after = [searched(index, of.queries, truth, L=L) for L in lists]
        result[name] = {
            "vector_reads": made["vector_reads"],
            "expansions": made["expansions"],
            "reads_per_expansion": made["vector_reads"] / made["expansions"],
            "recall": [a["recall"] for a in after],
            "per_s": made["per_s"],
        }
    pairs = zip(result["stop"]["recall"], result["full"]["recall"], strict=True)
    result["loss_points"] = [100 * (full - stop) for stop, full in pairs]
    return result


def run(context: Context) -> Summary:
    """Every set searched both ways; one of them grown both ways."""
    s, store = context.settings, Store(context)
    searches: dict[str, Any] = {}
    for name, (base, more) in s["sets"].items():
        of = store.set(name, base, more, s["queries"].get(name, 1000))
        searches[name] = _search(store, of, s["L"], s["margins"])
        context.run.metric(set=name, **searches[name])
    name = s["insert_set"]
    base, more = s["sets"][name]
    of = store.set(name, base, more, s["queries"].get(name, 1000))
    inserts = _insert(store, of, more, s["L"])
    context.run.metric(set=name, inserts=inserts)

    def by_list(values: list[float]) -> dict[str, float]:
        return {str(L): value for L, value in zip(s["L"], values, strict=True)}

    metrics = {
        "search": {
            name: {
                "worst_loss_points": max(found["loss_points"]),
                "loss_points": found["loss_points"],
                "reads_over_full": by_list(found["reads_over_full"]),
                "vectors_over_full": by_list(found["vectors_over_full"]),
                "recall": [f["recall"] for f in found["stop"]],
            }
            for name, found in searches.items()
        },
        "insert": {
            **inserts["stop"],
            "worst_loss_points": max(inserts["loss_points"]),
            "loss_points": inserts["loss_points"],
            "full_reads_per_expansion": inserts["full"]["reads_per_expansion"],
        },
    }
    rows = [
        [name, L, round(f["recall"], 4), round(g["recall"], 4), round(lost, 2),
         round(f["vectors"], 1), round(g["vectors"], 1), round(f["vector_reads"], 1),
         round(g["vector_reads"], 1)]
        for name, found in searches.items()
        for L, f, g, lost in zip(
            found["L"], found["stop"], found["full"], found["loss_points"], strict=True)
    ]  # fmt: skip
    columns = ["set", "L", "recall@10", "recall, all read", "points lost", "vectors", "of",
               "vector pages read", "of "]  # fmt: skip
    figures = [_margins(name, found) for name, found in searches.items()]
    figures.append(_share(searches))
    table = Table("rerank", "Re-ranking that stops against reading all", columns, rows)
    return Summary(metrics, figures, [table], [_NOTE])


_NOTE = (
    "Vectors that share a page cost one read: at 128 dimensions eight of them do, at 384 two. "
    "The margin in use is what calibration found on stored vectors; the curves are margins given."
)


def _margins(name: str, found: dict[str, Any]) -> Figure:
    margins = sorted(found["margins"])
    full = found["full"][-1]
    return Figure(
        f"margins_{name}",
        f"{name}: vectors looked at and recall lost, by margin",
        "lines",
        list(margins),
        "margin",
        "share of vectors; points lost",
        [
            Series("vectors / all", [found["margins"][m]["vectors"] / full["vectors"]
                                     for m in margins]),
            Series("points of recall lost",
                   [max(0.0, 100 * (full["recall"] - found["margins"][m]["recall"]))
                    for m in margins]),
        ],
        note=f"At L {found['L'][-1]}.",
    )  # fmt: skip


def _share(searches: dict[str, Any]) -> Figure:
    names = list(searches)
    lists = searches[names[0]]["L"]
    series = [
        Series(f"L {L}", [searches[name]["vectors_over_full"][i] for name in names])
        for i, L in enumerate(lists)
    ]
    return Figure("vectors_share", "Vectors looked at, of those of full re-ranking", "bars", names,
                  "set", "share", series)  # fmt: skip


_COMMON = {"L": [20, 40, 80], "margins": [0.6, 0.7, 0.8, 0.9, 1.0], "insert_set": "S768"}
EXPERIMENT = Experiment(
    id="rerank",
    title="Re-ranking that stops: vector reads saved, recall lost",
    source="NAVIS, convergence-aware re-ranking; Must show 4",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "sets": {"S128": [3000, 0], "S768": [1600, 400], "W384": [600, 0]},
            "queries": {"S128": 200, "S768": 200, "W384": 200},
        },
        "small": {
            **_COMMON,
            "sets": {"S128": [100000, 20000], "S768": [60000, 15000], "W384": [0, 0]},
            # Two graphs are compared: of 1,000 queries chance alone makes 0.2 points.
            "queries": {"S768": 5000},
        },
    },
    minutes={"smoke": 0.7, "small": 8},
    gigabytes={"small": 2},
)  # fmt: skip
