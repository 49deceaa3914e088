"""Memory per rank and schedule: what the planner counts, and what the process really takes."""

from __future__ import annotations

from typing import Any

import torch
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from pipe_bd.api import clone, run_here
from pipe_bd.blocks import Task, check, freeze
from pipe_bd.counters import peak_rss_bytes
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import Plan
from pipe_bd.profile import Profile
from pipe_bd.profiler import measure
from pipe_bd.runtime.spawn import run_ranks
from pipe_bd.runtime.world import join

# Pipe-BD's poster: largest rank, GB, ImageNet.
PAPER_GB = {"dp": 5.9, "ls": 14.5, "tr": 14.8, "ahd": 7.1}


def _profile(task: Task, trials: int) -> Profile:
    world = join("cpu")
    freeze(task, "eval")
    return measure(task, world, check(task), Options(devices=world.size), trials=trials)


def _grown(
    model: str,
    seed: int,
    steps: int,
    batch: int,
    schedule: str,
    plan: Plan | None,
    profile: Profile,
) -> list[int]:
    """Growth of each rank's resident memory over a run, in processes of their own.

    The task is built here, so that what the launcher sends along is not counted.
    """
    torch.set_num_threads(1)
    task = build(model, seed=seed, batch=batch, steps=steps, optimizer="sgd")
    world = join("cpu")
    before = peak_rss_bytes()
    run_here(
        clone(task),
        Options(schedule=schedule, devices=world.size, plan=plan, device="cpu"),
        profile,
    )
    grown: list[int] = world.gather(peak_rss_bytes() - before)
    return grown


def counted(profile: Profile, schedule: str, plan: Plan | None, ranks: int) -> list[float]:
    """Bytes per rank as the planner counts them.

    Weights, gradients, optimizer, saved activations, buffers.
    """
    blocks = profile.blocks
    if schedule == "dp":
        return [sum(b.memory_bytes[ranks] for b in blocks)] * ranks
    if plan is None:
        return [0.0] * ranks
    out = [0.0] * ranks
    for number, stage in enumerate(plan.stages):
        for rank in plan.ranks(number):
            out[rank] = sum(blocks[i].memory_bytes[stage.devices] for i in stage.blocks)
    return out


def run(context: Context) -> Summary:
    """Profile once, then one fresh process group per schedule."""
    s = context.settings
    task = build(s["model"], seed=context.seed, batch=s["batch"], steps=s["steps"], optimizer="sgd")
    profile: Profile = run_ranks(_profile, 2, task, s["trials"])
    blocks = len(task.pairs)
    from pipe_bd.planner import plan as best

    pipeline = best(profile, 2, largest_group=1)
    plans = {
        "dp": None,
        "ls": None,
        "joint": Plan.joint(blocks, 2),
        "tr": pipeline,
        "dpu": pipeline,
        "ahd": best(profile, 2),
    }
    measured: dict[str, int] = {}
    rows: list[list[Any]] = []
    for name, plan in plans.items():
        given = None if name == "joint" else plan  # joint has but one
        grown = run_ranks(
            _grown, 2, s["model"], context.seed, s["steps"], s["batch"], name, given, profile
        )
        measured[name] = max(grown)
        planned = counted(profile, name, plan, 2)
        context.run.metric(schedule=name, grown=grown, counted=planned)
        rows.append(
            [
                name,
                round(max(grown) / 1e6, 1),
                round(max(planned) / 1e6, 1) if max(planned) else "not planned",
                "" if plan is None else plan.shape(),
            ]
        )
    names = list(plans)
    metrics = {
        "megabytes": {k: v / 1e6 for k, v in measured.items()},
        "ahd_over_dp": measured["ahd"] / measured["dp"],
        "dpu_over_joint": measured["dpu"] / measured["joint"],
    }
    figure = Figure(
        "memory",
        f"{s['model']}: growth of the largest rank's resident memory",
        "bars",
        list(names),
        "schedule",
        "MB",
        [Series("resident memory", [measured[n] / 1e6 for n in names])],
        note="Peak resident memory after the run minus before it; fresh processes per schedule. "
        "The batch is cut in the data-parallel forms and whole in the pipelined ones.",
    )
    paper = Figure(
        "memory_paper",
        "The paper's: largest rank, ImageNet, 4 GPUs",
        "bars",
        list(PAPER_GB),
        "schedule",
        "GB",
        [Series("device memory", list(PAPER_GB.values()), kind="paper")],
        note="Read off the authors' poster.",
    )
    columns = ["schedule", "measured MB, largest rank", "planner's count, MB", "plan"]
    return Summary(metrics, [figure, paper], [Table("memory", "Memory", columns, rows)])


EXPERIMENT = Experiment(
    id="memory",
    title="Memory per schedule",
    source="Pipe-BD, memory figure (poster)",
    run=run,
    scales={
        "smoke": {"model": "vgg6", "batch": 32, "steps": 2, "trials": 1},
        "small": {"model": "vgg6", "batch": 256, "steps": 3, "trials": 2},
    },
    minutes={"smoke": 0.8, "small": 1},
)
