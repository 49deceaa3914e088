"""Damage on disk is found, named and, where a step back is whole, mended."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from shorthaul.errors import UserError
from smart_testing import differing_bits, gradients, set_gradients, tensors

from smart_infinity import SmartOptimizer, _core, keep
from smart_infinity.errors import Corrupt

SIZES = (700, 3000)


def steps(folders: list[Path], which: range) -> list[Any]:
    params = tensors(SIZES)
    with SmartOptimizer(params, devices=folders, tile=1024, lr=1e-2) as optimizer:
        for step in which:
            set_gradients(params, gradients(params, step))
            optimizer.step()
    return params


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "a", tmp_path / "b"]
    steps(made, range(3))
    return made


def flip(folder: Path, tile: int, array: int, *, previous: bool = False) -> None:
    """Flip one bit of a tile's array, of the committed step or the one before."""
    state = _core.State(folder)
    extent = state.extent(tile) ^ previous
    at = state.offset(tile, extent, array) + 100
    with (folder / "state.smart").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_a_whole_state_is_said_to_be_whole(folders: list[Path]) -> None:
    found = keep.inspect(folders, previous=True)
    assert [one.step for one in found] == [3, 3]
    assert [one.previous_step for one in found] == [2, 2]
    assert all(one.clean and one.previous_faults == [] for one in found)
    assert keep.repair(folders) == (3, [])


@pytest.mark.parametrize("array", [0, 1, 2])
def test_a_flipped_bit_is_found_named_and_gone_back_from(folders: list[Path], array: int) -> None:
    flip(folders[1], 0, array)
    found = keep.inspect(folders)
    assert found[0].clean
    (fault,) = found[1].faults
    assert fault["array"] == ("parameters", "first moments", "second moments")[array]
    assert fault["parameters"] == ["1"]
    step, done = keep.repair(folders)
    assert step == 2
    assert len(done) == 2
    again = steps(folders, range(2, 3))
    other = [folder.with_name(folder.name + "-other") for folder in folders]
    assert differing_bits(again, steps(other, range(3))) == 0


def test_a_step_meets_damage_and_says_so(folders: list[Path]) -> None:
    params = tensors(SIZES)
    with SmartOptimizer(params, devices=folders, lr=1e-2) as optimizer:
        flip(folders[0], 0, 2)
        before = [param.detach().clone() for param in params]
        set_gradients(params, gradients(params, 3))
        with pytest.raises(Corrupt, match=r"second moments in .*a/state.smart are damaged"):
            optimizer.step()
        assert differing_bits(before, params) == 0


def test_damage_in_both_steps_is_not_mended(folders: list[Path]) -> None:
    flip(folders[0], 0, 0)
    flip(folders[0], 1, 0, previous=True)
    with pytest.raises(Corrupt, match="no earlier step is whole"):
        keep.repair(folders)
    assert [one.step for one in keep.inspect(folders)] == [3, 3]


def test_any_flipped_byte_is_found_or_harmless(folders: list[Path]) -> None:
    rng = random.Random(0)
    file = folders[0] / "state.smart"
    whole = file.read_bytes()
    state = _core.State(folders[0])
    said, step = state.description, state.step
    # Everything before the extents, and some places within.
    begin = state.offset(0, 0, 0)
    places = [*range(0, 64), *range(4096, 4144), *range(8192, 8240)]
    places += [rng.randrange(3 * 4096, begin) for _ in range(200)]
    places += [rng.randrange(begin, len(whole)) for _ in range(60)]
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            found = _core.State(folders[0])
        except (UserError, Corrupt):
            continue
        # It opened: as it was, or a step back, and the right bytes or a fault.
        assert found.description == said
        assert found.step in (step, step - 1)
        if found.step == step and not found.verify():
            assert found.note == b'{"steps":3,"extra":{}}'
    file.write_bytes(whole)
    assert keep.inspect(folders)[0].clean


def test_truncated_foreign_and_newer_files_are_named(folders: list[Path], tmp_path: Path) -> None:
    file = folders[0] / "state.smart"
    whole = file.read_bytes()
    for data, said in (
        (b"", "cut off"), (whole[:5000], "cut off"), (whole[:-4096], "length is damaged"),
        (b"\0" * 20000, "not a state"), (whole[:8] + b"\x02\0\0\0" + whole[12:], "version 2"),
    ):  # fmt: skip
        file.write_bytes(data)
        with pytest.raises((UserError, Corrupt), match=said):
            SmartOptimizer(tensors(SIZES), devices=folders)
    with pytest.raises(UserError, match="holds no state"):
        keep.inspect([tmp_path])


def test_folders_that_are_not_all_or_twice_the_same_are_named(folders: list[Path]) -> None:
    with pytest.raises(UserError, match="all of them"):
        keep.inspect([])
    with pytest.raises(UserError, match="which was given already"):
        keep.inspect([folders[0], folders[0]])
    assert keep.missing(keep.inspect(folders[1:])) == [0]
    with pytest.raises(UserError, match="has 2 devices, number 1 is not among these"):
        keep.repair(folders[:1])
