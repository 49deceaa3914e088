"""Automatic hybrid distribution: the exact plan with the lowest period, and why.

The search runs in C++ (`cpp/planner.cpp`); this module turns profiles into tables, results into
explained plans and infeasibility into one line that names the block. Cost of a stage, section
1.6 of the paper notes: the sum over its blocks of teacher, student, all-reduce and update time at
the group's size, plus the input cut for every stage but the first; the period is that of the
slowest stage. Ties: lowest period, then fewest devices, then fewest stages, then the smallest
list of (last block, devices).
"""

from __future__ import annotations

from typing import Any

from shorthaul.errors import UserError

from pipe_bd import _core
from pipe_bd.plan import Plan, Stage
from pipe_bd.profile import BlockProfile, Profile, StageCost, Unavailable
from pipe_bd.tables import native

_PARTS = ("teacher_s", "student_s", "allreduce_s", "update_s", "link_s")


def plan(
    profile: Profile,
    devices: int,
    memory_bytes: float | None = None,
    *,
    largest_group: int | None = None,
    reference: bool = False,
) -> Plan:
    """The plan with the lowest period on at most ``devices`` devices.

    Args:
        profile: Measured costs.
        devices: Devices available; some stay idle where that is faster or no slower.
        memory_bytes: Cap per device; None for no cap.
        largest_group: Largest group to consider; 1 gives the best pure pipeline.
        reference: Search with the plain Python dynamic programme instead of the C++ one.

    Raises:
        Unavailable: No plan fits; the message names the block that stands in the way.
    """
    _check(devices, memory_bytes)
    if reference:
        from pipe_bd import planner_reference

        found = planner_reference.dynamic_programme(
            profile, devices, memory_bytes, largest_group=largest_group
        )
        stages, period, failed = found.stages, found.period_s, found.failed_block
    else:
        rows, period, failed = _core.plan(
            native(profile), devices, memory_bytes, largest_group or 0
        )
        stages = tuple(Stage(*row) for row in rows)
    if not stages:
        raise Unavailable(_infeasible(profile, devices, memory_bytes, largest_group, failed))
    return Plan(
        stages=stages,
        period_s=period,
        blocks=profile.names,
        batch=profile.batch,
        explanation=_explanation(profile, stages, period, devices, memory_bytes),
        devices=devices,
    )


def period(profile: Profile, chosen: Plan) -> float:
    """Predicted seconds per step of any plan: its slowest stage."""
    return max(profile.cost(s.first, s.last, s.devices).period_s for s in chosen.stages)


def layer_scheduling(profile: Profile, devices: int) -> tuple[tuple[int, ...], ...]:
    """Blocks of each device under the paper's ``ls`` baseline, bin-packed by measured cost.

    Longest processing time first over ``loader + teacher of all blocks up to i + student i +
    update i`` at group size 1 (paper notes, section 1.3).
    """
    _check(devices, None)
    costs = []
    teacher = 0.0
    for index, block in enumerate(profile.blocks):
        reason = profile.missing(index, index, 1)
        if reason is not None:
            raise Unavailable(reason)
        teacher += block.teacher_s[1]
        costs.append(profile.loader_s + teacher + block.student_s[1] + block.update_s)
    return tuple(tuple(blocks) for blocks in _core.bin_pack(costs, devices))


# -- why this plan -------------------------------------------------------------------------


def _explanation(
    profile: Profile,
    stages: tuple[Stage, ...],
    period_s: float,
    devices: int,
    memory_bytes: float | None,
) -> dict[str, Any]:
    costs = [profile.cost(s.first, s.last, s.devices) for s in stages]
    slowest = max(range(len(stages)), key=lambda i: costs[i].period_s)
    return {
        "bottleneck": {"stage": slowest, "because": _because(costs[slowest])},
        "devices_idle": devices - sum(s.devices for s in stages),
        "memory_cap_bytes": memory_bytes,
        "stages": [
            {
                "blocks": list(profile.names[s.first : s.last + 1]),
                "devices": s.devices,
                "share_of_period": cost.period_s / period_s if period_s > 0 else 1.0,
                **cost.to_dict(),
            }
            for s, cost in zip(stages, costs, strict=True)
        ],
        "alternatives": _alternatives(profile, period_s, devices, memory_bytes),
    }


def _because(cost: StageCost) -> str:
    parts = {name.removesuffix("_s"): getattr(cost, name) for name in _PARTS}
    if cost.loader_s > sum(parts.values()):
        return "loader"
    return max(parts, key=lambda name: parts[name])


