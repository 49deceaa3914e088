"""A loss of power drops any part of what was not synced: the state is a whole step's still."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from smart_testing import differing_bits

from smart_infinity import SmartOptimizer, keep
from smart_infinity.experiments import _crash_child
from smart_infinity.experiments._crash_child import gradient, parameters

HERE = Path(__file__).parent
SECTOR = 512
HEAD = struct.Struct("<4Q")


@dataclass
class Write:
    at: int
    offset: int
    data: bytes


@dataclass
class Recording:
    """What a device has written, in order, and when which of it was made durable."""

    writes: list[Write]
    syncs: list[tuple[int, int]]  # (ended, began)
    size: int

    @classmethod
    def read(cls, log: Path, size: int) -> Recording:
        raw, at = log.read_bytes(), 0
        made = cls([], [], size)
        while at + HEAD.size <= len(raw):
            when, kind, offset, length = HEAD.unpack_from(raw, at)
            at += HEAD.size
            if kind == 1:
                made.syncs.append((when, offset))
                continue
            if at + length > len(raw):
                break  # killed in the middle of a record
            made.writes.append(Write(when, offset, raw[at : at + length]))
            at += length
        return made

    def image(self, cut: int, rng: random.Random) -> bytes:
        """The file after a loss of power at `cut`: each sector not yet durable is there or not."""
        durable = max((began for ended, began in self.syncs if ended <= cut), default=0)
        image = bytearray(self.size)
        for write in self.writes:
            if write.at > cut:
                continue
            if write.at <= durable:
                image[write.offset : write.offset + len(write.data)] = write.data
                continue
            keep_all, drop_all = rng.random() < 0.2, rng.random() < 0.2
            for begin in range(0, len(write.data), SECTOR):
                if keep_all or (not drop_all and rng.random() < 0.5):
                    part = write.data[begin : begin + SECTOR]
                    image[write.offset + begin : write.offset + begin + len(part)] = part
        return bytes(image)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "smart_shim.so"
    source = HERE / "shim" / "smart_shim.c"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"],
        check=True,
    )
    return library


@pytest.fixture(scope="module")
def recorded(
    shim: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Recording], list[tuple[int, int]]]:
    """Two devices' recordings of some steps, and when the host knew which step to be durable."""
    folder = tmp_path_factory.mktemp("recorded")
    folders = [folder / "a", folder / "b"]
    environment = {
        **os.environ, "LD_PRELOAD": str(shim), "SMART_SHIM_LOG": str(folder / "log"),
        "SHORTHAUL_IO": "posix", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(_crash_child.__file__), *map(str, folders)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    pids = process.stdout.readline().split()[1:]
    durable = []
    for _ in range(8):
        words = process.stdout.readline().split()
        durable.append((time.monotonic_ns(), int(words[1])))
    process.kill()
    process.wait()
    time.sleep(0.5)  # the devices end by themselves
    sizes = [(one / "state.smart").stat().st_size for one in folders]
    logs = [folder / f"log.{pid}" for pid in pids]
    recordings = [Recording.read(log, size) for log, size in zip(logs, sizes, strict=True)]
    assert all(len(one.writes) > 50 and len(one.syncs) > 10 for one in recordings)
    return recordings, durable


def after(step: int) -> list[torch.Tensor]:
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, fused=True)
    for number in range(step):
        for i, param in enumerate(params):
            param.grad = gradient(i, number)
        optimizer.step()
    return params


def check(
    recordings: list[Recording],
    durable: list[tuple[int, int]],
    cut: int,
    rng: random.Random,
    tmp_path: Path,
) -> int:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, recording in zip(folders, recordings, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.smart").write_bytes(recording.image(cut, rng))
    params = [torch.zeros_like(p).requires_grad_() for p in parameters()]
    with SmartOptimizer(params, devices=folders, resume=True) as optimizer:
        step = optimizer.array.step
    assert all(one.clean for one in keep.inspect(folders))
    assert differing_bits(params, after(step)) == 0
    known = max((number for when, number in durable if when <= cut), default=0)
    assert step >= known
    return step


def cuts(recordings: list[Recording], count: int, rng: random.Random) -> list[int]:
    """Moments: after the first commit, many of them right beside a sync."""
    first = max(one.syncs[3][0] for one in recordings)
    last = min(one.writes[-1].at for one in recordings)
    found = []
    for _ in range(count):
        if rng.random() < 0.5:
            found.append(rng.randrange(first, last))
        else:
            ended, began = rng.choice(rng.choice(recordings).syncs)
            moment = rng.choice([began, ended]) + rng.randrange(-200_000, 200_000)
            found.append(min(max(moment, first), last))
    return found


@pytest.mark.system
def test_any_loss_of_what_was_not_synced(
    recorded: tuple[list[Recording], list[tuple[int, int]]], tmp_path: Path
) -> None:
    rng = random.Random(0)
    recordings, durable = recorded
    steps = {
        check(recordings, durable, cut, rng, tmp_path / str(number))
        for number, cut in enumerate(cuts(recordings, 12, rng))
    }
    assert len(steps) > 2


@pytest.mark.slow
@pytest.mark.system
def test_a_hundred_losses(
    recorded: tuple[list[Recording], list[tuple[int, int]]], tmp_path: Path
) -> None:
    rng = random.Random(1)
    recordings, durable = recorded
    for number, cut in enumerate(cuts(recordings, 100, rng)):
        check(recordings, durable, cut, rng, tmp_path / str(number))
