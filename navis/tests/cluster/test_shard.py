"""A shard without Ray: its answers, its lock, its folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError

import navis
from navis.cluster import manifest
from navis.cluster.routing import shard_of
from navis.cluster.shard import Shard

EXPECTED = (4, "l2", "float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cluster's folder with shard 1 of 2 in it, closed."""
    numbers = np.arange(40, dtype=np.uint64)
    mine = numbers[shard_of(numbers, 2) == 1]
    shard = Shard(tmp_path, "name", 1, 2)
    vectors = np.outer(mine, np.ones(4)).astype(np.float32)
    assert shard.call("build", vectors, mine, None, None, {}) == (None, None)
    assert shard.call("close") == (None, None)
    return tmp_path


def opened(folder: Path, **options: Any) -> Shard:
    shard = Shard(folder, "name", 1, 2)
    assert shard.call("open", EXPECTED, options, 0.0) == (None, None)
    return shard


def test_it_gives_fewer_where_it_has_fewer(folder: Path) -> None:
    shard = opened(folder)
    query = np.zeros((2, 4), np.float32)
    ids, distances, there = shard.search(query, 1000, 1000, {})
    assert ids.shape == distances.shape == (2, there)
    assert shard.delete(shard.ids()) == there
    ids, distances, there = shard.search(query, 10, 40, {})
    assert ids.shape == distances.shape == (2, 0)
    assert there == 0
    shard.close()


def test_errors_come_as_their_kind_and_line(folder: Path) -> None:
    shard = opened(folder)
    kind, line = shard.call("get", [10**6])
    assert kind is UserError
    assert "1000000" in line
    kind, line = Shard(folder, "name", 1, 2).call("open", (5, "l2", "float32"), {}, 0.0)
    assert kind is UserError
    shard.close()
    kind, line = Shard(folder, "name", 1, 2).call("open", (5, "l2", "float32"), {}, 0.0)
    assert (kind, "its cluster (5, 'l2', 'float32')" in line) == (UserError, True)


def test_a_lock_that_is_held_is_waited_for_so_long_and_no_longer(folder: Path) -> None:
    holder = navis.Index.open(manifest.folder_of(folder, 1) / manifest.INDEX)
    kind, line = Shard(folder, "name", 1, 2).call("open", EXPECTED, {}, 0.1)
    assert kind is UserError
    assert line.endswith("waited 0.1 s for it")
    dies = threading.Timer(0.3, holder.close)
    dies.start()
    shard = Shard(folder, "name", 1, 2)
    assert shard.call("open", EXPECTED, {}, 60.0) == (None, None)
    dies.join()
    shard.close()


def test_an_id_that_belongs_elsewhere_is_a_fault(folder: Path) -> None:
    shard = opened(folder)
    assert shard.verify()["faults"] == []
    stray = next(i for i in range(100) if shard_of(i, 2)[0] == 0)
    shard.index.insert([stray], np.ones((1, 4)))
    assert shard.verify()["faults"] == [f"1 ids belong on other shards, {stray} for one"]
    shard.close()


def test_a_copy_leaves_alone_what_it_did_not_make(folder: Path, tmp_path: Path) -> None:
    shard = opened(folder)
    target = tmp_path / "copy"
    theirs = manifest.folder_of(target, 1)
    theirs.mkdir(parents=True)
    assert shard.call("snapshot", target)[0] is UserError
    shard.discard_snapshot(target)
    assert theirs.exists()
    theirs.rmdir()
    shard.snapshot(target)
    manifest.check_shard(theirs, "name", 1)
    shard.discard_snapshot(target)
    assert not theirs.exists()
    shard.close()
