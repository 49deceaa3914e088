"""What a schedule would do on devices that are not here: discrete events over a profile.

Runs in C++ (`cpp/simulator.cpp`). Everything that comes out of this module is simulated and says
so; the times that go in are a profile's measurements. Model (paper notes, section 4.4): a stage
waits for its slowest member and its all-reduce; cuts are alpha-beta links that carry one tensor
at a time; a receiver posts ``depth`` receives ahead and a sender holds at most ``depth`` unsent
tensors, then waits (back-pressure); the loader works ``prefetch`` batches ahead, or in line with
the first stage at 0. Random times depend on (seed, block, member, step) only, so that two
schedules, or two depths, are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from shorthaul.errors import UserError

from pipe_bd import _core
from pipe_bd.options import SCHEDULES, check_schedule
from pipe_bd.plan import Plan
from pipe_bd.planner import layer_scheduling
from pipe_bd.planner import plan as best_plan
from pipe_bd.profile import Profile, Unavailable
from pipe_bd.tables import native

MAX_DEVICES = 1024


@dataclass(frozen=True)
class DeviceUse:
    """Shares of the simulated time that one device spends on each activity; they add up to 1."""

    teacher: float
    student: float
    allreduce: float
    update: float
    idle: float


@dataclass(frozen=True)
class SimulationResult:
    """One simulated run.

    Attributes:
        schedule: Name of the schedule.
        devices: Devices given, idle ones included.
        steps: Batches that every block was trained on.
        plan: Stages that were simulated; None for ``dp`` and ``ls``, which have none.
        total_s: Seconds of the whole run.
        period_s: Seconds per step of all blocks, averaged over the second half of the run.
        fill_s: When the last stage starts its first batch.
        bytes_per_step: Boundary tensors sent per step (a profile knows no gradient sizes).
        peak_queue: Most tensors of one cut produced and not yet taken by the next stage.
        peak_unsent: Most of these that the sender held because no receive was free.
        use: Per device, in rank order.
        depth: Bound of the queues.
        prefetch: Batches the loader works ahead.
        seed: Seed of the draws.
        jitter: Relative uniform noise on every block time.
    """

    schedule: str
    devices: int
    steps: int
    plan: Plan | None
    total_s: float
    period_s: float
    fill_s: float
    bytes_per_step: float
    peak_queue: int
    peak_unsent: int
    use: tuple[DeviceUse, ...]
    depth: int
    prefetch: int
    seed: int
    jitter: float

    @property
    def utilisation(self) -> float:
        """Mean over all devices given of the time not spent idle."""
        return 1.0 - sum(use.idle for use in self.use) / len(self.use)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        stages = self.plan.to_dict()["stages"] if self.plan else None
        return {
            "simulated": True,
            "schedule": self.schedule,
            "devices": self.devices,
            "steps": self.steps,
            "stages": stages,
            "total_s": self.total_s,
            "period_s": self.period_s,
            "fill_s": self.fill_s,
            "bytes_per_step": self.bytes_per_step,
            "peak_queue": self.peak_queue,
            "peak_unsent": self.peak_unsent,
            "utilisation": self.utilisation,
            "use": [vars(use) for use in self.use],
            "depth": self.depth,
            "prefetch": self.prefetch,
            "seed": self.seed,
            "jitter": self.jitter,
        }


def simulate(
    profile: Profile,
    schedule: str,
    devices: int,
    *,
    plan: Plan | None = None,
    steps: int = 200,
    depth: int = 2,
    prefetch: int = 2,
    seed: int = 0,
    jitter: float = 0.0,
) -> SimulationResult:
    """Simulate one schedule on ``devices`` devices.

    Args:
        profile: Measured costs; their raw samples are drawn from where the profile has them.
        schedule: One of `SCHEDULES`.
        devices: 1 to 1024.
        plan: Stages for ``tr``, ``dpu`` and ``ahd``; by default the best plan, for ``tr`` and
            ``dpu`` among stages of one device.
        steps: Batches per block.
        depth: Receives posted ahead, and boundary tensors a sender may hold.
        prefetch: Batches loaded ahead; 0 loads in line with the first stage.
        seed: Seed of the draws.
        jitter: Uniform noise of up to this fraction on every block time, up and down.

    Raises:
        Unavailable: The profile lacks a group size that the schedule needs.
        UserError: The plan does not fit, or an argument is out of range.
    """
    check_schedule(schedule)
    _in_range("--devices", devices, 1, MAX_DEVICES)
    _in_range("--steps", steps, 1, 1_000_000)
    _in_range("--depth", depth, 1, 1_000_000)
    _in_range("--prefetch", prefetch, 0, 1_000_000)
    _in_range("--seed", seed, 0, 2**63 - 1)
    if not 0.0 <= jitter <= 1.0:
        raise UserError(f"--jitter is {jitter}: give a fraction from 0 to 1")
    if plan is not None and schedule not in ("tr", "dpu", "ahd"):
        raise UserError(f"schedule {schedule!r} takes no plan: use tr, dpu or ahd, or drop --plan")
    options: dict[str, Any] = {
        "steps": steps,
        "depth": depth,
        "prefetch": prefetch,
        "seed": seed,
        "jitter": float(jitter),
    }

    if schedule == "dp":
        _need(profile, Plan.joint(len(profile.blocks), devices))
        raw = _core.simulate_dp(native(profile), devices, **options)
    elif schedule == "ls":
        raw = _core.simulate_ls(native(profile), layer_scheduling(profile, devices), **options)
    else:
        plan = _stages(profile, schedule, devices) if plan is None else plan
        plan.validate(len(profile.blocks), devices, [block.max_group for block in profile.blocks])
        _need(profile, plan)
        raw = _core.simulate_relay(
            native(profile),
            [(s.first, s.last, s.devices) for s in plan.stages],
            schedule == "tr",
            devices,
            **options,
        )
    return SimulationResult(
        schedule=schedule,
        devices=devices,
        plan=plan,
        use=_use(raw.pop("busy_s"), raw["total_s"]),
        **options,
        **raw,
    )


def sweep(
    profile: Profile,
    schedules: Sequence[str] = SCHEDULES,
    device_counts: Iterable[int] = (1, 2, 4, 8),
    **options: Any,
) -> list[SimulationResult | tuple[str, int, str]]:
    """Simulate every schedule at every device count, in that order.

    What the profile cannot answer (a group size that was not measured) is not an error here: its
    entry is ``(schedule, devices, reason)``.
    """
    results: list[SimulationResult | tuple[str, int, str]] = []
    for devices in device_counts:
        for schedule in schedules:
            try:
                results.append(simulate(profile, schedule, devices, **options))
            except Unavailable as error:
                results.append((schedule, devices, str(error)))
    return results


def _stages(profile: Profile, schedule: str, devices: int) -> Plan:
    """The stages of a schedule when the user gave none."""
    blocks = len(profile.blocks)
    if schedule == "sequential":
        return Plan.joint(blocks, 1)
    if schedule == "joint":
        return Plan.joint(blocks, devices)
    return best_plan(profile, devices, largest_group=None if schedule == "ahd" else 1)


def _need(profile: Profile, chosen: Plan) -> None:
    for stage in chosen.stages:
        reason = profile.missing(stage.first, stage.last, stage.devices)
        if reason is not None:
            raise Unavailable(reason)


def _use(busy_s: np.ndarray, total_s: float) -> tuple[DeviceUse, ...]:
    share = busy_s / total_s if total_s > 0 else np.zeros_like(busy_s)
    idle = np.clip(1.0 - share.sum(axis=1), 0.0, 1.0)
    return tuple(
        DeviceUse(float(teacher), float(student), float(allreduce), float(update), float(rest))
        for (teacher, student, allreduce, update), rest in zip(share, idle, strict=True)
    )


def _in_range(flag: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{flag} is {value}: give a whole number from {low} to {high}")
