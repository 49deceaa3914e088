"""Is every schedule the sequential reference? Bit by bit, and count by count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipe_bd import formulas
from pipe_bd.api import clone, run_here
from pipe_bd.blocks import Task, check
from pipe_bd.options import Options
from pipe_bd.plan import Plan, Stage, compositions
from pipe_bd.runtime.spawn import run_ranks
from pipe_bd.runtime.world import join

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@dataclass(frozen=True)
class Verdict:
    """One schedule against the reference.

    Attributes:
        bitwise: every weight and buffer of every student has the same bits.
        max_abs_diff: largest difference of any.
        must_be_bitwise: no batch was split, so nothing may differ.
        passed: equal as far as the schedule must be, and all counts as the formulas say.
        miscounts: counters that differ from the formula, {name: [expected, found]}.
    """

    bitwise: bool
    max_abs_diff: float
    must_be_bitwise: bool
    passed: bool
    miscounts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare(reference: Task, other: Task) -> tuple[bool, float]:
    """Whether all students have the same bits, and the largest difference."""
    same, largest = True, 0.0
    for p, q in zip(reference.pairs, other.pairs, strict=True):
        for name, candidate in p.candidates.items():
            ours = q.candidates[name].module.state_dict()
            for key, value in candidate.module.state_dict().items():
                same = same and torch.equal(value, ours[key])
                if value.numel():
                    difference = float((value.double() - ours[key].double()).abs().max())
                    # NaN is no agreement, and max() would forget it.
                    largest = max(largest, difference if difference == difference else math.inf)
    return same, largest


def composition_plan(blocks: int, groups: tuple[int, ...]) -> Plan:
    """Stages of the given widths with the blocks split evenly by count."""
    edges = [round(i * blocks / len(groups)) for i in range(len(groups) + 1)]
    stages = zip(edges, edges[1:], groups, strict=False)
    return Plan(tuple(Stage(a, b - 1, g) for a, b, g in stages))


def verify(task: Task, world: int, threads: int = 1) -> dict[str, dict[str, Verdict]]:
    """Run every schedule, and every composition of the devices, against the reference.

    Students with BatchNorm share statistics over their group in the data-parallel forms.

    Args:
        task: any task whose modules are float32 or float64.
        world: number of ranks.
        threads: intra-operation threads of each rank.

    Returns:
        {"schedules": {name: verdict}, "compositions": {"2+1": verdict}}.
    """
    return run_ranks(_worker, world, task, threads=threads)


def _worker(task: Task) -> dict[str, dict[str, Verdict]]:
    world = join("cpu")
    blocks = len(task.pairs)
    boundaries = check(task)
    tolerance = TOLERANCE[boundaries[0].dtype]
    reference = clone(task)
    run_here(reference, Options(schedule="sequential", devices=1, device="cpu"))

    def one(schedule: str, plan: Plan | None, split: bool) -> Verdict:
        ours = clone(task)
        assignment = tuple(i % world.size for i in range(blocks)) if schedule == "ls" else None
        options = Options(
            schedule=schedule,
            devices=world.size,
            plan=plan,
            assignment=assignment,
            batchnorm="sync" if split else "one-device",
            device="cpu",
        )
        result = run_here(ours, options)
        same, largest = compare(reference, ours)
        miscounts = formulas.differences(
            formulas.of_run(ours, result, boundaries, world.size), formulas.found(result)
        )
        equal = same if not split else largest <= tolerance
        return Verdict(same, largest, not split, equal and not miscounts, miscounts)

    even = Plan.even(blocks, world.size)
    schedules = {
        "ls": one("ls", None, False),
        "tr": one("tr", even, False),
        "dpu": one("dpu", even, False),
        "ahd": one("ahd", even, False),
        "dp": one("dp", None, world.size > 1),
        "joint": one("joint", None, world.size > 1),
    }
    batch = task.source.batch_size
    table = {}
    for groups in compositions(world.size):
        if len(groups) <= blocks and max(groups) <= batch:
            plan = composition_plan(blocks, groups)
            table["+".join(map(str, groups))] = one("ahd", plan, max(groups) > 1)
    return {"schedules": schedules, "compositions": table}
