"""Silence ends a run, by name; a run that ends well is not silence. Two real ranks."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from shorthaul.launch import RankDied

from pipe_bd.runtime.watchdog import Watchdog, _end
from pipe_bd.runtime.world import join

ROLES = ["stage 0: a to b", "stage 1: c to d", "idle"]


def _watch() -> dict[str, Any]:
    world = join("cpu")
    ended: list[tuple[int, str, str]] = []
    first = Watchdog(world, ROLES, 2.0, lambda *why: ended.append(why))
    time.sleep(3.5)  # longer than the deadline: computing is not silence
    first.close()
    quiet = list(ended)
    second = Watchdog(world, ROLES, 2.0, lambda *why: ended.append(why))
    if world.rank == 1:
        second.abandon()
    else:
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            time.sleep(0.1)
    dist.barrier()
    return {"quiet": quiet, "ended": ended}


def test_a_silent_rank_is_named_and_a_busy_one_is_left_alone(ranks: Any) -> None:
    found = ranks(_watch, 3)
    assert found["quiet"] == []
    assert found["ended"] == [(1, "stage 1: c to d", "no sign of life for 2 s")]


def _lose_the_store() -> None:
    world = join("cpu")
    watchdog = Watchdog(world, ROLES, 60.0)
    if world.rank == 0:
        watchdog.abandon()
        del watchdog._store  # as if rank 0's machine were gone
        time.sleep(60)
    time.sleep(60)


def test_ranks_of_another_machine_notice_that_rank_0_is_gone(ranks: Any) -> None:
    with pytest.raises(RankDied, match=r"rank 0 failed: Lost: its connection closed \(stage 0"):
        ranks(_lose_the_store, 2)


def test_what_a_rank_said_itself_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTHAUL_ERROR_DIR", str(tmp_path))
    monkeypatch.setattr(os, "_exit", lambda code: None)
    (tmp_path / "rank0.json").write_text("its own words")
    for rank in (0, 1):
        _end(rank, "stage", "its connection closed")
    assert (tmp_path / "rank0.json").read_text() == "its own words"
    assert "its connection closed" in (tmp_path / "rank1.json").read_text()
