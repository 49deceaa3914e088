"""A fifth of an index deleted: what is found then, and what space comes back."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index
from navis.experiments._measure import Array
from navis.experiments._store import Set, Store, recall_of
from navis.formats import Truth
from navis.groundtruth import exact
from navis.index import LayoutName


def _look(index: Index, of: Set, truth: Truth, gone: Array, s: dict[str, Any]) -> dict[str, Any]:
    """Recall at every L, answers that name a deleted id, and bytes of all files."""
    found: dict[str, Any] = {"recall": [], "returned": 0}
    for L in s["L"]:
        ids, _ = index.search(of.queries, 10, L=L)
        found["returned"] += int(np.isin(ids, gone).sum())
        found["recall"].append(recall_of(ids, truth))
    # The deleted themselves, asked for.
    ids, _ = index.search(of.rows(0, len(of.base))[gone[: len(of.queries)]], 10, L=s["L"][0])
    found["returned"] += int(np.isin(ids, gone).sum())
    found["bytes"] = int(index.stats()["files_bytes"])
    return found


def _layout(
    context: Context, store: Store, of: Set, layout: LayoutName
) -> dict[str, dict[str, Any]]:
    """Built; a fifth deleted; compacted; the same ids inserted again; and a rebuild of the rest."""
    s, n = context.settings, len(of.base)
    draw = np.random.default_rng(context.seed)
    gone = draw.permutation(n)[: int(s["share"] * n)].astype(np.uint64)
    kept = np.setdiff1d(np.arange(n), gone)
    before, after = (exact(of.base, of.queries, 20, exclude=e) for e in (None, gone.astype(int)))
    none = gone[:0]
    found = {}
    with store.copy(store.index(of, layout=layout)) as copy:
        with Index.open(copy) as index:
            found["built"] = _look(index, of, before, none, s)
            began = time.perf_counter()
            for first in range(0, len(gone), 64):
                index.delete(gone[first : first + 64])
            found["deleted"] = _look(index, of, after, gone, s)
            found["deleted"]["seconds"] = time.perf_counter() - began
            began = time.perf_counter()
            index.compact()
            found["compacted"] = _look(index, of, after, gone, s)
            found["compacted"]["seconds"] = time.perf_counter() - began
        with Index.open(copy) as index:
            report = index.verify()
            found["compacted"] |= {"faults": len(report["faults"]), "dead": report["dead_edges"]}
            vectors = of.rows(0, n)[gone]
            index.insert(gone, vectors, threads=2)
            index.checkpoint()
            found["inserted again"] = _look(index, of, before, none, s)
            ids, _ = index.search(vectors[:1000], 1, L=100)
            found["inserted again"]["own_nearest"] = float(np.mean(ids[:, 0] == gone[:1000]))
    rebuilt = context.workdir / "rebuilt"
    with Index.build(
        rebuilt, of.base[kept], kept.astype(np.uint64), layout=layout, seed=context.seed
    ) as index:
        found["rebuilt"] = _look(index, of, after, gone, s)
    shutil.rmtree(rebuilt)
    for state, each in found.items():
        context.run.metric(layout=layout, state=state, **each)
    return found


def run(context: Context) -> Summary:
    """Each layout: recall against a rebuild, deleted ids in answers, space after compaction."""
    s, store = context.settings, Store(context)
    of = store.set(s["set"][0], s["set"][1], 0, s["queries"])
    metrics: dict[str, Any] = {}
    figures, rows = [], []
    for layout in s["layouts"]:
        found = _layout(context, store, of, layout)
        losses = {
            state: 100 * max(r - d for r, d in zip(found["rebuilt"]["recall"],
                                                   found[state]["recall"], strict=True))
            for state in ("deleted", "compacted")
        }  # fmt: skip
        metrics[layout] = {
            "loss_points": losses,
            "returned": sum(f["returned"] for f in found.values()),
            "space_back": 1 - found["compacted"]["bytes"] / found["built"]["bytes"],
            "faults": found["compacted"]["faults"],
            "dead_edges": found["compacted"]["dead"],
            "own_nearest_again": found["inserted again"]["own_nearest"],
            "bytes_again_over_built": found["inserted again"]["bytes"] / found["built"]["bytes"],
            "recall": {state: f["recall"] for state, f in found.items()},
        }
        rows += [
            [layout, state, *(round(r, 4) for r in f["recall"]), f["returned"],
             round(f["bytes"] / found["built"]["bytes"], 3),
             round(f["seconds"], 2) if "seconds" in f else None]
            for state, f in found.items()
        ]  # fmt: skip
        figures.append(Figure(
            f"delete_{layout}", f"{layout}: recall on what is left", "lines",
            [float(L) for L in s["L"]], "L", "recall@10",
            [Series(state, found[state]["recall"])
             for state in ("deleted", "compacted", "rebuilt")],
        ))  # fmt: skip
    every = [metrics[layout] for layout in s["layouts"]]
    metrics |= {
        "returned": sum(m["returned"] for m in every),
        "loss_points": max(max(m["loss_points"].values()) for m in every),
        "space_back": min(m["space_back"] for m in every),
        "faults": sum(m["faults"] for m in every),
        "own_nearest_again": min(m["own_nearest_again"] for m in every),
    }
    columns = ["layout", "state", *(f"recall@10, L {L}" for L in s["L"]), "deleted ids returned",
               "files / built", "seconds"]  # fmt: skip
    table = Table("delete", f"{100 * s['share']:g} % deleted", columns, rows,
                  "Files: pages, checkpoint and log together.")  # fmt: skip
    return Summary(metrics, figures, [table])


EXPERIMENT = Experiment(
    id="delete",
    title="A fifth deleted: answers, recall against a rebuild, space after compaction",
    source="notes, check 19; Must show 11",
    run=run,
    scales={
        "smoke": {
            "set": ["S128", 2000], "queries": 200, "share": 0.2, "L": [20, 40],
            "layouts": ["selective", "packed"],
        },
        "small": {
            "set": ["S128", 20000], "queries": 1000, "share": 0.2, "L": [20, 40, 80],
            "layouts": ["selective", "packed"],
        },
    },
    minutes={"smoke": 0.3, "small": 4},
    gigabytes={"small": 0.3},
)  # fmt: skip
