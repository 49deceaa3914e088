"""Damages are where they say, and what is taken for good is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from smart_infinity.experiments import _damage, _kill
from smart_infinity.experiments._damage import HOWS, Region


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A device's folder after two steps, and its room for notes."""
    folder = tmp_path_factory.mktemp("damage") / "a"
    with _kill.started([folder]) as (optimizer, params):
        _kill.train(optimizer, params, 2)
        note_bytes = optimizer.array.state.note_bytes
    return folder, note_bytes


def test_damage_stays_in_its_region() -> None:
    rng = np.random.default_rng(0)
    whole, before = bytes(range(256)) * 16, bytes(4096)
    made = dict(_damage.damaged(whole, before, Region("x", 1000, 100), rng))
    assert tuple(made) == HOWS
    for data in made.values():
        assert len(data) == len(whole)
        assert data != whole
        assert data[:1000] == whole[:1000]
        assert data[1100:] == whole[1100:]
    flipped = bytes(a ^ b for a, b in zip(made[HOWS[0]], whole, strict=True))
    assert sum(byte.bit_count() for byte in flipped) == 1


def test_regions_are_all_there_is(state: tuple[Path, int]) -> None:
    regions = _damage.regions(*state)
    spans = sorted((one.begin, one.begin + one.length) for one in regions)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert {one.name for one in regions} >= {"header", "body", "table 0", "note 1"}
    assert sum("moments of tile" in one.name for one in regions) == 8


def test_judging(state: tuple[Path, int], tmp_path: Path) -> None:
    folder, note_bytes = state
    whole = (folder / "state.smart").read_bytes()
    truth = [_damage.truth_of(folder, tmp_path / "scratch")]
    assert sorted(truth[0]) == [1, 2]
    assert _damage.judge([folder], truth) == ("step 2 stands", True)
    # Bytes that are not what was written, had the sums not told: that must not pass for safe.
    other = replace(truth[0][2], arrays=(b"other", *truth[0][2].arrays[1:]))
    assert _damage.judge([folder], [{**truth[0], 2: other}]) == ("taken for step 2", False)
    for region in _damage.regions(folder, note_bytes):
        if region.name not in ("header", "parameters of tile 0"):
            continue
        data = bytearray(whole)
        data[region.begin + 9] ^= 4
        (folder / "state.smart").write_bytes(bytes(data))
        said, safe = _damage.judge([folder], truth)
        assert safe
        expected = {"header": "refused", "parameters of tile 0": "found, back at step 1"}
        assert said == expected[region.name]
        _damage.restore([folder], [whole])
