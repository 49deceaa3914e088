"""Memory that a process really takes under a budget, and what a smaller one costs in reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import Fault
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis.experiments._measure import MIB
from navis.experiments._store import Store


def _worker(**given: Any) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("_memory_worker.py"))]
    done = subprocess.run(
        [*command, json.dumps(given, default=str)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Fault(f"a measured process failed: {done.stderr.strip().splitlines()[-1:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run(context: Context) -> Summary:
    """Processes of their own: one per budget on a copy, one that builds, one refused."""
    s, store = context.settings, Store(context)
    base, more = s["set"][1:]
    of = store.set(s["set"][0], base, more, s["queries"])
    asked = context.workdir / "queries.npy"
    np.save(asked, of.queries)
    common = {"rows": of.file, "queries": asked}
    ready = store.index(of, layout="selective")
    at = [base, base + s["inserts"]]
    found: dict[int, dict[str, Any]] = {}
    for size in s["budgets_mib"]:
        with store.copy(ready) as copy:
            found[size] = _worker(
                do="serve", index=copy, budget=int(size * MIB), insert=at, **common
            )
        context.run.metric(budget_mib=size, **found[size])
    claimed = int(s["claimed_mib"] * MIB)
    built = _worker(
        do="build", index=context.workdir / "built", budget=claimed, base=base, rows=of.file
    )
    context.run.metric(build=built)
    tiny = _worker(do="serve", index=ready, budget=1 * MIB, insert=[base, base], **common)
    return _summary(s, of.raw_bytes, found, built, tiny["refused"])


def _summary(
    s: dict[str, Any], raw: int, found: dict[int, dict[str, Any]], built: dict[str, Any],
    refusal: str,
) -> Summary:  # fmt: skip
    served = {size: f for size, f in found.items() if not f["refused"]}
    over = {size: f["resident"] / (size * MIB) for size, f in served.items()}
    metrics: dict[str, Any] = {
        "raw_mib": raw / MIB,
        "over_budget": {f"{size:g}": ratio for size, ratio in over.items()},
        "claimed": {
            "serve_over_budget": over.get(s["claimed_mib"]),
            "build_over_budget": _build_over(built, s["claimed_mib"], "anonymous"),
            "build_over_budget_with_input": _build_over(built, s["claimed_mib"], "resident"),
            "build_refused": built["refused"],
        },
        "too_small_names_the_need": bool(re.search(r"give \d+ MiB", refusal)),
        "refusal": refusal,
    }
    sizes = list(served)
    figures = [
        Figure(
            "budget_reads", "Reads by memory budget", "lines", list(sizes), "budget, MiB",
            "reads per operation",
            [Series("insert", [f["reads_per_insert"] for f in served.values()]),
             Series("search", [f["reads_per_search"] for f in served.values()])],
        ),
        Figure(
            "budget_memory", "Growth of resident memory by memory budget", "lines", list(sizes),
            "budget, MiB", "MiB",
            [Series("resident", [f["resident"] / MIB for f in served.values()]),
             Series("budget", [float(size) for size in sizes], kind="predicted")],
            note="Peak of the process while it searches and inserts, less what it held before.",
        ),
    ]  # fmt: skip
    rows: list[list[Any]] = [
        ["serve", size, round(f["resident"] / MIB, 1), round(over[size], 3),
         round(f["reads_per_search"], 1), round(f["reads_per_insert"], 1), f["cache_capacity"]]
        if not f["refused"]
        else ["serve", size, None, None, None, None, f["refused"]]
        for size, f in found.items()
    ]  # fmt: skip
    if built["refused"]:
        rows.append(["build", s["claimed_mib"], None, None, None, None, built["refused"]])
    else:
        taken = built["anonymous"] / MIB
        rows.append(["build", s["claimed_mib"], round(taken, 1),
                     round(taken / s["claimed_mib"], 3), None, None, None])  # fmt: skip
    columns = ["work", "budget, MiB", "peak − baseline, MiB", "of the budget", "reads per search",
               "reads per insert", "lists cached"]  # fmt: skip
    note = (
        "Building counts memory that no file backs: the pages of the memory-mapped input, resident "
        "while there is room, are the kernel's to take back."
    )
    return Summary(metrics, figures, [Table("memory", "Memory", columns, rows, note)])


def _build_over(built: dict[str, Any], size: float, kind: str) -> float | None:
    return None if built["refused"] else built[kind] / (size * MIB)


EXPERIMENT = Experiment(
    id="memory_budget",
    title="Peak memory under a budget, and reads by budget",
    source="notes, check 15; Must show 9",
    run=run,
    scales={
        "smoke": {
            "set": ["S768", 3000, 200], "queries": 100, "inserts": 200, "budgets_mib": [12, 16],
            "claimed_mib": 16,
        },
        "small": {
            "set": ["S768", 60000, 15000], "queries": 1000, "inserts": 2000,
            "budgets_mib": [16, 20, 24, 32, 48, 64], "claimed_mib": 64,
        },
    },
    minutes={"smoke": 0.4, "small": 6},
    gigabytes={"small": 1},
)  # fmt: skip
