"""What experiments share is made once, named by all that determines it, and copied."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError
from shorthaul.experiments import Context
from shorthaul.records import Run

from navis import Index
from navis.experiments import _store
from navis.experiments._measure import RawReads
from navis.experiments._store import Store, recall_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    run = Run.create("navis", "x", config={}, seed=3, scale="smoke", root=tmp_path / "runs")
    (run.path / "work").mkdir()
    return Store(Context("smoke", {}, 3, run, run.path / "work"))


def test_sets_are_of_the_seed_and_ids_are_rows(store: Store) -> None:
    of = store.set("S24", 200, 50, 10)
    assert (of.dim, len(of.base), len(of.more), len(of.queries)) == (24, 200, 50, 10)
    assert np.array_equal(of.rows(190, 210), np.concatenate([of.base[190:], of.more[:10]]))
    again = store.set("S24", 200, 50, 10)
    assert np.array_equal(of.base, again.base)
    assert of.raw_bytes == 200 * 24 * 4
    late = store.set("D24", 200, 50, 10)
    assert late.parts == {"early": (0, 200), "late": (200, 250)}
    assert len(late.queries) == 20


@pytest.mark.parametrize("name", ["X24", "S", "Sx"])
def test_unknown_sets_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="S128"):
        store.set(name, 10)


def test_truth_and_index_agree_and_are_made_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = store.set("S24", 300, 0, 10)
    truth = store.truth(of, 300)
    folder = store.index(of, layout="selective")
    with Index.open(folder, readonly=True) as index:
        assert recall_of(index.search(of.queries, 10, L=100)[0], truth) > 0.95

    def never(*a: Any, **k: Any) -> None:
        raise AssertionError("built a second time")

    monkeypatch.setattr(Index, "build", never)
    assert store.index(of, layout="selective") == folder
    with pytest.raises(AssertionError):
        store.index(of, layout="packed")


def test_a_failed_make_leaves_nothing_that_counts(store: Store) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError

    def works(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "whole").write_text("")

    with pytest.raises(RuntimeError):
        store.made("thing", {"a": 1}, fails)
    assert (store.made("thing", {"a": 1}, works) / "whole").exists()


def test_copies_are_separate_and_go(store: Store) -> None:
    of = store.set("S24", 300, 20, 10)
    base = store.index(of, layout="selective")
    with store.copy(base) as copy:
        with Index.open(copy) as index:
            index.insert(np.arange(300, 320), of.rows(300, 320))
        assert copy.exists()
    assert not copy.exists()
    with Index.open(base, readonly=True) as index:
        assert len(index) == 300


def test_the_folder_is_bounded_but_keeps_what_was_just_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "_BOUND", 150)

    def make(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(100))

    old = store.made("thing", {"a": 1}, make)
    new = store.made("thing", {"a": 2}, make)
    assert old.exists()
    assert new.exists()
    os.utime(old, (0, 0))
    store.made("thing", {"a": 3}, make)
    assert not old.exists()
    assert new.exists()


def test_raw_reads_are_measured_beside(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    with RawReads(file) as raw:
        time.sleep(0.3)
    assert raw.reads > 0
    assert 0 < raw.p50_ms <= raw.p99_ms <= raw.worst_ms
