"""Block-to-device plans: contiguous stages, each on a group of consecutive ranks.

A plan is the unit that the planner writes, the runtime follows and the simulator replays
(Pipe-BD, section IV: teacher relaying and automatic hybrid distribution). Block indices are
0-based and inclusive; stage ``s`` takes the ranks that follow those of stage ``s - 1``; ranks
after the last stage stay idle. Inside a stage of ``g`` devices the batch is cut into ``g`` row
ranges, ragged when ``g`` does not divide it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from shorthaul import atomic
from shorthaul.errors import UserError

FORMAT = "pipe-bd-plan"
VERSION = 1


@dataclass(frozen=True)
class Stage:
    """Blocks ``first..last`` (0-based, both inclusive) on ``devices`` consecutive ranks."""

    first: int
    last: int
    devices: int

    @property
    def blocks(self) -> range:
        """Indices of the blocks this stage owns."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True)
class Plan:
    """Stages in block order, with what the planner knows about them.

    Attributes:
        stages: Contiguous stages covering all blocks.
        period_s: Predicted seconds per step, when a planner made the plan.
        blocks: Names of the blocks, when known.
        batch: Global batch size the plan was made for, when known.
        explanation: Why this plan: per-stage costs and alternatives (`docs/profile.md`).
        devices: Devices the planner was given; some may stay idle.
        source: What error messages call it: the file it was read from.
    """

    stages: tuple[Stage, ...]
    period_s: float | None = None
    blocks: tuple[str, ...] = ()
    batch: int | None = None
    explanation: Mapping[str, Any] = field(default_factory=dict)
    devices: int | None = None
    source: str = field(default="the plan", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "blocks", tuple(self.blocks))

    # -- common shapes ---------------------------------------------------------------------

    @classmethod
    def pipeline(cls, cuts: Sequence[int]) -> Plan:
        """One device per stage; ``cuts`` are exclusive ends, the last one the block count.

        ``Plan.pipeline([2, 6])`` puts blocks 0-1 on rank 0 and blocks 2-5 on rank 1.
        """
        edges = [0, *cuts]
        if len(edges) < 2 or any(hi <= lo for lo, hi in pairwise(edges)):
            raise UserError(
                f"cuts {list(cuts)} do not rise from 1: give the exclusive end of each stage"
            )
        return cls(tuple(Stage(lo, hi - 1, 1) for lo, hi in pairwise(edges)))

    @classmethod
    def joint(cls, num_blocks: int, devices: int) -> Plan:
        """All blocks on one group: data-parallel distillation with one teacher pass."""
        return cls((Stage(0, num_blocks - 1, devices),))

    @classmethod
    def even(cls, num_blocks: int, devices: int) -> Plan:
        """One device per stage, blocks split by count; the first stages take one more."""
        return cls.pipeline([hi for _, hi in row_ranges(num_blocks, min(num_blocks, devices))])

    # -- questions -------------------------------------------------------------------------

    @property
    def devices_used(self) -> int:
        """Ranks that own at least one block."""
        return sum(stage.devices for stage in self.stages)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Indices of the blocks whose output crosses from one stage to the next."""
        return tuple(stage.last for stage in self.stages[:-1])

    def ranks(self, stage: int) -> range:
        """Consecutive global ranks of stage number ``stage``."""
        low = sum(s.devices for s in self.stages[:stage])
        return range(low, low + self.stages[stage].devices)

    def stage_of(self, rank: int) -> int | None:
        """Number of the stage that ``rank`` works for; None for an idle rank."""
        for index in range(len(self.stages)):
            if rank in self.ranks(index):
                return index
        return None

    def shape(self) -> str:
        """A short name such as ``0-1x2|2-5x1``: block range and devices of each stage."""
        return "|".join(f"{s.first}-{s.last}x{s.devices}" for s in self.stages)

    def validate(
        self, num_blocks: int, world: int, max_groups: Sequence[int | None] | None = None
    ) -> None:
        """Raise `UserError` unless the plan covers every block once and fits ``world`` ranks.

        Args:
            num_blocks: Blocks of the model; the plan must own each exactly once, in order.
            world: Ranks available.
            max_groups: Largest group per block, None where any size will do (paper notes,
                section 6.1: a block with train-mode BatchNorm must stay on one device).
        """
        if not self.stages:
            raise UserError(f"{self.source} has no stages: block 0 is not covered")
        due = 0
        for number, stage in enumerate(self.stages):
            if stage.devices < 1:
                raise UserError(
                    f"{self.source}: stage {number} has {stage.devices} devices: give at least 1"
                )
            if stage.last < stage.first:
                raise UserError(
                    f"{self.source}: stage {number} ends at block {stage.last}, before its "
                    f"first block {stage.first}: swap them"
                )
            if stage.first > due:
                raise UserError(
                    f"{self.source} does not cover {self._name(due)}: stage {number} starts "
                    f"at block {stage.first}"
                )
            if stage.first < due:
                raise UserError(
                    f"{self.source} covers {self._name(stage.first)} twice: stage {number} should "
                    f"start at block {due}"
                )
            due = stage.last + 1
        if due < num_blocks:
            raise UserError(
                f"{self.source} does not cover {self._name(due)}: it ends at block {due - 1} of "
                f"{num_blocks} blocks (0-{num_blocks - 1})"
            )
        if due > num_blocks:
            raise UserError(
                f"{self.source} names block {due - 1}, but the model has {num_blocks} blocks "
                f"(0-{num_blocks - 1})"
            )
        if self.devices_used > world:
            raise UserError(
                f"{self.source} needs {self.devices_used} devices, but there are {world} ranks: "
                "start more or plan again with --devices"
            )
        for stage in self.stages if max_groups is not None else ():
            for block in stage.blocks:
                limit = max_groups[block] if max_groups is not None else None
                if limit is not None and stage.devices > limit:
                    raise UserError(
                        f"{self._name(block)} allows groups of at most {limit}, but {self.source} "
                        f"puts it on {stage.devices} devices"
                    )

    def _name(self, block: int) -> str:
        return (
            f"block {block} ({self.blocks[block]})"
            if block < len(self.blocks)
            else (f"block {block}")
        )

    # -- files -----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data (schema in `docs/profile.md`)."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "stages": [
                {"first": s.first, "last": s.last, "devices": s.devices} for s in self.stages
            ],
            "period_s": self.period_s,
            "devices": self.devices if self.devices is not None else self.devices_used,
            "devices_used": self.devices_used,
            "batch": self.batch,
            "blocks": list(self.blocks),
            "explanation": dict(self.explanation),
        }

    @classmethod
    def from_dict(cls, data: object, source: str = "the plan") -> Plan:
        """Read what `to_dict` wrote; only ``stages`` is required."""
        if not isinstance(data, Mapping):
            raise UserError(f"{source}: expected a JSON object with 'stages'")
        if data.get("format", FORMAT) != FORMAT:
            raise UserError(f"{source}: format is {data['format']!r}, expected {FORMAT!r}")
        version = _integer(data.get("version", VERSION), "version", source)
        if version > VERSION:
            raise UserError(
                f"{source}: version {version} is newer than {VERSION}: upgrade shorthaul-pipe-bd"
            )
        rows = data.get("stages")
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{source}: 'stages' must be a list of {{first, last, devices}}")
        stages = []
        for number, row in enumerate(rows):
            where = f"stages[{number}]"
            if not isinstance(row, Mapping):
                raise UserError(f"{source}: {where} must be an object {{first, last, devices}}")
            values = {}
            for key in ("first", "last", "devices"):
                if key not in row:
                    raise UserError(f"{source}: {where} lacks '{key}'")
                values[key] = _integer(row[key], f"{where}.{key}", source)
            stages.append(Stage(**values))
        period = data.get("period_s")
        if period is not None and (isinstance(period, bool) or not isinstance(period, int | float)):
            raise UserError(f"{source}: period_s is {period!r}, expected seconds")
        names = data.get("blocks") or ()
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise UserError(f"{source}: 'blocks' must be a list of names")
        explanation = data.get("explanation") or {}
        if not isinstance(explanation, Mapping):
            raise UserError(f"{source}: 'explanation' must be an object")
        counts = {
            key: _integer(data[key], key, source) if data.get(key) is not None else None
            for key in ("batch", "devices")
        }
        return cls(
            stages=tuple(stages),
            period_s=None if period is None else float(period),
            blocks=tuple(names),
            explanation=dict(explanation),
            source=source,
            **counts,
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        atomic.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file; a missing or malformed one is a one-line `UserError`."""
        return cls.from_dict(atomic.read_json(path), source=str(path))


