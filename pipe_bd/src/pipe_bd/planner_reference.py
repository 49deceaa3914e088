"""Plain Python planners, slow and obvious: what the C++ planner is tested against.

`dynamic_programme` is the recurrence of the paper notes, section 1.6, written as it is read;
`brute_force` tries every plan. Both break ties as `planner` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from pipe_bd.plan import Stage, all_plans
from pipe_bd.profile import Profile

INFEASIBLE = math.inf


@dataclass(frozen=True)
class Found:
    """Outcome of a search: ``stages`` is empty, and ``failed_block`` set, when nothing fits."""

    stages: tuple[Stage, ...]
    period_s: float
    failed_block: int = -1


class _Costs:
    """Period of every stage, infinite where a limit forbids it."""

    def __init__(
        self,
        profile: Profile,
        devices: int,
        memory_bytes: float | None,
        largest_group: int | None,
    ) -> None:
        limit = min(devices, largest_group or devices)
        self.sizes = [g for g in profile.sizes() if g <= limit]
        self._profile = profile
        self._memory_bytes = memory_bytes
        self._known: dict[tuple[int, int, int], float] = {}

    def stage(self, lo: int, hi: int, g: int) -> float:
        """Period of blocks ``lo..hi-1`` on ``g`` devices."""
        key = (lo, hi, g)
        if key not in self._known:
            self._known[key] = self._stage(lo, hi, g)
        return self._known[key]

    def _stage(self, lo: int, hi: int, g: int) -> float:
        profile = self._profile
        if g not in self.sizes or profile.missing(lo, hi - 1, g) is not None:
            return INFEASIBLE
        blocks = profile.blocks[lo:hi]
        if self._memory_bytes is not None:
            memory = sum(block.memory_bytes.get(g, INFEASIBLE) for block in blocks)
            if memory > self._memory_bytes:
                return INFEASIBLE
        # Added up block by block, as in C++, so that equal plans have bitwise equal periods.
        work = 0.0
        for block in blocks:
            work += (
                block.teacher_s[g] + block.student_s[g] + block.allreduce_s.get(g, 0.0)
            ) + block.update_s
        if lo == 0:
            return max(work, profile.loader_s)
        return work + profile.link.seconds(profile.blocks[lo - 1].activation_bytes)


def dynamic_programme(
    profile: Profile,
    devices: int,
    memory_bytes: float | None = None,
    *,
    largest_group: int | None = None,
) -> Found:
    """F[b][n] = min over lo, g of max(F[lo][n - g], stage(lo, b, g)), then the thriftiest plan."""
    costs = _Costs(profile, devices, memory_bytes, largest_group)
    total = len(profile.blocks)

    best = [[0.0] * (devices + 1)] + [[INFEASIBLE] * (devices + 1) for _ in range(total)]
    for b in range(1, total + 1):
        for n in range(1, devices + 1):
            best[b][n] = min(
                (
                    max(best[lo][n - g], costs.stage(lo, b, g))
                    for lo in range(b)
                    for g in costs.sizes
                    if g <= n
                ),
                default=INFEASIBLE,
            )
    period = best[total][devices]
    if period == INFEASIBLE:
        reached = max(b for b in range(total + 1) if best[b][devices] < INFEASIBLE)
        return Found((), period, reached)

    @cache
    def thriftiest(lo: int) -> tuple[int, int, tuple[tuple[int, int], ...]] | None:
        if lo == total:
            return (0, 0, ())
        options = []
        for hi in range(lo + 1, total + 1):
            for g in costs.sizes:
                if costs.stage(lo, hi, g) <= period:
                    rest = thriftiest(hi)
                    if rest is not None:
                        options.append((rest[0] + g, rest[1] + 1, ((hi - 1, g), *rest[2])))
        return min(options, default=None)

    chosen = thriftiest(0)
    assert chosen is not None  # the first pass found a plan with this period
    return Found(_stages(chosen[2]), period)


def brute_force(profile: Profile, devices: int, memory_bytes: float | None = None) -> Found:
    """The best of all plans, tried one by one."""
    costs = _Costs(profile, devices, memory_bytes, None)
    best: tuple[float, int, int, tuple[tuple[int, int], ...]] | None = None
    for candidate in all_plans(len(profile.blocks), devices):
        period = max(costs.stage(s.first, s.last + 1, s.devices) for s in candidate.stages)
        if period < INFEASIBLE:
            ends = tuple((s.last, s.devices) for s in candidate.stages)
            key = (period, candidate.devices_used, len(ends), ends)
            best = key if best is None else min(best, key)
    return Found((), INFEASIBLE) if best is None else Found(_stages(best[3]), best[0])


def _stages(ends: tuple[tuple[int, int], ...]) -> tuple[Stage, ...]:
    stages = []
    first = 0
    for last, g in ends:
        stages.append(Stage(first, last, g))
        first = last + 1
    return tuple(stages)
