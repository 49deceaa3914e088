"""Damaged sectors: harmless where nothing is kept there, noticed everywhere else, never hidden."""

from __future__ import annotations

import collections
import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError
from small import LAYOUTS, Fresh

import navis
from navis.errors import Corrupt
from navis.experiments._crash import Matrix, Model

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SECTOR, PAGE = 512, 4096
FILES = {
    "selective": ("edges.dat", "vectors.dat", "state.nav", "wal", "LOCK"),
    "packed": ("records.dat", "state.nav", "wal", "LOCK"),
}


@dataclasses.dataclass
class Sound:
    """An index with pages, free pages and a log; and what it answers."""

    closed: Path  # in good order
    killed: Path  # as a kill left it: no closing mark, zeros behind the log
    model: Model
    queries: Matrix
    ids: Any
    distances: Any


@pytest.fixture(scope="module")
def made() -> dict[str, Sound]:
    return {}


@pytest.fixture
def sound(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    fresh: Fresh,
    queries: Matrix,
    made: dict[str, Sound],
) -> Sound:
    layout: str = request.param
    if layout not in made:
        made[layout] = make_sound(tmp_path_factory.mktemp(layout), layout, fresh, queries)
    return made[layout]


def make_sound(folder: Path, layout: str, fresh: Fresh, queries: Matrix) -> Sound:
    model = fresh(folder / "closed", layout)
    draw = random.Random(layout)
    with navis.Index.open(folder / "closed", pending_bytes=1) as index:
        for part in range(3):
            (steps,) = model.streams(draw, threads=1, steps=100)
            for step in steps:
                if step.kind == "delete":
                    index.delete(step.ids)
                else:
                    index.insert(step.ids, model.vectors[list(step.rows)])
            assert not model.settle(index, [steps], [len(steps)]).lost
            if part < 2:
                index.checkpoint()
        index.flush()
        shutil.copytree(folder / "closed", folder / "killed")
        ids, distances = index.search(queries[:60], 10)
    return Sound(folder / "closed", folder / "killed", model, queries[:60], ids, distances)


def flip(data: bytearray, at: int, draw: random.Random) -> None:
    data[at + draw.randrange(min(SECTOR, len(data) - at))] ^= 1 << draw.randrange(8)


def zero(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + SECTOR] = bytes(len(data[at : at + SECTOR]))


def noise(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + SECTOR] = draw.randbytes(len(data[at : at + SECTOR]))


