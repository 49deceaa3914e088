"""The paper's main figure: five schedules, and the strong baseline it does not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary
from shorthaul.stats import paired_ratio

from pipe_bd.bench import Entry, bench
from pipe_bd.experiments._shared import (
    CPU_NOTE,
    OPTIMIZER,
    POSTER,
    WHY_OURS_DIFFER,
    bench_table,
    shape,
    with_range,
)
from pipe_bd.models import build

PAPERS = ("dp", "ls", "tr", "dpu", "ahd")
# The closest pair stands side by side, twice: joint, dpu, joint, dpu.
ORDER = ("dp", "ls", "tr", "ahd", "joint", "dpu", "joint again", "dpu again")


def run(context: Context) -> Summary:
    """Interleave all schedules on every model in one process group each."""
    s = context.settings
    metrics: dict[str, Any] = {}
    tables, speedups, noises = [], {}, []
    for model, steps in s["models"].items():
        task = build(model, seed=context.seed, steps=steps, optimizer=OPTIMIZER[model])
        entries = [Entry(label, label.removesuffix(" again")) for label in ORDER]
        result = bench(task, 2, entries, s["repetitions"])
        context.run.metric(model=model, **result.to_dict())
        ratio = {name: result.ratio("dp", name) for name in (*PAPERS, "joint")}
        speedups[model] = ratio
        cpu = result.medians("cpu_s")
        noise = result.noise("dpu", "dpu again")
        closest = {of: _joint_over_dpu(getattr(result, of)) for of in ("cpu_s", "wall_s")}
        noises.append(noise)
        traffic = {
            name: (c["relay_bytes"] + c["allreduce_bytes"]) / steps
            for name, c in result.counts.items()
        }
        metrics[model] = {
            "dp_over_dpu": ratio["dpu"]["median"],
            "dp_over_joint": ratio["joint"]["median"],
            "dp_over_ahd": ratio["ahd"]["median"],
            "best": min(("joint", "dpu", "ahd"), key=lambda name: cpu[name]),
            "joint_over_dpu": closest["cpu_s"]["median"],
            "joint_over_dpu_interval": [closest["cpu_s"][end] for end in ("low", "high")],
            "wall": {
                "dp_over_dpu": result.ratio("dp", "dpu", "wall_s")["median"],
                "joint_over_dpu": closest["wall_s"]["median"],
            },
            "ahd_plan": shape(result.plans["ahd"]),
            "teacher_calls_per_step": {
                k: c["teacher_calls"] / steps for k, c in result.counts.items()
            },
            "bytes_per_step": traffic,
            "traffic_joint_over_dpu": traffic["joint"] / traffic["dpu"],
        }
        tables.append(bench_table(result, f"times_{model}", f"{model} on 2 ranks"))
    figures = [
        Figure(
            "speedup",
            "Speed-up over DP by schedule",
            "bars",
            list(speedups),
            "model",
            "DP time / schedule's time, CPU of the busiest rank",
            [
                with_range(name, [speedups[m][name] for m in speedups])
                for name in (*PAPERS, "joint")
            ],
            note=CPU_NOTE,
        ),
        Figure(
            "speedup_paper",
            "The paper's speed-up over DP, 4 GPUs",
            "bars",
            list(POSTER),
            "task",
            "DP time / schedule's time",
            [Series(name, [POSTER[t][name] for t in POSTER], kind="paper") for name in PAPERS],
            note="Read off the authors' poster, ± 0.05. " + WHY_OURS_DIFFER,
        ),
    ]
    loudest = max(noises, key=lambda n: n["spread"])
    return Summary(metrics, figures, tables, [WHY_OURS_DIFFER], noise=loudest)


def _joint_over_dpu(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The ratio over both pairs of every round."""
    return paired_ratio(times["joint"] + times["joint again"], times["dpu"] + times["dpu again"])


EXPERIMENT = Experiment(
    id="speedup_bars",
    title="Speed-up of the five schedules over DP, and of joint training",
    source="Pipe-BD, main figure (poster)",
    run=run,
    scales={
        "smoke": {"models": {"vgg6": 3}, "repetitions": 1},
        "small": {"models": {"vgg6": 16, "gpt12": 16}, "repetitions": 7},
    },
    minutes={"smoke": 0.5, "small": 10},
)
