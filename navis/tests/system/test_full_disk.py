"""A disk that fills up, fails, or takes less than it is given: said in one line, and survived."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power import shim_environment
from small import BUILT, LAYOUTS, Fresh

import navis
from navis.experiments._crash import Matrix, Model, Step
from navis.experiments._kill import PATIENCE_S, Child

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

OPTIONS: dict[str, Any] = {"io": "posix", "pending_bytes": 1, "checkpoint_bytes": 200_000}

# In a mount namespace of its own: the index on a small tmpfs, the command, what is left of it.
ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=$1 tmpfs $2
cp -r $3/. $2
status=0
${@:5} || status=$?
cp -r $2 $4
exit $status
"""


def small_disk(size: int, at: Path, index: Path, left: Path, command: list[str]) -> list[str]:
    """The command with a copy of `index` at `at`, on a full disk soon; the copy goes to `left`."""
    at.mkdir()
    script = [ON_A_SMALL_DISK, "_", str(size), str(at), str(index), str(left), *command]
    return ["unshare", "--mount", "bash", "-c", *script]


@pytest.fixture(scope="session", autouse=True)
def namespaces() -> None:
    try:
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs in a namespace is not permitted here")


def bytes_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def check(index: Any, model: Model, streams: list[list[Step]], done: list[int]) -> None:
    settled = model.settle(index, streams, done)
    assert settled.lost == settled.strays == []
    assert model.faults(index) == []


@pytest.mark.parametrize(("layout", "durability"), [("selective", "sync"), ("packed", "group")])
def test_a_full_disk_loses_nothing_acknowledged(
    tmp_path: Path, vectors_file: Path, fresh: Fresh, layout: str, durability: str
) -> None:
    """Inserts until the disk is full, then opens what is left: there, readonly, and with room."""
    model = fresh(tmp_path / "ix", layout)
    streams = model.streams(random.Random(layout), threads=2, steps=2000)
    disk, left = tmp_path / "disk", tmp_path / "left"
    room = bytes_of(tmp_path / "ix") + (3 << 19)
    options = {"pending_bytes": 1, "checkpoint_bytes": 400_000, "durability": durability}
    child = Child(
        tmp_path, disk, vectors_file, streams, options,
        wrap=lambda command: small_disk(room, disk, tmp_path / "ix", left, command),
    )  # fmt: skip
    code, said = child.died()
    print(f"\n{sum(child.acknowledged)} acknowledged; {said.strip()}")
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1
    assert said.startswith("NoSpace: ")
    assert str(disk) in said
    assert "No space left" in said
    assert sum(child.acknowledged) > 100
    with navis.Index.open(left, readonly=True) as index:
        found = model.settle(index, streams, child.acknowledged)
        assert found.lost == found.strays == []
        assert model.faults(index) == []
    with navis.Index.open(left) as index:
        index.insert([10**6], model.vectors[:1])
        index.checkpoint()
        index.delete([10**6])
        assert model.faults(index) == []
        assert model.own_nearest(index) > 0.99


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, vectors_file: Path, fresh: Fresh
) -> None:
    model = fresh(tmp_path / "ix", "selective")
    disk, left = tmp_path / "disk", tmp_path / "left"
    room = bytes_of(tmp_path / "ix") + (1 << 20)
    navis_command = str(Path(sys.executable).with_name("navis"))
    insert = [navis_command, "insert", str(disk), str(vectors_file), "--start", str(BUILT),
              "--first-id", str(BUILT)]  # fmt: skip
    ended = subprocess.run(
        small_disk(room, disk, tmp_path / "ix", left, insert),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "No space left on device" in ended.stderr
    with navis.Index.open(left) as index:
        assert index.verify()["faults"] == []
        there = np.sort(index.ids())
        assert len(there) > BUILT
        assert np.array_equal(index.get(there), model.vectors[there.astype(np.int64)])


FAILING = """
import ctypes, json, sys
import numpy as np
import navis
from shorthaul.errors import ShorthaulError
folder, vectors, built, first, count, error, kind = sys.argv[1:]
shim, rows = ctypes.CDLL(None), np.load(vectors, mmap_mode="r")
acknowledged, codes = [], []
index = navis.Index.open(folder, io="posix", pending_bytes=1, checkpoint_bytes=60_000)
shim.shim_fail(ctypes.c_long(int(first)), ctypes.c_long(int(count)), int(error))
def attempt(do):
    try:
        do()
        return True
    except ShorthaulError as error:
        codes.append((error.exit_code, str(error)))
        return False
for start in range(int(built), int(built) + 400, 4):
    ids = list(range(start, start + 4))
    if attempt(lambda: index.insert(ids, rows[ids])):
        acknowledged += ids
    if start % 100 == 0:
        attempt(getattr(index, kind))
index.search(rows[:20], 5)
shim.shim_fail(ctypes.c_long(-1), ctypes.c_long(0), 0)
attempt(index.close)
print(json.dumps([acknowledged, codes]))
"""


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_call_that_fails_loses_nothing_acknowledged(
    tmp_path: Path, shim: Path, vectors_file: Path, fresh: Fresh, vectors: Matrix, layout: str,
    error: int,
) -> None:  # fmt: skip
    """One change of a file fails, or all from one on; each a clear error, and no search is hurt."""
    draw = random.Random(f"{layout} {error}")
    for kind, count in (("compact", 1), ("checkpoint", 10**6)):
        folder = tmp_path / str(count)
        fresh(folder, layout)
        first = draw.randrange(400)
        ended = subprocess.run(
            [sys.executable, "-c", FAILING, str(folder), str(vectors_file), str(BUILT), str(first),
             str(count), str(error), kind],
            env=shim_environment(shim, tmp_path), capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        acknowledged, errors = json.loads(ended.stdout)
        for code, said in errors:
            assert code == (2 if error == errno.ENOSPC else 1), said
            assert os.strerror(error) in said
            assert str(folder) in said
        assert errors or count == 1
        with navis.Index.open(folder) as index:
            assert index.verify()["faults"] == []
            there = index.ids()
            assert set(range(BUILT)) | set(acknowledged) <= set(there.tolist())
            assert set(there.tolist()) <= set(range(BUILT + 400))
            assert np.array_equal(index.get(there), vectors[there.astype(np.int64)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_transfers_change_nothing(
    tmp_path: Path, shim: Path, vectors_file: Path, fresh: Fresh, queries: Matrix, layout: str
) -> None:
    """Calls that are interrupted, or move half of what was asked: the same index and answers."""
    answers = []
    for short in (False, True):
        folder = tmp_path / f"short{short}"
        model = fresh(folder, layout)
        (steps,) = model.streams(random.Random(layout), threads=1, steps=60)
        for at in (20, 40, 59):
            steps[at] = Step("compact" if at == 40 else "checkpoint")
        environment = shim_environment(shim, tmp_path) | ({"SHIM_SHORT": "1"} if short else {})
        # Inserts in flight together may see each other or not.
        options = {**OPTIONS, "in_flight": 1}
        child = Child(tmp_path, folder, vectors_file, [steps], options, environment=environment)
        child.end()
        with navis.Index.open(folder) as index:
            check(index, model, [steps], [len(steps)])
            answers.append(index.search(queries, 10))
        shutil.rmtree(folder)
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one, other)