def _alternatives(
    profile: Profile, period_s: float, devices: int, memory_bytes: float | None
) -> list[dict[str, Any]]:
    """What a person would have tried by hand, with the period of each or why it cannot run."""
    blocks = len(profile.blocks)
    rows = []
    stages, _, _ = _core.plan(native(profile), devices, memory_bytes, 1)
    pipeline = Plan(tuple(Stage(*row) for row in stages)) if stages else None
    for name, says, shape in (
        ("joint", f"all blocks on all {devices} devices", Plan.joint(blocks, devices)),
        ("pipeline", "best stages of one device each", pipeline),
        ("even", "blocks split evenly by count", Plan.even(blocks, devices)),
        ("single", "one device", Plan.joint(blocks, 1)),
    ):
        row: dict[str, Any] = {
            "name": name,
            "says": says,
            "shape": shape.shape() if shape else None,
            "period_s": None,
            "slower": None,
            "why_not": None,
        }
        why_not = (
            _why_not(profile, shape, memory_bytes) if shape else "no stages of one device each fit"
        )
        if why_not is None and shape is not None:
            row["period_s"] = period(profile, shape)
            row["slower"] = row["period_s"] / period_s if period_s > 0 else 1.0
        row["why_not"] = why_not
        rows.append(row)
    return rows


def _why_not(profile: Profile, shape: Plan, memory_bytes: float | None) -> str | None:
    for stage in shape.stages:
        reason = profile.missing(stage.first, stage.last, stage.devices)
        if reason is not None:
            return reason
        needed = profile.cost(stage.first, stage.last, stage.devices).memory_bytes
        if memory_bytes is not None and (needed is None or needed > memory_bytes):
            return f"needs {_gb(needed)} on a device"
    return None


def explain(chosen: Plan) -> str:
    """A plan's explanation for people: stages, bottleneck, alternatives."""
    why = chosen.explanation
    lines = [
        f"period {_ms(chosen.period_s)} on {chosen.devices_used} of {chosen.devices} devices"
        + (
            f" ({why['devices_idle']} idle: more would not be faster)"
            if why["devices_idle"]
            else ""
        )
    ]
    head = f"{'stage':>5}  {'ranks':>7}  {'period':>10}  {'teacher':>10}  {'student':>10}"
    lines.append(head + f"  {'allreduce':>10}  {'update':>10}  {'link':>10}  {'memory':>9}  blocks")
    for number, row in enumerate(why["stages"]):
        ranks = chosen.ranks(number)
        who = f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
        cells = [f"{_ms(row['period_s']):>10}"] + [f"{_ms(row[part]):>10}" for part in _PARTS]
        names = row["blocks"]
        span = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"
        lines.append(
            f"{number:>5}  {who:>7}  "
            + "  ".join(cells)
            + f"  {_gb(row['memory_bytes']):>9}  {span}"
        )
    worst = why["bottleneck"]
    lines.append(f"the slowest is stage {worst['stage']}, mostly {worst['because']}")
    lines.append("instead:")
    for row in why["alternatives"]:
        if row["why_not"] is not None:
            result = f"not possible: {row['why_not']}"
        elif row["shape"] == chosen.shape():
            result = "= this plan"
        else:
            result = f"{_ms(row['period_s']):>10}  ×{row['slower']:.2f}"
        lines.append(f"  {row['name']:<9} {row['says']:<34} {result}")
    return "\n".join(lines)


# -- why no plan ---------------------------------------------------------------------------


def _infeasible(
    profile: Profile,
    devices: int,
    memory_bytes: float | None,
    largest_group: int | None,
    failed: int,
) -> str:
    limit = min(devices, profile.batch, largest_group or devices)
    for block in profile.blocks:
        reason = _alone(block, limit, memory_bytes)
        if reason is not None:
            return f"no plan on {devices} devices: {reason}"
    cap = "" if memory_bytes is None else f" of {_gb(memory_bytes)}"
    more = "" if memory_bytes is None else " or raise --memory-gb"
    return (
        f"no plan on {devices} devices{cap}: the blocks before block "
        f"{profile.blocks[failed].name!r} leave no devices for it: give more --devices{more}"
    )


def _alone(block: BlockProfile, limit: int, memory_bytes: float | None) -> str | None:
    """Why the block cannot run even as a stage of its own; None when it can."""
    sizes = [g for g in block.sizes() if g <= limit]
    if not sizes:
        known = ", ".join(map(str, block.sizes())) or "none"
        return (
            f"block {block.name!r} was profiled for group sizes {known} and may use at most "
            f"{limit}: profile it at a smaller size"
        )
    if memory_bytes is None:
        return None
    measured = {g: block.memory_bytes[g] for g in sizes if g in block.memory_bytes}
    if not measured:
        return f"block {block.name!r} has no memory_bytes: profile it again or drop --memory-gb"
    best = min(measured, key=lambda g: measured[g])
    if measured[best] > memory_bytes:
        return (
            f"block {block.name!r} needs {_gb(measured[best])} per device at its best group size "
            f"{best}, above the cap of {_gb(memory_bytes)}: raise --memory-gb or split the block"
        )
    return None


def _check(devices: int, memory_bytes: float | None) -> None:
    if isinstance(devices, bool) or not isinstance(devices, int) or not 1 <= devices <= 1 << 20:
        raise UserError(f"--devices is {devices}: give 1 to {1 << 20}")
    if memory_bytes is not None and not 0 < memory_bytes < float("inf"):
        raise UserError(f"--memory-gb is {memory_bytes / 1e9:g}: give a size above 0")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f} ms"


def _gb(nbytes: float | None) -> str:
    return "unknown" if nbytes is None else f"{nbytes / 1e9:.3g} GB"
