"""The planner against brute force, and how long it takes at scale."""

from __future__ import annotations

import random
import time

from shorthaul.errors import UserError
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median

from pipe_bd import planner, planner_reference
from pipe_bd.plan import Plan
from pipe_bd.profile import BlockProfile, LinkProfile, Profile


def random_profile(rng: random.Random, blocks: int, devices: int) -> Profile:
    """Unequal blocks with imperfect scaling, group limits and memory needs; equal costs occur."""
    grid = rng.choice([4, 1 << 30])  # the coarse one makes plans of equal period, to be told apart
    rows = []
    for i in range(blocks):
        teacher, student = rng.randint(1, grid) / grid, rng.randint(1, grid) * 2 / grid
        size = rng.random() * 10
        sizes = range(1, devices + 1)
        rows.append(
            BlockProfile(
                name=f"b{i}",
                teacher_s={g: teacher / g**0.9 for g in sizes},
                student_s={g: student / g**0.8 for g in sizes},
                allreduce_s={g: 0.0 if g == 1 else rng.randint(0, grid) / grid / 5 for g in sizes},
                update_s=rng.randint(0, grid) / grid / 20,
                activation_bytes=rng.randrange(10**6),
                memory_bytes={g: size * (0.5 + 0.5 / g) for g in sizes},
                max_group=rng.choice([None, None, 1, 2, devices]),
            )
        )
    link = LinkProfile(rng.random() * 0.01, 10 ** rng.uniform(7, 10))
    loader = rng.choice([0.0, rng.random() * 2])
    return Profile(batch=64, link=link, blocks=tuple(rows), loader_s=loader)


def _chosen(profile: Profile, devices: int, cap: float | None) -> Plan | None:
    try:
        return planner.plan(profile, devices, cap)
    except UserError:
        return None


def run(context: Context) -> Summary:
    """Random instances, then wall time by size."""
    s = context.settings
    rng = random.Random(context.seed)
    mismatches = infeasible = 0
    for _ in range(s["instances"]):
        blocks, devices = rng.randint(1, 7), rng.randint(1, 5)
        profile = random_profile(rng, blocks, devices)
        cap = rng.choice([None, rng.uniform(5, 40)])
        ours = _chosen(profile, devices, cap)
        truth = planner_reference.brute_force(profile, devices, cap)
        infeasible += not truth.stages
        # Among plans of equal period the one with fewest devices, then stages: not only the period
        # must be the best one's.
        found = ((), None) if ours is None else (ours.stages, ours.period_s)
        mismatches += found != (truth.stages, truth.period_s if truth.stages else None)
    seconds = {}
    for blocks, devices in s["sizes"]:
        profile = random_profile(rng, blocks, devices)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            planner.plan(profile, devices)
            times.append(time.perf_counter() - start)
        seconds[f"{blocks}x{devices}"] = median(times)
    metrics = {
        "instances": s["instances"],
        "infeasible": infeasible,
        "mismatches": mismatches,
        "seconds": seconds,
        "largest_s": max(seconds.values()),
    }
    figure = Figure(
        "planner_time",
        "Planning time by blocks × devices",
        "bars",
        list(seconds),
        "blocks × devices",
        "ms",
        [Series("planner", [v * 1e3 for v in seconds.values()])],
        note="Median of five, explanation and alternatives included.",
        log_y=True,
    )
    rows = [[k, round(v * 1e3, 2)] for k, v in seconds.items()]
    return Summary(metrics, [figure], [Table("planner", "Planning time", ["size", "ms"], rows)])


EXPERIMENT = Experiment(
    id="planner_exact",
    title="The planner finds the optimum, in milliseconds",
    source="ours; Pipe-BD's own search covers 4 devices and 6 blocks",
    run=run,
    scales={
        "smoke": {"instances": 200, "sizes": [[24, 16]]},
        "small": {"instances": 1000, "sizes": [[12, 8], [24, 16], [48, 64], [96, 64]]},
    },
    minutes={"smoke": 0.1, "small": 0.1},
)
