"""SIGKILL at any moment: what was acknowledged is there when the index is opened again.

A few rounds each; the experiment `crash` makes thirty of a larger index, and compares recall.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from small import BUILT, LAYOUTS, Fresh

import navis
from navis.experiments._crash import Matrix, Model
from navis.experiments._kill import Round, Rounds

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# A list of pending changes holds 64 at least; the log is a few hundred inserts between checkpoints.
SMALL: dict[str, Any] = {"pending_bytes": 1, "checkpoint_bytes": 300_000}


def check(found: Round) -> None:
    print(found)
    assert found.settled.lost == []
    assert found.settled.strays == []
    assert found.faults == []
    assert found.own_nearest > 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kills_in_mid_insert(
    tmp_path: Path, vectors_file: Path, fresh: Fresh, queries: Matrix, layout: str
) -> None:
    fresh(tmp_path / "never", layout)
    model = fresh(tmp_path / "ix", layout)
    rounds = Rounds(tmp_path, tmp_path / "ix", vectors_file, model, SMALL, random.Random(layout))
    for _ in range(3):
        check(rounds.kill_in("insert", 200))
    killed, in_peace = rounds.compare(tmp_path / "never", queries)
    print(f"recall@10 {killed:.4f}, never killed {in_peace:.4f}")
    assert killed > in_peace - 0.015  # two graphs of 2,000 vectors differ by some of it


@pytest.mark.parametrize(
    ("layout", "kind"),
    [*((layout, kind) for layout in LAYOUTS for kind in ("checkpoint", "compact")),
     pytest.param("selective", "retrain", marks=pytest.mark.slow)],
)  # fmt: skip
def test_kills_in_mid_maintenance(
    tmp_path: Path, vectors_file: Path, fresh: Fresh, layout: str, kind: str
) -> None:
    model = fresh(tmp_path / "ix", layout)
    draw = random.Random(f"{layout} {kind}")
    rounds = Rounds(tmp_path, tmp_path / "ix", vectors_file, model, SMALL, draw)
    while sum(done.struck for done in rounds.done) < 2:
        assert len(rounds.done) < 30, "no kill struck"
        check(rounds.kill_in(kind, 200))


def test_a_readonly_index_is_as_good_as_any(
    tmp_path: Path, vectors_file: Path, fresh: Fresh
) -> None:
    """Who may only read recovers in memory, and leaves the folder to the next who writes."""
    model = fresh(tmp_path / "ix", "selective")
    rounds = Rounds(tmp_path, tmp_path / "ix", vectors_file, model, SMALL, random.Random(0))
    check(rounds.kill_in("insert", 100))
    files = [f for f in (tmp_path / "ix").rglob("*") if f.is_file()]
    before = [f.read_bytes() for f in files]
    with navis.Index.open(tmp_path / "ix", readonly=True) as index:
        assert model.faults(index) == []
    assert sorted(files) == sorted(f for f in (tmp_path / "ix").rglob("*") if f.is_file())
    assert before == [f.read_bytes() for f in files]


def test_the_harness_sees_what_is_lost(tmp_path: Path, vectors: Matrix, fresh: Fresh) -> None:
    """An acknowledged step that was not done, one that was, and an id that nobody explains."""
    model = fresh(tmp_path / "ix", "selective")
    (steps,) = model.streams(random.Random(0), threads=1, steps=12, deletes=0, replaces=0)
    with navis.Index.open(tmp_path / "ix") as index:
        for number, step in enumerate(steps):
            if number != 5:
                index.insert(step.ids, vectors[list(step.rows)])
        index.insert([10**6], vectors[:1])
        index.delete([7])
        settled = Model(vectors, BUILT).settle(index, [steps], [len(steps)])
    assert settled.lost == [(0, 5)]
    assert settled.unordered == [(0, number) for number in range(6, 12)]
    assert settled.strays == [7, 10**6]
