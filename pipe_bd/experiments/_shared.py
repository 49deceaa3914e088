"""What several experiments use: the paper's values, and how a bench becomes a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shorthaul.experiments import Series, Table

from pipe_bd.bench import Bench
from pipe_bd.plan import Plan

# Read by eye off the bars of the authors' poster, ± 0.05: speed-up over DP on 4 GPUs.
POSTER = {
    "NAS CIFAR-10": {"dp": 1.0, "ls": 1.93, "tr": 2.42, "dpu": 3.07, "ahd": 3.07},
    "NAS ImageNet": {"dp": 1.0, "ls": 0.50, "tr": 3.03, "dpu": 3.15, "ahd": 4.37},
    "Compression CIFAR-10": {"dp": 1.0, "ls": 2.05, "tr": 5.6, "dpu": 5.85, "ahd": 7.4},
    "Compression ImageNet": {"dp": 1.0, "ls": 0.50, "tr": 4.0, "dpu": 4.25, "ahd": 7.5},
}

WHY_OURS_DIFFER = (
    "The paper has 4 GPUs and we 2 CPU cores. About two thirds of its gain is the GPU being better "
    "filled by a whole batch than by a quarter of one; a CPU core is full at any batch size and "
    "does "
    "not show that part. What remains is the teacher's redundancy, the traffic and the balance."
)

CPU_NOTE = (
    "CPU time of the busiest rank per step, transport threads included: the time a device of its "
    "own would need, whatever else runs on this machine."
)

# As such models are trained: SGD with momentum for a CNN, AdamW for a transformer (Puzzle's too).
OPTIMIZER = {"vgg6": "sgd", "gpt12": "adamw", "gpt12-library": "adamw", "toy-library": "adamw"}


def shape(plan: Mapping[str, Any] | None) -> str:
    """A plan as "0-5x1|6-11x1"; "" for schedules that have none."""
    return "" if plan is None else Plan.from_dict(plan).shape()


def bench_table(result: Bench, id: str, title: str) -> Table:
    """Times, counts and plan of every competitor."""
    cpu, wall = result.medians("cpu_s"), result.medians("wall_s")
    rows = []
    for label, seconds in cpu.items():
        counts = result.counts[label]
        sent = counts["relay_bytes"] + counts["allreduce_bytes"]
        rows.append(
            [
                label,
                round(seconds * 1e3, 2),
                round(wall[label] * 1e3, 2),
                counts["teacher_calls"] // result.steps,
                counts["loader_rows"] // result.steps,
                sent // result.steps,
                shape(result.plans.get(label)),
            ]
        )
    columns = [
        "schedule",
        "CPU ms/step, busiest rank",
        "wall ms/step",
        "teacher block calls/step",
        "rows read/step",
        "bytes sent/step",
        "plan",
    ]
    return Table(
        id, title, columns, rows, f"Median of {len(next(iter(result.cpu_s.values())))} rounds."
    )


def with_range(name: str, ratios: Sequence[Mapping[str, float]], **options: Any) -> Series:
    """A measured series of paired ratios with their intervals."""
    return Series(
        name,
        [r["median"] for r in ratios],
        low=[r["low"] for r in ratios],
        high=[r["high"] for r in ratios],
        **options,
    )
