"""States on disk, without a host: what is in them, whether it is whole, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shorthaul.errors import UserError

from smart_infinity import _core, layout
from smart_infinity.errors import Corrupt

_ARRAYS = ("parameters", "first moments", "second moments")


@dataclass
class Finding:
    """What one device's folder holds.

    Attributes:
        step: Its committed step.
        previous_step: The step before, if it can be gone back to.
        faults: Damaged arrays of the committed step: tile, array, and the parameters in it.
        previous_faults: The same of the step before; None where it was not read.
        number: Of this device in its state, from 0, of `devices`.
        rank: The one that made it.
    """

    folder: str
    step: int
    previous_step: int | None
    faults: list[dict[str, Any]] = field(default_factory=list)
    previous_faults: list[dict[str, Any]] | None = None
    number: int = 0
    devices: int = 1
    rank: int = 0

    @property
    def clean(self) -> bool:
        """Whether the committed step is whole."""
        return not self.faults


def inspect(folders: Sequence[Path], *, previous: bool = False) -> list[Finding]:
    """Read every array of the committed step, and of the step before if asked.

    Raises:
        UserError: A folder holds no state, or is given twice.
        Corrupt: A header, or both tables, are damaged.
    """
    if not folders:
        raise UserError("give the folders of a state's devices, all of them")
    found: list[Finding] = []
    for folder in folders:
        state = _core.State(folder)
        said = json.loads(state.description)
        one = Finding(str(folder), state.step, state.previous_step)
        one.number, one.devices = int(said["device"]), int(said["devices"])
        one.rank = int(said.get("rank", 0))
        if any((one.rank, one.number) == (other.rank, other.number) for other in found):
            raise UserError(f"{folder}: is device {one.number}, which was given already")
        one.faults = _faults(state, False)
        if previous and state.previous_step is not None:
            one.previous_faults = _faults(state, True)
        found.append(one)
    return found


def _faults(state: Any, previous: bool) -> list[dict[str, Any]]:
    faults = state.verify(previous)
    if not faults:
        return []
    names = _parameters_of(state)
    return [
        {"tile": tile, "array": _ARRAYS[array], "parameters": names.get(tile, [])}
        for tile, array in faults
    ]


def _parameters_of(state: Any) -> dict[int, list[str]]:
    """Give the names of the parameters in each tile of a device."""
    said = json.loads(state.description)
    parameters = [
        layout.Parameter(name, tuple(shape), dtype) for name, shape, dtype in said["parameters"]
    ]
    weights = said["weights"] or [1.0] * said["devices"]
    laid = layout.build(parameters, tile=said["tile"], weights=weights, align=said["align"])
    return {
        laid.tiles[t].index: [parameters[piece.parameter].name for piece in laid.tiles[t].pieces]
        for t in laid.by_device[said["device"]]
    }


def consistent(found: Sequence[Finding]) -> int:
    """Give the step all devices are at or can go back to; a UserError where there is none."""
    step = min(one.step for one in found)
    for one in found:
        if one.step != step and one.previous_step != step:
            raise UserError(
                f"{one.folder} is at step {one.step} and cannot go back to {step}, where others "
                "are: these folders do not belong together"
            )
    return step


def missing(found: Sequence[Finding]) -> list[int]:
    """Give the numbers of the devices whose folders were not given."""
    every = max(one.devices for one in found)
    return sorted(set(range(every)) - {one.number for one in found})


def repair(folders: Sequence[Path]) -> tuple[int, list[str]]:
    """Bring all devices to the newest step that is whole everywhere; give it and what was done.

    Raises:
        UserError: A device's folder is not among them: it might not be able to go where they go.
        Corrupt: No step is whole everywhere; what is damaged is named, nothing is changed.
    """
    found = inspect(folders, previous=True)
    if absent := missing(found):
        raise UserError(
            f"the state has {found[0].devices} devices, number {absent[0]} is not among these "
            "folders: give all of them"
        )
    step = consistent(found)
    candidates = [step]
    if all(one.previous_step == step - 1 and one.step == step for one in found):
        candidates.append(step - 1)
    for candidate in candidates:
        if all(_whole_at(one, candidate) for one in found):
            done = []
            for folder, one in zip(folders, found, strict=True):
                if one.step != candidate:
                    _core.State(folder, readonly=False).rollback()
                    done.append(f"{folder}: back from step {one.step} to {candidate}")
            return candidate, done
    bad = next(one for one in found if not _whole_at(one, step))
    faults = bad.faults if bad.step == step else bad.previous_faults or []
    first = faults[0]
    raise Corrupt(
        f"{bad.folder}: {len(faults)} damaged arrays at step {step}, the first the "
        f"{first['array']} of tile {first['tile']} ({', '.join(first['parameters'][:3])}); no "
        "earlier step is whole: restore the folder from a copy, or load a checkpoint"
    )


def _whole_at(one: Finding, step: int) -> bool:
    if one.step == step:
        return not one.faults
    return one.previous_step == step and not one.previous_faults
