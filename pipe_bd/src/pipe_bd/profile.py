"""Measured cost of every block at every group size, and the JSON file that carries it.

The planner and the simulator read a profile and nothing else, so both run on a machine that
has neither the model nor the devices. Times are for a group's share of the *full* batch: a
block's ``teacher_s[g]`` is the teacher's forward time on ``batch / g`` rows (Pipe-BD, section
IV-C). The schema is documented in `docs/profile.md`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from shorthaul import atomic
from shorthaul.errors import UserError

FORMAT = "pipe-bd-profile"
VERSION = 1

_BLOCK_KEYS = (
    "name",
    "teacher_s",
    "student_s",
    "allreduce_s",
    "update_s",
    "activation_bytes",
    "memory_bytes",
    "max_group",
    "samples",
)
_SAMPLE_KEYS = ("teacher_s", "student_s", "update_s")
_TOP_KEYS = ("format", "version", "batch", "link", "loader_s", "blocks", "environment")

GroupMap = Mapping[int, float]
_T = TypeVar("_T")


class Unavailable(UserError):
    """The profile cannot answer: a group size was not measured, or no plan fits."""


@dataclass(frozen=True)
class Samples:
    """Raw measured times, kept so that the simulator draws from distributions, not means."""

    teacher_s: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    student_s: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    update_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class BlockProfile:
    """Cost of one teacher block with its student block(s).

    Attributes:
        name: Unique name of the block.
        teacher_s: Group size to seconds of the teacher's forward pass.
        student_s: Group size to seconds of the student's forward and backward pass.
        allreduce_s: Group size to seconds of the gradient all-reduce; size 1 costs nothing.
        update_s: Seconds of the optimizer step (the same on each device).
        activation_bytes: Bytes of the block's output for the full batch: what a cut carries.
        memory_bytes: Group size to bytes needed on each device.
        max_group: Largest group allowed (1 for train-mode BatchNorm); None for any.
        samples: Raw measurements, possibly empty.
    """

    name: str
    teacher_s: GroupMap
    student_s: GroupMap
    allreduce_s: GroupMap
    update_s: float
    activation_bytes: float
    memory_bytes: GroupMap = field(default_factory=dict)
    max_group: int | None = None
    samples: Samples = field(default_factory=Samples)

    def sizes(self) -> tuple[int, ...]:
        """Group sizes that were measured completely and that ``max_group`` allows."""
        return tuple(
            g
            for g in sorted(self.teacher_s)
            if g in self.student_s
            and (g == 1 or g in self.allreduce_s)
            and (self.max_group is None or g <= self.max_group)
        )


@dataclass(frozen=True)
class LinkProfile:
    """Alpha-beta model of one link: a tensor of n bytes takes latency + n / bandwidth."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, nbytes: float) -> float:
        """Time to move ``nbytes`` over the link."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class StageCost:
    """What one stage costs per step, by cause (paper notes, section 1.6)."""

    teacher_s: float
    student_s: float
    allreduce_s: float
    update_s: float
    link_s: float
    loader_s: float
    memory_bytes: float | None

    @property
    def period_s(self) -> float:
        """Seconds per step: the work, or the loader where that is slower."""
        work = self.teacher_s + self.student_s + self.allreduce_s + self.update_s + self.link_s
        return max(work, self.loader_s)

    def to_dict(self) -> dict[str, float | None]:
        """The cost as JSON-ready data."""
        return {
            "period_s": self.period_s,
            "teacher_s": self.teacher_s,
            "student_s": self.student_s,
            "allreduce_s": self.allreduce_s,
            "update_s": self.update_s,
            "link_s": self.link_s,
            "loader_s": self.loader_s,
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True)
class Profile:
    """Cost of a whole model on one kind of device.

    Attributes:
        batch: Rows of the global batch that all times refer to.
        link: Cost of moving a boundary tensor between two stages.
        blocks: Blocks in the order in which the teacher runs them.
        loader_s: Seconds to load one full batch.
        environment: Where the numbers were measured; not interpreted.
    """

    batch: int
    link: LinkProfile
    blocks: tuple[BlockProfile, ...]
    loader_s: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise UserError("profile: 'blocks' is empty: profile at least one block")
        _refuse_duplicates(self.blocks, "profile")

    @property
    def names(self) -> tuple[str, ...]:
        """Block names in order."""
        return tuple(block.name for block in self.blocks)

    def sizes(self) -> tuple[int, ...]:
        """Group sizes usable for at least one block, ascending, none above the batch."""
        return tuple(sorted({g for b in self.blocks for g in b.sizes() if g <= self.batch}))

    def missing(self, first: int, last: int, g: int) -> str | None:
        """Why blocks ``first..last`` cannot run on ``g`` devices; None when they can."""
        if g > self.batch:
            return f"a batch of {self.batch} cannot be split over {g} devices"
        for block in self.blocks[first : last + 1]:
            if block.max_group is not None and g > block.max_group:
                return f"block {block.name!r} allows groups of at most {block.max_group}, not {g}"
            if g not in block.sizes():
                return f"the profile has no group size {g} for block {block.name!r}"
        return None

    def cost(self, first: int, last: int, g: int) -> StageCost:
        """Cost per step of blocks ``first..last`` (inclusive) on a group of ``g`` devices.

        The sum over blocks of teacher, student, all-reduce and update, plus the input cut for
        every stage but the first; the first stage is not faster than the loader (paper notes,
        section 1.6).
        """
        reason = self.missing(first, last, g)
        if reason is not None:
            raise Unavailable(reason)
        blocks = self.blocks[first : last + 1]
        memory = [block.memory_bytes.get(g) for block in blocks]
        return StageCost(
            teacher_s=sum(block.teacher_s[g] for block in blocks),
            student_s=sum(block.student_s[g] for block in blocks),
            allreduce_s=sum(block.allreduce_s.get(g, 0.0) for block in blocks),
            update_s=sum(block.update_s for block in blocks),
            link_s=self.link.seconds(self.blocks[first - 1].activation_bytes) if first else 0.0,
            loader_s=0.0 if first else self.loader_s,
            memory_bytes=None if None in memory else sum(m for m in memory if m is not None),
        )

    # -- files -----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON-ready data (schema in `docs/profile.md`)."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "batch": self.batch,
            "link": {"latency_s": self.link.latency_s, "bytes_per_s": self.link.bytes_per_s},
            "loader_s": self.loader_s,
            "blocks": [_block_to_dict(block) for block in self.blocks],
            **({"environment": dict(self.environment)} if self.environment else {}),
        }

    @classmethod
    def from_dict(cls, data: object, source: str = "profile") -> Profile:
        """Check and read profile data; each fault is one line naming the field and block."""
        if not isinstance(data, Mapping):
            raise UserError(f"{source}: expected a JSON object with 'blocks'")
        _refuse_typos(data, _TOP_KEYS, source)
        if data.get("format", FORMAT) != FORMAT:
            raise UserError(f"{source}: format is {data['format']!r}, expected {FORMAT!r}")
        version = _whole(data.get("version", VERSION), f"{source}: version")
        if version > VERSION:
            raise UserError(
                f"{source}: version {version} is newer than {VERSION}: upgrade shorthaul-pipe-bd"
            )
        batch = _whole(_need(data, "batch", source), f"{source}: batch")
        link = _need(data, "link", source)
        if not isinstance(link, Mapping):
            raise UserError(f"{source}: link must be an object {{latency_s, bytes_per_s}}")
        latency = _number(_need(link, "latency_s", f"{source}: link"), f"{source}: link.latency_s")
        bandwidth = _number(
            _need(link, "bytes_per_s", f"{source}: link"), f"{source}: link.bytes_per_s"
        )
        if bandwidth == 0:
            raise UserError(f"{source}: link.bytes_per_s is 0: give a bandwidth above 0")
        rows = _need(data, "blocks", source)
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{source}: 'blocks' must be a list of at least one block")
        blocks = tuple(_block(row, number, source) for number, row in enumerate(rows))
        _refuse_duplicates(blocks, source)
        environment = data.get("environment") or {}
        if not isinstance(environment, Mapping):
            raise UserError(f"{source}: environment must be an object")
        return cls(
            batch=batch,
            link=LinkProfile(latency, bandwidth),
            blocks=blocks,
            loader_s=_number(data.get("loader_s", 0.0), f"{source}: loader_s"),
            environment=dict(environment),
        )

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, atomically."""
        atomic.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file; a missing or malformed one is a one-line `UserError`."""
        return cls.from_dict(atomic.read_json(path), source=str(path))


def _block(row: object, number: int, source: str) -> BlockProfile:
    if not isinstance(row, Mapping):
        raise UserError(f"{source}: blocks[{number}] must be an object")
    name = row.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{source}: blocks[{number}] lacks a 'name'")
    where = f"{source}: block {name!r}"
    _refuse_typos(row, _BLOCK_KEYS, where)
    max_group = row.get("max_group")
    return BlockProfile(
        name=name,
        teacher_s=_map(_need(row, "teacher_s", where), f"{where}: teacher_s", filled=True),
        student_s=_map(_need(row, "student_s", where), f"{where}: student_s", filled=True),
        allreduce_s=_map(row.get("allreduce_s", {}), f"{where}: allreduce_s"),
        update_s=_number(_need(row, "update_s", where), f"{where}: update_s"),
        activation_bytes=_number(
            _need(row, "activation_bytes", where), f"{where}: activation_bytes"
        ),
        memory_bytes=_map(_need(row, "memory_bytes", where), f"{where}: memory_bytes"),
        max_group=None if max_group is None else _whole(max_group, f"{where}: max_group"),
        samples=_samples(row.get("samples") or {}, f"{where}: samples"),
    )


def _samples(data: object, where: str) -> Samples:
    if not isinstance(data, Mapping):
        raise UserError(f"{where} must be an object {{teacher_s, student_s, update_s}}")
    _refuse_typos(data, _SAMPLE_KEYS, where)
    maps: dict[str, dict[int, tuple[float, ...]]] = {}
    for key in ("teacher_s", "student_s"):
        groups = data.get(key, {})
        if not isinstance(groups, Mapping):
            raise UserError(f"{where}.{key} must map group sizes to lists of seconds")
        maps[key] = {
            _group(g, f"{where}.{key}"): _list(values, f"{where}.{key}[{g}]")
            for g, values in groups.items()
        }
    return Samples(**maps, update_s=_list(data.get("update_s", []), f"{where}.update_s"))


def _list(values: object, where: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        raise UserError(f"{where} must be a list of seconds")
    return tuple(_number(value, where) for value in values)


def _map(data: object, where: str, *, filled: bool = False) -> dict[int, float]:
    if not isinstance(data, Mapping):
        raise UserError(f"{where} is {data!r}: expected a map from group size to a number")
    if filled and not data:
        raise UserError(f"{where} is empty: give at least one group size")
    return {_group(key, where): _number(value, f"{where}[{key}]") for key, value in data.items()}


def _group(key: object, where: str) -> int:
    # JSON keys are strings; a profile made in Python may carry integers.
    text = str(key)
    if isinstance(key, bool) or not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise UserError(f"{where}: {key!r} is not a group size (1, 2, …)")
    return int(text)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} is {value!r}: expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{where} is {number}: expected a finite number, 0 or more")
    return number


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where} is {value!r}: expected a whole number, 1 or more")
    return value


def _need(data: Mapping[Any, Any], key: str, where: str) -> Any:
    if key not in data:
        raise UserError(f"{where} lacks '{key}'")
    return data[key]


def _refuse_duplicates(blocks: Iterable[BlockProfile], where: str) -> None:
    seen: set[str] = set()
    for block in blocks:
        if block.name in seen:
            raise UserError(f"{where}: two blocks are named {block.name!r}: rename one")
        seen.add(block.name)


def _refuse_typos(data: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse near misses of known keys; unrelated extra keys are the user's own notes."""
    for key in data:
        if key in known:
            continue
        near = get_close_matches(str(key), known, n=1, cutoff=0.8)
        if near:
            raise UserError(f"{where} has unknown key {key!r}: did you mean {near[0]!r}?")


def _block_to_dict(block: BlockProfile) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": block.name,
        "teacher_s": _keys(block.teacher_s),
        "student_s": _keys(block.student_s),
        "allreduce_s": _keys(block.allreduce_s),
        "update_s": block.update_s,
        "activation_bytes": _plain(block.activation_bytes),
        "memory_bytes": {g: _plain(value) for g, value in _keys(block.memory_bytes).items()},
    }
    if block.max_group is not None:
        out["max_group"] = block.max_group
    samples = {
        "teacher_s": {g: list(v) for g, v in _keys(block.samples.teacher_s).items()},
        "student_s": {g: list(v) for g, v in _keys(block.samples.student_s).items()},
        "update_s": list(block.samples.update_s),
    }
    if any(samples.values()):
        out["samples"] = samples
    return out


def _keys(groups: Mapping[int, _T]) -> dict[str, _T]:
    return {str(g): groups[g] for g in sorted(groups)}


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
