"""Schedules against each other in one run.

Interleaved, in one process group, with counts beside times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shorthaul.progress import bar
from shorthaul.stats import median, noise, paired_ratio

from pipe_bd import planner
from pipe_bd.api import clone, run_here
from pipe_bd.blocks import Task, check, freeze
from pipe_bd.formulas import found
from pipe_bd.options import Options
from pipe_bd.plan import Plan
from pipe_bd.profile import Profile
from pipe_bd.profiler import measure
from pipe_bd.runtime.spawn import run_ranks
from pipe_bd.runtime.world import join


@dataclass(frozen=True)
class Entry:
    """One competitor.

    Attributes:
        label: its name in the results.
        schedule: the schedule.
        plan: its stages; None plans from the profile taken at the start.
        depth: of its queues.
    """

    label: str
    schedule: str
    plan: Plan | None = None
    depth: int = 2


@dataclass(frozen=True)
class Rounds:
    """How often to run and to profile.

    Attributes:
        counted: rounds that count.
        warm_up: one more before them.
        trials: of the profile.
    """

    counted: int
    warm_up: bool
    trials: int


@dataclass
class Bench:
    """Repetitions of every competitor, in the order they ran.

    Attributes:
        wall_s: {label: seconds per step of each repetition}.
        cpu_s: {label: CPU seconds per step of the busiest rank}.
        period_s: {label: steady seconds per step of the last stage}.
        counts: {label: exact counts of one repetition}.
        plans: {label: plan as JSON, or None}.
        shares: {label: per-rank seconds per activity, of the last repetition}.
        rss: {label: peak resident bytes per rank, so far}.
        profile: what the planner was given.
    """

    steps: int
    wall_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    period_s: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    rss: dict[str, list[int]] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)

    def ratio(self, a: str, b: str, of: str = "cpu_s") -> dict[str, float]:
        """Median and interval of the paired ratio a/b."""
        values: Mapping[str, list[float]] = getattr(self, of)
        return paired_ratio(values[a], values[b])

    def noise(self, a1: str, a2: str, of: str = "cpu_s") -> dict[str, float]:
        """The machine against itself."""
        values: Mapping[str, list[float]] = getattr(self, of)
        return noise(values[a1], values[a2])

    def medians(self, of: str = "cpu_s") -> dict[str, float]:
        """Median per label."""
        return {k: median(v) for k, v in getattr(self, of).items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def bench(
    task: Task,
    world: int,
    entries: Sequence[Entry],
    repetitions: int,
    *,
    profile: Profile | None = None,
    trials: int = 5,
    warm_up: bool = True,
    threads: int = 1,
) -> Bench:
    """Run every entry once per repetition, A-B-C-A-B-C.

    Each run starts from the same untrained students.

    Args:
        task: the job.
        world: ranks.
        entries: competitors.
        repetitions: counted rounds.
        profile: to plan with; None measures one first, in the same process group.
        trials: of that measurement.
        warm_up: run one round first that is not counted.
        threads: intra-operation threads of each rank.
    """
    rounds = Rounds(repetitions, warm_up, trials)
    result: Bench = run_ranks(_worker, world, task, list(entries), rounds, profile, threads=threads)
    return result


def _worker(task: Task, entries: list[Entry], rounds: Rounds, profile: Profile | None) -> Bench:
    world = join("cpu")
    options = Options(devices=world.size, device="cpu")
    freeze(task, "eval")
    if profile is None:
        profile = measure(task, world, check(task), options, trials=rounds.trials)
    out = Bench(task.source.steps, profile=profile.to_dict())
    for entry in entries:
        if entry.schedule == "ahd" and entry.plan is None:
            out.plans[entry.label] = planner.plan(profile, world.size).to_dict()
    passes = [False] * rounds.warm_up + [True] * rounds.counted
    with bar(len(passes) * len(entries), "bench") as progress:
        for counted in passes:
            for entry in entries:
                _one(task, entry, profile, out, counted=counted)
                progress.update(1)
    return out


def _one(task: Task, entry: Entry, profile: Profile, out: Bench, *, counted: bool) -> None:
    world = join("cpu")
    steps = task.source.steps
    result = run_here(
        clone(task),
        Options(
            schedule=entry.schedule,
            devices=1 if entry.schedule == "sequential" else world.size,
            plan=entry.plan,
            depth=entry.depth,
            device="cpu",
        ),
        profile,
    )
    if not counted:
        return
    label = entry.label
    out.wall_s.setdefault(label, []).append(result.wall_s / steps)
    out.cpu_s.setdefault(label, []).append(result.busiest_cpu_s / steps)
    out.period_s.setdefault(label, []).append(result.period_s(skip=min(steps // 3, 2 * world.size)))
    out.counts[label] = found(result).to_dict()
    out.plans[label] = None if result.plan is None else result.plan.to_dict()
    out.shares[label] = result.shares()
    out.rss[label] = [r["peak_rss_bytes"] for r in result.ranks]