def _integer(value: object, field_name: str, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{source}: {field_name} is {value!r}, expected a whole number")
    return value


def row_ranges(batch: int, g: int) -> list[tuple[int, int]]:
    """Split ``batch`` rows over ``g`` ranks; the first ``batch % g`` take one row more."""
    if g < 1 or batch < 0:
        raise ValueError(f"cannot split {batch} rows over {g} ranks")
    size, extra = divmod(batch, g)
    edges = [rank * size + min(rank, extra) for rank in range(g + 1)]
    return list(pairwise(edges))


def compositions(n: int) -> Iterator[tuple[int, ...]]:
    """All ordered ways to write ``n`` as a sum of positive integers: 2**(n-1) of them."""
    if n == 0:
        yield ()
    for head in range(1, n + 1):
        for tail in compositions(n - head):
            yield (head, *tail)


def all_plans(num_blocks: int, devices: int, *, idle: bool = True) -> Iterator[Plan]:
    """Every plan of ``num_blocks`` on at most (``idle=False``: exactly) ``devices`` ranks."""
    for lengths in compositions(num_blocks):
        edges = [0]
        for length in lengths:
            edges.append(edges[-1] + length)
        for used in range(1 if idle else devices, devices + 1):
            for groups in compositions(used):
                if len(groups) == len(lengths):
                    yield Plan(
                        tuple(
                            Stage(lo, hi - 1, g)
                            for (lo, hi), g in zip(pairwise(edges), groups, strict=True)
                        )
                    )
