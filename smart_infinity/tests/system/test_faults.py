"""Disks that fail: the step before stays, the device is named, and nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from shorthaul.errors import EnvironmentLack, ShorthaulError

from smart_infinity.experiments import _faults, _kill


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return _faults.library(tmp_path_factory.mktemp("faults"))
    except EnvironmentLack as error:
        pytest.skip(str(error))


def spoil(name: str, library: Path, folders: list[Path], tmp_path: Path) -> None:
    """Two steps that are durable, then two with the fault."""
    fault = _faults.FAULTS[name]
    spoiler = _faults.Spoiler(library, fault, folders[0] / "state.smart", tmp_path / "trigger")
    try:
        with spoiler.armed(), _kill.started(folders) as (optimizer, params):
            _kill.train(optimizer, params, 2)
            spoiler.begin()
            _kill.train(optimizer, params, 2)
    finally:
        assert spoiler.spoiled > 0


# A write fails when the parameters are with the host and the link's slot is free again: the step
# once waited for ever then.
@pytest.mark.system
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("a write fails: EIO", 2),
        ("a write finds no space: ENOSPC", 2),
        ("a later read fails: EIO", 2),
        ("the sync of commit fails: EIO", 3),  # its page was written: it may count
    ],
)
def test_a_disk_that_fails_is_named_and_the_step_before_stays(
    name: str, step: int, library: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    folders = _kill.folders(tmp_path, "run")
    code = _faults.FAULTS[name].code
    with pytest.raises(ShorthaulError, match=os.strerror(code)) as caught:
        spoil(name, library, folders, tmp_path)
    assert str(folders[0]) in str(caught.value)
    assert "\n" not in str(caught.value)
    left = _kill.look(folders, _kill.Reference())
    assert (left.faults, left.step, left.differs) == (0, step, 0)


@pytest.mark.system
def test_short_reads_change_nothing(library: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folders = _kill.folders(tmp_path, "run")
    spoil("every read is short", library, folders, tmp_path)
    assert _kill.look(folders, _kill.Reference()) == _kill.Left((4, 4), 0, 4, 0)
