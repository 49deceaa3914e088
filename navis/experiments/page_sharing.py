"""How many expansions find their list on a page in hand, and what space that takes, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index
from navis.experiments._measure import inserted, searched
from navis.experiments._store import Set, Store

# From the simulator of the notes, section 1.3: pages filled by co-updated lists alone.
NAIVE_SPACE = 5.7


def _look(index: Index, of: Set, inserts: int) -> dict[str, Any]:
    """Page sharing of searches at both lengths; space of the file and of its pages in use."""
    index.checkpoint()
    held = index.stats()
    long, short = (searched(index, of.queries, L=L) for L in (128, 40))
    return {
        "inserts": inserts,
        "h": long["shared_ratio"],
        "h_short": short["shared_ratio"],
        "from_memory": long["cache_hit_ratio"],
        "edge_reads": long["edge_reads"],
        "space": held["units"] / held["units_minimal"],
        "space_in_use": held["units_used"] / held["units_minimal"],
    }


def _grown(store: Store, of: Set, count: int, steps: int, base: Path) -> list[dict[str, Any]]:
    """What is found after the build and after each part of the inserts."""
    at = len(of.base)
    with store.copy(base) as copy, Index.open(copy, cache="none") as index:
        found = [_look(index, of, 0)]
        for step in range(steps):
            start, stop = at + count * step // steps, at + count * (step + 1) // steps
            made = inserted(index, start, of.rows(start, stop))
            found.append(
                {**_look(index, of, stop - at), "absorbed": made["counts"]["absorbed_lists"]}
            )
        index.compact()
        found.append({**_look(index, of, count), "compacted": True})
    return found


def run(context: Context) -> Summary:
    """Each set: build, then a quarter more in steps, then compaction."""
    s, store = context.settings, Store(context)
    metrics: dict[str, Any] = {}
    figures, rows = [], []
    for name, (base, more) in s["sets"].items():
        of = store.set(name, base, more, s["queries"])
        found = _grown(store, of, more, s["steps"], store.index(of, layout="selective"))
        steps = [f for f in found if "compacted" not in f]
        metrics[name] = {
            "h_built": steps[0]["h"],
            "h_grown": steps[-1]["h"],
            "space": [f["space"] for f in steps],
            "space_in_use": [f["space_in_use"] for f in steps],
            "largest_space": max(f["space"] for f in steps),
            "edge_reads": [f["edge_reads"] for f in steps],
        }
        for f in found:
            context.run.metric(set=name, **f)
            if "compacted" in f:
                metrics[name]["compact"] = {"h": f["h"], "space": f["space"]}
            rows.append([name, f["inserts"], "yes" if "compacted" in f else "", round(f["h"], 3),
                         round(f["h_short"], 3), round(f["edge_reads"], 1), round(f["space"], 2),
                         round(f["space_in_use"], 2)])  # fmt: skip
        figures.append(_figure(name, steps, len(of.base)))
    columns = ["set", "inserted", "compacted", "h at L 128", "h at L 40", "edge pages at L 128",
               "file / minimal", "pages in use / minimal"]  # fmt: skip
    table = Table("page_sharing", "Page sharing and space", columns, rows,
                  "h: share of expansions whose list lies on a page already read by the same "
                  "traversal; no cache.")  # fmt: skip
    every = list(metrics.values())
    metrics |= {key: [m[key] for m in every] for key in ("h_built", "h_grown", "largest_space")}
    return Summary(metrics, figures, [table])


def _figure(name: str, steps: list[dict[str, Any]], base: int) -> Figure:
    return Figure(
        f"page_sharing_{name}",
        f"{name}: page sharing and space while a quarter is inserted",
        "lines",
        [100 * f["inserts"] / base for f in steps],
        "inserted, % of the base",
        "h at L 128; file / minimal",
        [
            Series("h", [f["h"] for f in steps]),
            Series("edge file / minimal", [f["space"] for f in steps]),
            Series("pages in use / minimal", [f["space_in_use"] for f in steps]),
        ],
        note=f"Co-updated lists packed together without reuse of holes would need {NAIVE_SPACE} × "
        "the space (simulator of the notes).",
    )


EXPERIMENT = Experiment(
    id="page_sharing",
    title="Page sharing within a traversal, and space amplification",
    source="NAVIS, locality of the decoupled layout; Must show 5",
    run=run,
    scales={
        "smoke": {"sets": {"S128": [4400, 1100]}, "steps": 2, "queries": 100},
        "small": {
            "sets": {"S768": [60000, 15000], "S128": [100000, 25000]}, "steps": 5, "queries": 500,
        },
    },
    minutes={"smoke": 0.2, "small": 7},
    gigabytes={"small": 2},
)  # fmt: skip
