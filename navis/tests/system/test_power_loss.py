"""Power lost at any moment: what was synced is there, and what was acknowledged as promised.

A child works under the recording shim; afterwards the folder is made as a loss of power between any
two of its calls could have left it (power.py), and opened. The shim sees calls of the C library, so
io_uring, whose writes make none, is refused there: that both backends do the same is tested
elsewhere. That it sees all the rest is tested here, byte by byte.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power import Kind, Loss, Recording, shim_environment
from shorthaul.errors import UserError
from small import LAYOUTS, Fresh

import navis
from navis.experiments._crash import ACK, Matrix, Model, Step
from navis.experiments._kill import PATIENCE_S, Child

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

OPTIONS: dict[str, Any] = {"io": "posix", "pending_bytes": 1, "checkpoint_bytes": 200_000}
WINDOW_S = 0.05
# A loaded machine may let the thread that syncs wait beyond the window.
SLACK_S = 1.0


class Work:
    """Steps of a child under the shim, and the index as each loss of power would leave it."""

    def __init__(
        self, tmp_path: Path, shim: Path, vectors_file: Path, fresh: Fresh, layout: str, seed: str
    ) -> None:
        self.tmp_path, self.shim, self.vectors_file = tmp_path, shim, vectors_file
        self.draw = random.Random(seed)
        self.root = tmp_path / "root"
        self.root.mkdir()
        self.model = fresh(self.root / "ix", layout)
        self.built = len(self.model.rows)
        self.streams = self.model.streams(self.draw, threads=2, steps=600, deletes=0.1)
        self.streams[1][20::60] = [Step("compact")] * len(self.streams[1][20::60])
        (self.root / "acks").touch()
        self.recording = Recording(self.root)
        self.longest = 0.0
        self.lost_most = self.torn_tails = self.trials = 0

    def run(self, durability: str, steps: int | None) -> None:
        """Work until so many steps are acknowledged, then be killed; None: end in good order."""
        record = self.tmp_path / "record"
        child = Child(
            *(self.tmp_path, self.root / "ix", self.vectors_file, self.streams),
            {**OPTIONS, "durability": durability, "window_s": WINDOW_S},
            acks=self.root / "acks",
            environment=shim_environment(self.shim, self.root, record),
        )
        if steps is None:
            child.end()
        else:
            child.wait_for(steps)
            child.kill()
        self.recording.load(record)
        self.durability = durability

    def moments(self, count: int) -> list[int]:
        """Numbers of events: some anywhere, half beside a change of names (checkpoints)."""
        events = self.recording.events
        changes = [i for i, e in enumerate(events) if e.kind in (Kind.RENAME, Kind.UNLINK)]
        assert changes, "no checkpoint was taken"
        anywhere = [self.draw.randrange(1, len(events) + 1) for _ in range(count // 2)]
        beside = [self.draw.choice(changes) + self.draw.randint(-8, 8) for _ in range(count // 2)]
        return anywhere + [min(len(events), max(1, at)) for at in beside]

    def acknowledged(self, cut: int) -> list[list[float]]:
        """When, for each thread, its steps had been acknowledged."""
        times: list[list[float]] = [[] for _ in self.streams]
        for _, line in self.recording.lines("acks", cut):
            what, thread, number, at = ACK.unpack(line)
            if what == b"A":
                assert number == len(times[thread])
                times[thread].append(at)
        return times

    def lose(self, cut: int, loss: Loss) -> None:
        """Open what is left and compare it with what was promised."""
        left = self.tmp_path / "left"
        left.mkdir()
        self.trials += 1
        self.recording.lose(cut, loss, self.trials, left)
        times, now = self.acknowledged(cut), self.recording.events[cut - 1].time
        may_lose = self.durability == "group" and loss is not Loss.KILL
        after = Model(self.model.vectors, self.built)
        with navis.Index.open(left / "ix", **OPTIONS) as index:
            found = after.settle(index, self.streams, [len(t) for t in times])
            assert found.lost == [] or may_lose, f"{loss} before call {cut}: {found.lost}"
            assert found.unordered == found.strays == [], found
            ages = [now - times[thread][number] for thread, number in found.lost]
            assert max(ages, default=0) < WINDOW_S + SLACK_S
            assert after.faults(index) == []
            assert after.own_nearest(index, sample=100, seed=cut) > 0.98
            self.torn_tails += index.stats()["dropped_wal_bytes"] > 0
            (more,) = after.streams(self.draw, threads=1, steps=20)
            for step in more:
                if step.kind == "delete":
                    index.delete(step.ids)
                else:
                    index.insert(step.ids, after.vectors[list(step.rows)])
        with navis.Index.open(left / "ix", **OPTIONS) as index:  # and life goes on
            again = after.settle(index, [more], [len(more)])
            assert again.lost == again.strays == []
            assert index.verify()["faults"] == []
        self.lost_most = max(self.lost_most, len(found.lost))
        self.longest = max(self.longest, *ages, 0.0)
        shutil.rmtree(left)

    def report(self) -> None:
        print(
            f"\n{self.trials} losses of power in {len(self.recording.events)} calls: at most "
            f"{self.lost_most} acknowledged steps lost, acknowledged at most {self.longest:.3f} s "
            f"before; {self.torn_tails} times a torn tail of the log"
        )


@pytest.mark.parametrize("durability", ["sync", "group"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_loss_of_power_leaves(
    tmp_path: Path, shim: Path, vectors_file: Path, fresh: Fresh, layout: str, durability: str
) -> None:
    work = Work(tmp_path, shim, vectors_file, fresh, layout, layout + durability)
    work.run(durability, 200)
    for cut in work.moments(12):
        work.lose(cut, list(Loss)[work.trials % len(Loss)])
    work.report()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_record_explains_every_byte(
    tmp_path: Path, shim: Path, vectors_file: Path, fresh: Fresh, layout: str
) -> None:
    """What all recorded changes make of the files before is what is there: nothing escapes."""
    work = Work(tmp_path, shim, vectors_file, fresh, layout, layout)
    work.streams = [stream[:40] for stream in work.streams]
    work.run("sync", None)
    left = tmp_path / "left"
    left.mkdir()
    work.recording.lose(len(work.recording.events), Loss.KILL, 0, left)
    there, made = ({f.relative_to(root): f.read_bytes() for f in root.rglob("*") if f.is_file()}
                   for root in (work.root, left))  # fmt: skip
    assert sorted(there) == sorted(made)
    assert [name for name in there if there[name] != made[name]] == []
    with navis.Index.open(work.root / "ix", **OPTIONS) as index:
        assert not index.stats()["uring"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("durability", ["sync", "group"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_thousand_losses(
    tmp_path: Path, shim: Path, vectors_file: Path, fresh: Fresh, layout: str, durability: str
) -> None:
    for part in range(4):
        (tmp_path / str(part)).mkdir()
        work = Work(tmp_path / str(part), shim, vectors_file, fresh, layout, f"{layout} {part}")
        work.run(durability, 500)
        for cut in work.moments(64):
            for loss in Loss:
                work.lose(cut, loss)
        work.report()


BUILD = """
import os, sys
import numpy as np
import navis
root, vectors, layout = sys.argv[1:]
navis.Index.build(root + "/deep/new/ix", np.load(vectors)[:300], layout=layout, io="posix").close()
with open(root + "/acks", "ab", buffering=0) as acks:
    acks.write(b"built")
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_index_is_durable_when_it_is_built(
    tmp_path: Path, shim: Path, vectors_file: Path, vectors: Matrix, layout: str
) -> None:
    root, record = tmp_path / "root", tmp_path / "record"
    root.mkdir()
    (root / "acks").touch()
    recording = Recording(root)
    subprocess.run(
        [sys.executable, "-c", BUILD, root, vectors_file, layout],
        env=shim_environment(shim, root, record),
        check=True,
        timeout=PATIENCE_S,
    )
    recording.load(record)
    end = len(recording.events)
    draw = random.Random(layout)
    for trial, cut in enumerate([end] * 6 + [draw.randrange(1, end) for _ in range(30)]):
        left = tmp_path / "left"
        left.mkdir()
        recording.lose(cut, list(Loss)[trial % len(Loss)], trial, left)
        acknowledged = any(recording.lines("acks", cut))
        try:
            with navis.Index.open(left / "deep" / "new" / "ix") as index:
                assert index.verify()["faults"] == []
                assert np.array_equal(index.get(np.arange(300)), vectors[:300])
        except UserError as error:  # there is none yet
            refusal = str(error)
        else:
            refusal = ""
        assert not (refusal and acknowledged), refusal
        assert not refusal or "no such folder" in refusal or "no state.nav" in refusal
        shutil.rmtree(left)
