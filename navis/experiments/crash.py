"""A process killed again and again while it changes an index, and what is left each time."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis.experiments._crash import Model
from navis.experiments._kill import Round, Rounds
from navis.experiments._store import Set, Store

# Inserts as often as all maintenance together.
KINDS = ("insert", "compact", "insert", "checkpoint", "insert", "compact", "insert", "flush")


def _rounds(context: Context, store: Store, of: Set, layout: str) -> tuple[Rounds, float, float]:
    """The kills of one layout; then recall, killed and never killed."""
    s, work = context.settings, context.workdir / layout
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    built = store.index(of, layout=layout)
    with (
        store.copy(built, f"{layout}/killed") as killed,
        store.copy(built, f"{layout}/not") as never,
    ):
        model = Model(np.load(of.file, mmap_mode="r"), len(of.base))
        options = {"pending_bytes": s["pending"], "checkpoint_bytes": s["log"]}
        draw = random.Random(f"{layout} {context.seed}")
        rounds = Rounds(work, killed, of.file, model, options, draw)
        for number in range(s["rounds"]):
            long = number == s["rounds"] - 1  # the last leaves much to be replayed
            kind = "insert" if long else KINDS[number % len(KINDS)]
            done = rounds.kill_in(kind, s["steps"], s["batch"], least=s["steps"] if long else 1)
            context.run.metric(layout=layout, round=number, says=str(done), reopen_s=done.reopen_s)
        return rounds, *rounds.compare(Path(never), of.queries)


def _of(done: list[Round], killed: float, in_peace: float) -> dict[str, Any]:
    return {
        "rounds": len(done),
        "killed_in": dict(Counter(r.kind for r in done if r.struck)),
        "acknowledged": sum(r.acknowledged for r in done),
        "lost": sum(len(r.settled.lost) for r in done),
        "strays": sum(len(r.settled.strays) for r in done),
        "verify_faults": sum(len(r.faults) for r in done),
        "own_nearest": min(r.own_nearest for r in done),
        "worst_reopen_s": max(r.reopen_s for r in done),
        "most_replayed": max(r.replayed for r in done),
        "torn_tails": sum(r.torn_bytes > 0 for r in done),
        "recall": killed,
        "recall_never_killed": in_peace,
        "recall_loss_points": 100 * (in_peace - killed),
    }


def run(context: Context) -> Summary:
    """Each layout: kill after kill on one index; the same changes in peace on a copy of it."""
    s, store = context.settings, Store(context)
    name, base, more = s["set"]
    of = store.set(name, base, more, s["queries"])
    found: dict[str, dict[str, Any]] = {}
    figures = []
    for layout in s["layouts"]:
        rounds, killed, in_peace = _rounds(context, store, of, layout)
        done = rounds.done
        found[layout] = _of(done, killed, in_peace)
        figures.append(Figure(
            f"crash_{layout}", f"{layout}: until an index is open again after a kill", "points",
            [r.replayed for r in done], "records replayed", "seconds",
            [Series(layout, [r.reopen_s for r in done])],
        ))  # fmt: skip
    every = list(found.values())
    metrics: dict[str, Any] = {
        **{key: sum(f[key] for f in every)
           for key in ("rounds", "acknowledged", "lost", "strays", "verify_faults")},
        **{key: max(f[key] for f in every)
           for key in ("worst_reopen_s", "most_replayed", "recall_loss_points")},
        "own_nearest": min(f["own_nearest"] for f in every),
        "fewest_rounds": min(f["rounds"] for f in every),
        **found,
    }  # fmt: skip
    rows = [
        [layout, f["rounds"], ", ".join(f"{n} × {kind}" for kind, n in f["killed_in"].items()),
         f["acknowledged"], f["lost"], f["verify_faults"], round(f["worst_reopen_s"], 3),
         f["most_replayed"], round(f["recall"], 4), round(f["recall_never_killed"], 4)]
        for layout, f in found.items()
    ]  # fmt: skip
    columns = ["layout", "kills", "struck in", "calls acknowledged", "lost", "faults",
               "slowest reopening, s", "records replayed, at most", "recall@10",
               "never killed"]  # fmt: skip
    note = (
        "SIGKILL from outside, durability sync and group in turn. After each every vector is "
        "compared bit by bit, and all is verified: faults counts both."
    )
    return Summary(metrics, figures, [Table("crash", "Kills", columns, rows, note)])


EXPERIMENT = Experiment(
    id="crash",
    title="What an index has after SIGKILL in mid-insert, mid-compaction and mid-checkpoint",
    source="notes, check 16; Must show 10",
    run=run,
    scales={
        "smoke": {
            "set": ["S128", 2000, 6000], "queries": 200, "rounds": 4, "steps": 60, "batch": 4,
            "pending": 100_000, "log": 2_000_000, "layouts": ["selective", "packed"],
        },
        "small": {
            "set": ["S128", 10000, 60000], "queries": 1000, "rounds": 30, "steps": 250, "batch": 8,
            "pending": 1_000_000, "log": 64_000_000, "layouts": ["selective", "packed"],
        },
    },
    minutes={"smoke": 0.5, "small": 6},
    gigabytes={"small": 0.5},
)  # fmt: skip
