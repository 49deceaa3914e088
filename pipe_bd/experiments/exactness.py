"""Every schedule against the sequential reference: bits, and counts against the formulas."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Summary, Table

from pipe_bd.models import build
from pipe_bd.verify import verify


def run(context: Context) -> Summary:
    """Verify models × worlds × optimizers × element types."""
    s = context.settings
    rows: list[list[Any]] = []
    unequal = miscounted = runs = 0
    worst = {"float32": 0.0, "float64": 0.0}
    for model in s["models"]:
        for world in s["worlds"]:
            for optimizer, dtype in s["variants"]:
                task = build(
                    model,
                    seed=context.seed,
                    batch=10,
                    steps=s["steps"],
                    dtype=dtype,
                    optimizer=optimizer,
                )
                for kind, table in verify(task, world).items():
                    for name, verdict in table.items():
                        runs += 1
                        unequal += verdict.must_be_bitwise and not verdict.bitwise
                        miscounted += bool(verdict.miscounts)
                        worst[dtype] = max(worst[dtype], verdict.max_abs_diff)
                        label = name if kind == "schedules" else f"ahd {name}"
                        equal = "bitwise" if verdict.bitwise else f"{verdict.max_abs_diff:.1e}"
                        rows.append([model, world, optimizer, dtype, label, equal])
                        context.run.metric(model=model, world=world, schedule=label, equal=equal)
    metrics = {
        "runs": runs,
        "not_bitwise": unequal,
        "miscounted": miscounted,
        "max_abs_diff": worst,
    }
    columns = ["model", "ranks", "optimizer", "type", "schedule", "against sequential"]
    note = "Batches of 10 rows; compositions give the devices of each stage."
    return Summary(
        metrics, tables=[Table("exactness", "Students of every schedule", columns, rows, note)]
    )


BOTH = [["sgd", "float32"], ["adamw", "float32"], ["sgd", "float64"], ["adamw", "float64"]]

EXPERIMENT = Experiment(
    id="exactness",
    title="Every schedule gives the sequential students, with the counts of the formulas",
    source="Pipe-BD, section II (no dependency between blocks); notes, checks 1–4 and 15",
    run=run,
    scales={
        "smoke": {
            "models": ["toy-vgg", "toy-gpt", "toy-bn"],
            "worlds": [2],
            "variants": [["adamw", "float32"]],
            "steps": 3,
        },
        "small": {
            "models": ["toy-vgg", "toy-gpt", "toy-bn"],
            "worlds": [2, 3, 4],
            "variants": BOTH,
            "steps": 8,
        },
    },
    minutes={"smoke": 0.5, "small": 8},
)
