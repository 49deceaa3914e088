"""Damages a state on disk, sector by sector, and asks whether anybody notices.

A damage may be refused, mended by going back a step, or of no consequence; what it must not be is
taken for what was written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import ShorthaulError, UserError

from smart_infinity import _core, keep
from smart_infinity.errors import Corrupt

PAGE, SECTOR = 4096, 512
HOWS = ("one bit flipped", "a sector of zeros", "a sector of noise", "a sector as it was before")


@dataclass(frozen=True)
class Region:
    """A stretch of a state file by what it holds; docs/format.md has the order."""

    name: str
    begin: int
    length: int


@dataclass(frozen=True)
class Content:
    """What a state says: step, description, note, and every array of every tile."""

    step: int
    description: str
    note: bytes
    arrays: tuple[bytes, ...]


def content(folder: Path) -> Content:
    """Read the committed step past all checks of its arrays."""
    state, raw = _core.State(folder), (folder / "state.smart").read_bytes()
    arrays = []
    for tile, elements in enumerate(state.shape["elements"].tolist()):
        for array in range(state.shape["arrays"]):
            at = state.offset(tile, state.extent(tile), array)
            arrays.append(raw[at : at + 4 * elements])
    return Content(state.step, state.description, bytes(state.note), tuple(arrays))


def regions(folder: Path, note_bytes: int) -> list[Region]:
    """List where everything of a state of float32 moments lies; two tiles stand for all.

    `note_bytes` is the room it has for notes, as it was made with.
    """
    state = _core.State(folder)
    elements = state.shape["elements"].tolist()
    found = [Region("header", 0, 64)]
    found += [Region(f"head of slot {slot}", PAGE * (1 + slot), 48) for slot in (0, 1)]
    at = 3 * PAGE
    body = 4 * len(elements) + len(state.description.encode())
    found.append(Region("body", at, body))
    at += _pages(body)
    for slot in (0, 1):
        found.append(Region(f"table {slot}", at, 16 * len(elements)))
        at += _pages(16 * len(elements))
        found.append(Region(f"note {slot}", at, len(state.note)))
        at += _pages(note_bytes)
    if at != state.offset(0, 0, 0):
        raise UserError(f"{folder}: extent 0 begins at {state.offset(0, 0, 0)}, not at {at}")
    for tile in sorted({0, len(elements) - 1}):
        for array, name in enumerate(("parameters", "first moments", "second moments")):
            for age, extent in (("", state.extent(tile)), (" before", 1 - state.extent(tile))):
                begin = state.offset(tile, extent, array)
                found.append(Region(f"{name} of tile {tile}{age}", begin, 4 * elements[tile]))
    return found


def _pages(count: int) -> int:
    return -(-count // PAGE) * PAGE


def damaged(
    whole: bytes, before: bytes, region: Region, rng: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    """Give the file damaged in a region, in each way; `before` is the file a step earlier."""
    at = region.begin + int(rng.integers(region.length))
    sector = at // SECTOR * SECTOR
    begin, end = max(sector, region.begin), min(sector + SECTOR, region.begin + region.length)
    for how in HOWS:
        made = bytearray(whole)
        if how == "one bit flipped":
            made[at] ^= 1 << int(rng.integers(8))
        elif how == "a sector of zeros":
            made[begin:end] = bytes(end - begin)
        elif how == "a sector of noise":
            made[begin:end] = rng.integers(0, 256, end - begin, np.uint8).tobytes()
        else:
            made[begin:end] = before[begin:end]
        yield how, bytes(made)


def judge(folders: Sequence[Path], truth: Sequence[dict[int, Content]]) -> tuple[str, bool]:
    """Tell what becomes of damaged devices, and whether that is safe.

    They are inspected and repaired, as `smart-infinity repair` would; whatever step comes out must
    be, byte for byte, what `truth` holds of that step, of each device.

    Returns:
        A word or two for a matrix; False where damaged data would be taken for good.
    """
    try:
        found = keep.inspect(folders, previous=True)
    except ShorthaulError:
        return "refused", True
    faults = sum(len(one.faults) for one in found)
    steps = {one.step for one in found}
    try:
        step, _ = keep.repair(folders)
    except (Corrupt, UserError):
        return "found, no whole step", True
    held = [content(folder) for folder in folders]
    if any(one != known.get(step) for one, known in zip(held, truth, strict=True)):
        return f"taken for step {step}", False
    if faults:
        return f"found, back at step {step}", True
    if len(steps) > 1 or step not in steps:
        return f"back at step {step}", True
    return f"step {step} stands", True


def truth_of(folder: Path, scratch: Path) -> dict[int, Content]:
    """Give the content of the committed step, and of the one before."""
    now = content(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch)
    _core.State(scratch, readonly=False).rollback()
    before = content(scratch)
    shutil.rmtree(scratch)
    return {now.step: now, before.step: before}


def restore(folders: Sequence[Path], files: Sequence[bytes]) -> None:
    """Put files back as they were."""
    for folder, data in zip(folders, files, strict=True):
        (folder / "state.smart").write_bytes(data)


def as_rows(matrix: dict[str, dict[str, str]]) -> list[list[Any]]:
    """Give a matrix as rows: what was damaged, what came of each way, and of a resume."""
    columns = (*HOWS, "resumed")
    return [[region, *(ways.get(how, "") for how in columns)] for region, ways in matrix.items()]
