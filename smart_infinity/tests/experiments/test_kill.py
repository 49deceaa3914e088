"""What is counted against a run that was killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from smart_infinity.experiments import _kill
from smart_infinity.experiments._kill import Left, Tally


@pytest.mark.parametrize(
    ("left", "durable", "returned", "wrong"),
    [
        (Left((4, 4), 0, 4, 0), 3, 4, ()),
        (Left((4, 3), 0, 3, 0), 3, 4, ()),  # the newest step may be lost
        (Left((4, 3), 0, 3, 0), 4, 4, ("lost",)),  # not one that was durable
        (Left((3, 3), 0, 3, 0), 3, 5, ("lost",)),  # nor two
        (Left((5, 3), 0, 3, 0), 3, 4, ("mixed",)),
        (Left((4, 4), 1, 4, 0), 3, 4, ("mixed",)),
        (Left((4, 4), 0, 4, 7), 3, 4, ("mixed",)),
    ],
)
def test_what_must_not_happen_is_counted(
    left: Left, durable: int, returned: int, wrong: tuple[str, ...]
) -> None:
    tally = Tally()
    tally.see(left, durable=durable, returned=returned)
    expected = {name: int(name in wrong) for name in ("mixed", "lost", "differs", "unnamed")}
    assert vars(tally) == expected


def test_a_single_bit_is_seen(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    reference = _kill.Reference()
    folders = _kill.folders(tmp_path, "run")
    with _kill.started(folders) as (optimizer, params):
        _kill.train(optimizer, params, 2)
    assert _kill.look(folders, reference) == Left((2, 2), 0, 2, 0)
    for array in range(3):  # of the parameter, the mean and the variance
        bits = reference[2][3 + array].view(torch.int32)
        bits[11] ^= 1
        assert _kill.look(folders, reference).differs == 1
        bits[11] ^= 1


@pytest.mark.system
def test_a_device_that_is_killed_is_named(tmp_path: Path) -> None:
    folders = _kill.folders(tmp_path, "run")
    killed = _kill.run_and_kill(folders, random.Random(0), 1)
    assert killed.victim == str(folders[1])
    assert killed.named, killed.said
    assert killed.returned == killed.durable + 1