def misdirect(data: bytearray, at: int, draw: random.Random) -> None:
    """A page of the file written over another; where there is but one, a flip."""
    if len(data) < 2 * PAGE:
        return flip(data, at, draw)
    to = draw.randrange(len(data) // PAGE) * PAGE
    at = at // PAGE * PAGE
    data[to : to + PAGE] = data[at : at + PAGE]


def truncate(data: bytearray, at: int, draw: random.Random) -> None:
    del data[at:]


def extend(data: bytearray, at: int, draw: random.Random) -> None:
    data.extend(draw.randbytes(SECTOR))


DAMAGES: list[Callable[[bytearray, int, random.Random], None]] = [
    *(flip, flip, zero, noise, misdirect, truncate, flip, noise, extend)
]


def damaged(
    source: Path, into: Path, name: str, trial: int, draw: random.Random
) -> tuple[Path, str]:
    """A copy with one damage, in a file of this name or of this folder's; says which."""
    shutil.copytree(source, into)
    path = into / name
    if path.is_dir():
        path = draw.choice(sorted(path.iterdir()))
    before = path.read_bytes()
    damage = DAMAGES[trial % len(DAMAGES)]
    while True:
        data = bytearray(before)
        damage(data, draw.randrange(-(-len(data) // SECTOR)) * SECTOR, draw)
        if data != before:
            break
    path.write_bytes(data)
    return path, damage.__name__


def named(path: Path, error: Exception) -> bool:
    """The error names the file; a log that was cut is named by its folder."""
    assert str(path) in str(error) or f"{path.parent}: the log ends" in str(error), error
    return True


def outcome(folder: Path, path: Path, sound: Sound) -> tuple[str, int]:
    """What an open, a verification and searches make of it; and the bytes dropped from the log."""
    try:
        index = navis.Index.open(folder, io="posix")
    except Corrupt as error:
        named(path, error)
        return "refused", 0
    with index:
        faults = index.verify()["faults"]
        assert all(str(path) in fault for fault in faults), faults
        dropped = int(index.stats()["dropped_wal_bytes"])
        noticed, differs = bool(faults), False
        for at, query in enumerate(sound.queries):
            try:
                ids, distances = index.search(query, 10)
            except Corrupt as error:
                noticed = named(path, error)
                continue
            same = np.array_equal(ids, sound.ids[at])
            differs = differs or not (same and np.array_equal(distances, sound.distances[at]))
        for number, row in sound.model.rows.items():
            try:
                same = np.array_equal(index.get(number)[0], sound.model.vectors[row])
            except Corrupt as error:
                noticed = named(path, error)
            except UserError:  # not there: the log's end is gone
                differs = True
            else:
                differs = differs or not same
    if not faults and not noticed and not differs:
        return "harmless", dropped
    return ("noticed" if not differs else "differs"), dropped


ALL = [(layout, name) for layout in LAYOUTS for name in FILES[layout]]


@pytest.mark.parametrize(("sound", "name"), ALL, indirect=["sound"])
def test_damage_is_noticed_or_harmless(tmp_path: Path, sound: Sound, name: str) -> None:
    seen: collections.Counter[str] = collections.Counter()
    draw = random.Random(name)
    for trial in range(2 * len(DAMAGES)):
        copy = tmp_path / "copy"
        path, damage = damaged(sound.closed, copy, name, trial, draw)
        result, dropped = outcome(copy, path, sound)
        seen[f"{damage} {result}"] += 1
        assert result != "differs", f"{damage} of {path}"
        assert dropped == 0 or (name == "wal" and damage == "extend")
        if name == "wal":  # what lies behind a closing mark is nobody's
            assert result in ("refused", "harmless"), damage
        if name == "state.nav" and damage != "extend":
            assert result == "refused", damage
        shutil.rmtree(copy)
    refused = sum(count for what, count in seen.items() if what.endswith("refused"))
    assert name != "wal" or refused > len(DAMAGES)
    print(f"\n{name}: {dict(seen)}")


@pytest.mark.parametrize("sound", LAYOUTS, indirect=True)
def test_a_log_that_a_kill_left_loses_no_more_than_its_end(tmp_path: Path, sound: Sound) -> None:
    """Its last record may be taken for a torn one; then the bytes are counted."""
    seen: collections.Counter[str] = collections.Counter()
    draw = random.Random(0)
    for trial in range(3 * len(DAMAGES)):
        copy = tmp_path / "copy"
        path, damage = damaged(sound.killed, copy, "wal", trial, draw)
        result, dropped = outcome(copy, path, sound)
        seen[f"{damage} {result}" + (", counted" if dropped else "")] += 1
        if damage != "truncate":  # that is a log that had not got further
            assert result != "differs" or dropped, f"{damage} of {path}"
        shutil.rmtree(copy)
    print(f"\n{dict(seen)}")


@pytest.mark.parametrize(("sound", "name"), ALL, indirect=["sound"])
def test_a_missing_file_is_named(tmp_path: Path, sound: Sound, name: str) -> None:
    shutil.copytree(sound.closed, tmp_path / "copy")
    path = tmp_path / "copy" / name
    if path.is_dir():
        max(path.iterdir()).unlink()
    else:
        path.unlink()
    for readonly in (True, False):
        if name == "LOCK":  # holds nothing that is needed
            with navis.Index.open(tmp_path / "copy", readonly=readonly) as index:
                assert sound.model.faults(index) == []
        else:
            with pytest.raises((Corrupt, UserError), match=path.name):
                navis.Index.open(tmp_path / "copy", readonly=readonly)


@pytest.mark.parametrize("sound", LAYOUTS, indirect=True)
def test_what_an_unfinished_checkpoint_left_is_not_looked_at(tmp_path: Path, sound: Sound) -> None:
    shutil.copytree(sound.killed, tmp_path / "copy")
    (tmp_path / "copy" / "state.nav.partial").write_bytes(random.Random(0).randbytes(9000))
    with navis.Index.open(tmp_path / "copy") as index:
        assert sound.model.faults(index) == []
        index.checkpoint()
        assert sound.model.faults(index) == []


def spoil(path: Path, draw: random.Random, sectors: int) -> None:
    """Some sectors of a file become noise."""
    data = bytearray(path.read_bytes())
    for at in draw.sample(range(len(data) // SECTOR), sectors):
        noise(data, at * SECTOR, draw)
    path.write_bytes(data)


@pytest.mark.parametrize(("sound", "name"), [("selective", "edges.dat"), ("packed", "records.dat"),
                                             ("selective", "vectors.dat")],
                         indirect=["sound"])  # fmt: skip
@pytest.mark.parametrize("opened", ["before", "after"])
def test_repair_makes_it_whole(tmp_path: Path, sound: Sound, name: str, opened: str) -> None:
    """Lists are made anew; vectors that are gone are named, and can be inserted again.

    Opened before the damage, the index has lists in its cache and makes the damaged ones from them.
    """
    shutil.copytree(sound.closed, tmp_path / "ix")
    path, draw, model = tmp_path / "ix" / name, random.Random(f"{name} {opened}"), sound.model
    sectors = 60 if name == "edges.dat" else 24  # of which many hold what has moved away
    with navis.Index.open(tmp_path / "ix") as index:
        index.checkpoint()  # in the packed layout a log may need the records it changes
        before = model.recall(index, sound.queries)
        if opened == "before":
            spoil(path, draw, sectors)
    if opened == "after":
        spoil(path, draw, sectors)
    with navis.Index.open(tmp_path / "ix") as index:
        faults = index.verify()["faults"]
        assert faults
        assert all(str(path) in fault for fault in faults)
        report = index.repair()
        lost = report["lost"]
        if name == "edges.dat":
            assert report["lists"] > 0
            assert lost == []
        else:
            assert lost
            index.delete(lost)
            index.compact()  # in the packed layout edges still lead to the damaged records
            index.insert(lost, model.vectors[[model.rows[i] for i in lost]])
        assert model.faults(index) == []
        print(f"\n{len(faults)} faults, {report['lists']} lists anew, {len(lost)} vectors lost")
    with navis.Index.open(tmp_path / "ix") as index:
        assert model.faults(index) == []
        assert model.own_nearest(index) > 0.99
        after = model.recall(index, sound.queries)
        print(f"recall@10 {before:.4f} before, {after:.4f} after")
        assert after > before - 0.02
