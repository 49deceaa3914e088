"""compact, snapshot and repair, from Python and from the command line."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError

import navis


def test_compact_gives_back_what_deletes_left(run: Any, ix: Path, queries: Any) -> None:
    with navis.Index.open(ix) as index:
        index.delete(np.arange(0, 1500, 3))
    found = run("compact", ix)
    assert found["deleted"] == 500
    assert found["files_bytes"] < 0.85 * found["files_bytes_before"]
    assert found["space_amplification"] <= 1.15
    assert run("compact", ix)["deleted"] == 0
    with navis.Index.open(ix, readonly=True) as index:
        assert index.verify()["faults"] == []
        ids, _ = index.search(queries, 10)
        assert np.all(ids % 3 != 0)
        with pytest.raises(UserError, match="readonly"):
            index.compact()


def test_compact_can_be_stopped_and_goes_on(ix: Path) -> None:
    calls: list[tuple[int, int]] = []

    def third(done: int, total: int) -> bool:
        calls.append((done, total))
        return len(calls) < 3

    with navis.Index.open(ix) as index:
        index.delete(np.arange(300))
        with pytest.raises(UserError, match="stopped"):
            index.compact(third)
        assert len(calls) == 3
        assert index.verify()["faults"] == []
        index.compact()
        assert index.stats()["deleted"] == 0
        assert index.verify()["faults"] == []


def test_ctrl_c_ends_a_compaction_and_loses_nothing(
    run: Any, ix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Press:
        """A bar that presses Ctrl-C when it is first drawn."""

        total, n = None, 0

        def __enter__(self) -> Press:
            return self

        def __exit__(self, *_: object) -> None: ...

        def refresh(self) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("shorthaul.progress.bar", lambda *_: Press())
    with navis.Index.open(ix) as index:
        index.delete(np.arange(300))
    assert "interrupted" in run("compact", ix, code=130)
    assert "interrupted" in run("snapshot", ix, ix.parent / "copy", code=130)
    assert sorted(path.name for path in ix.parent.iterdir()) == ["ix"]
    monkeypatch.undo()
    with navis.Index.open(ix) as index:
        assert index.verify()["faults"] == []
        assert len(index) == 1200


def test_a_snapshot_is_the_index_at_one_moment(run: Any, ix: Path, base: Any, queries: Any) -> None:
    with navis.Index.open(ix) as index:
        index.insert(np.arange(1500, 1600), base[1500:1600])
        index.delete([0, 1])
        (ix / "notes.json").write_text("{}")  # what others keep beside comes along
        index.snapshot(ix.parent / "one")
        wanted = index.search(queries, 10)
        index.delete(np.arange(2, 900))
    with navis.Index.open(ix.parent / "one") as copy:
        assert len(copy) == 1598
        assert copy.verify()["faults"] == []
        for got, right in zip(copy.search(queries, 10), wanted, strict=True):
            assert np.array_equal(got, right)
    assert (ix.parent / "one" / "notes.json").exists()
    found = run("snapshot", ix, ix.parent / "two")
    assert found["vectors"] == 700
    assert found["files_bytes"] > 0
    assert "exists" in run("snapshot", ix, ix.parent / "two", code=2)
    assert "no such folder" in run("snapshot", ix, ix.parent / "x" / "y", code=2)
    assert "no such folder" in run("snapshot", ix.parent / "none", ix.parent / "y", code=2)


def test_a_snapshot_is_taken_beside_inserts(ix: Path, base: Any) -> None:
    acknowledged: list[int] = []
    with navis.Index.open(ix, durability="none") as index:

        def insert() -> None:
            for row in range(1500, 2500):
                index.insert([row], base[row])
                acknowledged.append(row)

        writer = threading.Thread(target=insert)
        writer.start()
        while len(acknowledged) < 50:
            pass
        before = list(acknowledged)
        index.snapshot(ix.parent / "copy")
        writer.join()
    with navis.Index.open(ix.parent / "copy", readonly=True) as copy:
        ids = set(copy.ids().tolist())
        assert ids >= {*range(1500), *before}
        assert copy.verify()["faults"] == []


def damage(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


def test_repair_makes_damaged_lists_anew(run: Any, ix: Path, queries: Any) -> None:
    shutil.copytree(ix, ix.parent / "sound")
    damage(ix / "edges.dat", 3 * 4096 + 100)
    found = run("repair", ix)
    assert found["lists"] > 0
    assert found["lost"] == []
    assert run("verify", ix)["faults"] == []
    with navis.Index.open(ix) as index, navis.Index.open(ix.parent / "sound") as sound:
        got, _ = index.search(queries, 10, L=80)
        right, _ = sound.search(queries, 10, L=80)
        assert np.mean(np.sort(got) == np.sort(right)) >= 0.98
    assert run("repair", ix) == {"lists": 0, "lost": []}


def test_repair_names_lost_vectors(run: Any, ix: Path, base: Any) -> None:
    damage(ix / "vectors.dat", 64)
    said = run("repair", ix, code=1)
    assert "insert them anew" in said
    with navis.Index.open(ix) as index:
        (lost,) = index.repair()["lost"]
        assert said.endswith(f" {lost}")
        index.delete([lost])
        index.insert([lost], base[lost])
        assert index.repair()["lost"] == []
        assert index.verify()["faults"] == []
