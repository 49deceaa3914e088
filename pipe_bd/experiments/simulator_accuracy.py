"""The simulator against real runs on one and two ranks, and against virtual devices beyond."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median

from pipe_bd.bench import Bench, Entry, bench
from pipe_bd.experiments.virtual_devices import MARK, equal_blocks
from pipe_bd.models import build, virtual
from pipe_bd.plan import Plan
from pipe_bd.profile import Profile
from pipe_bd.simulator import simulate

REAL = {1: ("sequential",), 2: ("dp", "ls", "joint", "tr", "dpu", "ahd")}


def _simulated(result: Bench, schedule: str, ranks: int) -> float:
    plan = result.plans.get(schedule)
    chosen = None if plan is None or schedule in ("sequential", "joint") else Plan.from_dict(plan)
    profile = Profile.from_dict(result.profile)
    return simulate(profile, schedule, ranks, plan=chosen, steps=100).period_s


def _one(result: Bench, name: str, ranks: int) -> tuple[float, float, float, float]:
    """Error of the simulator, and the simulated, CPU and wall seconds per step."""
    sim, cpu = _simulated(result, name, ranks), result.cpu_s[name][0]
    # A pipeline's period is that of its steady state; the fill is paid once per run.
    wall = (result.period_s if name in ("tr", "dpu", "ahd") else result.wall_s)[name][0]
    # Waiting at a barrier takes no CPU time, so tr is held against the wall clock.
    return sim / (wall if name == "tr" else cpu) - 1, sim, cpu, wall


def run(context: Context) -> Summary:
    """Profile and run in one process group, simulate from that profile, and again."""
    s = context.settings
    rows: list[list[Any]] = []
    errors: dict[str, dict[str, float]] = {"real": {}, "virtual": {}}
    for model, steps in s["models"].items():
        for ranks, schedules in REAL.items():
            task = build(model, seed=context.seed, steps=steps, optimizer="sgd")
            entries = [Entry(name, name) for name in schedules]
            results = []
            for _ in range(s["repetitions"]):  # profile, run, profile, run: both in one mood
                results.append(bench(task, ranks, entries, 1, trials=s["trials"]))
                context.run.metric(model=model, ranks=ranks, **results[-1].to_dict())
            for name in schedules:
                found = [_one(result, name, ranks) for result in results]
                error = median(f[0] for f in found)
                sim, cpu, wall = (median(f[i] for f in found) for i in (1, 2, 3))
                errors["real"][f"{model}, {ranks} ranks, {name}"] = abs(error)
                shown = [round(v * 1e3, 1) for v in (sim, cpu, wall)]
                rows.append([model, ranks, name, "real", *shown, f"{100 * error:+.1f} %"])
    for ranks in s["virtual_devices"]:
        profile = equal_blocks(ranks, s["teacher_ms"] / 1e3, s["student_ms"] / 1e3, 768)
        task = virtual.task(profile, 12 + 2 * ranks)
        plan = Plan.even(ranks, ranks)
        entries = [Entry(name, name, plan) for name in ("tr", "dpu")]
        result = bench(
            task, ranks, entries, s["virtual_repetitions"], profile=profile, warm_up=False
        )
        context.run.metric(virtual=ranks, **result.to_dict())
        for name in ("tr", "dpu"):
            sim = simulate(profile, name, ranks, plan=plan, steps=64).period_s
            wall = median(result.period_s[name])
            errors["virtual"][f"{ranks} devices, {name}"] = abs(sim / wall - 1)
            shown = [round(sim * 1e3, 1), "", round(wall * 1e3, 1)]
            rows.append(
                ["equal blocks", ranks, name, "virtual", *shown, f"{100 * (sim / wall - 1):+.1f} %"]
            )
    labels: list[str | float] = [f"{r[0]} {r[1]} {r[2]}" for r in rows]
    metrics = {
        "worst_error": {kind: max(table.values()) for kind, table in errors.items() if table},
        "errors": errors,
    }
    figure = Figure(
        "simulator",
        "Simulated period against the run",
        "points",
        labels,
        "model, ranks, schedule",
        "ms per step",
        [
            Series("measured", [float(r[6] if r[2] == "tr" else r[5] or r[6]) for r in rows]),
            Series("simulator", [float(r[4]) for r in rows], kind="simulated"),
        ],
        note="Real runs: CPU time of the busiest rank (tr: period). " + MARK + ": period.",
        log_y=True,
    )
    columns = ["model", "ranks", "schedule", "kind", "simulated ms", "CPU ms", "wall ms", "error"]
    table = Table("simulator", "Simulator against runs", columns, rows)
    return Summary(metrics, [figure], [table], emulated="in part: " + MARK)


EXPERIMENT = Experiment(
    id="simulator_accuracy",
    title="The simulator, fed by a profile, against the runs it predicts",
    source="ours",
    run=run,
    scales={
        "smoke": {
            "models": {"vgg6": 4},
            "repetitions": 1,
            "trials": 3,
            "virtual_devices": [4],
            "teacher_ms": 20,
            "student_ms": 40,
            "virtual_repetitions": 1,
        },
        "small": {
            "models": {"vgg6": 12, "gpt12": 8},
            "repetitions": 3,
            "trials": 7,
            "virtual_devices": [4, 8],
            "teacher_ms": 100,
            "student_ms": 200,
            "virtual_repetitions": 1,
        },
    },
    minutes={"smoke": 0.7, "small": 7},
)
