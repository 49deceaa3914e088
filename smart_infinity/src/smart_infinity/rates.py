"""What the disks, the kernels and the devices of this machine do, measured alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shorthaul.errors import UserError
from shorthaul.uring import Completion, File, Mode, Ring, buffer

from smart_infinity import _core
from smart_infinity.client import DeviceOptions
from smart_infinity.kinds import optimizer
from smart_infinity.planner import Rates

BLOCK = 1 << 20


@dataclass(frozen=True)
class DiskRate:
    """Bytes a second of one test, and how much it moved."""

    read: float
    write: float
    read_bytes: int
    write_bytes: int
    seconds: float
    direct: bool

    @property
    def total(self) -> float:
        """Both directions."""
        return self.read + self.write


class RawDisk:
    """A file for tests of a disk: transfers of 1 MiB past the page cache, `depth` at once.

    Reads go through one half of the file and writes through the other, in order, as a step does.
    Buffers and file are registered with the kernel, as a device's are: without, a busy processor
    keeps this test slower than the steps that it is to bound.
    """

    def __init__(self, folder: Path, mebibytes: int = 512, depth: int = 32) -> None:
        if mebibytes < 2 * depth:
            raise UserError(f"a disk test of {mebibytes} MiB: use {2 * depth} or more")
        self.path = folder / f".disk-test-{time.monotonic_ns()}"
        self.blocks = mebibytes // 2
        self.depth = depth
        self.file = File(self.path, Mode.create)
        self.path.unlink()  # it goes with us
        self.ring = Ring(depth=depth)
        memory = buffer(depth * BLOCK)  # one, so that it has huge pages, as a device's has
        self.buffers = [memory[at : at + BLOCK] for at in range(0, depth * BLOCK, BLOCK)]
        rng = np.random.default_rng(0)
        for one in self.buffers:
            one[:] = rng.integers(0, 256, BLOCK, np.uint8)
        self.ring.register_buffers(self.buffers)
        self.ring.register_files([self.file])
        self.file.allocate(2 * self.blocks * BLOCK)
        self._fill()

    def _fill(self) -> None:
        # Blocks never written are not read from the disk.
        todo = list(range(2 * self.blocks))
        free = list(range(self.depth))
        while todo or len(free) < self.depth:
            while todo and free:
                slot = free.pop()
                self.ring.write(self.file, todo.pop() * BLOCK, self.buffers[slot], tag=slot)
            free += [done.tag for done in self._done()]
        self.file.sync()

    def _done(self) -> list[Completion]:
        done = self.ring.submit_and_wait(1)
        for one in done:
            if one.error:
                raise OSError(one.error, f"the disk test of {self.path.parent}")
        return list(done)

    def run(self, total: int, *, reads: int = 1, writes: int = 1) -> DiskRate:
        """Move `total` bytes, `reads` and `writes` by turns, and sync; give the rates."""
        pattern = [True] * reads + [False] * writes
        count = max(1, total // BLOCK)
        moved = {True: 0, False: 0}
        free = list(range(self.depth))
        begun = 0
        begin = time.perf_counter()
        while begun < count or len(free) < self.depth:
            while begun < count and free:
                slot = free.pop()
                reading = pattern[begun % len(pattern)]
                at = moved[reading] // BLOCK % self.blocks
                if reading:
                    self.ring.read(self.file, at * BLOCK, self.buffers[slot], tag=slot)
                else:
                    place = (self.blocks + at) * BLOCK
                    self.ring.write(self.file, place, self.buffers[slot], tag=slot)
                moved[reading] += BLOCK
                begun += 1
            free += [done.tag for done in self._done()]
        self.file.sync()
        seconds = time.perf_counter() - begin
        return DiskRate(
            moved[True] / seconds, moved[False] / seconds, moved[True], moved[False], seconds,
            self.file.direct,
        )  # fmt: skip

    def close(self) -> None:
        """Give the file back."""
        self.file.close()


def kernel_rate(kind: str = "adamw", elements: int = 1 << 20, seconds: float = 0.3) -> float:
    """Give parameters a second that one thread steps in memory, checksums of a device included."""
    settings = _core.Settings()
    settings.momentum = 0.9
    rng = np.random.default_rng(0)
    arrays = [np.abs(rng.standard_normal(elements, np.float32)) for _ in range(4)]
    moments = len(optimizer(kind).arrays)
    used = [*arrays[2:][:moments], *([None] * (2 - moments))]
    rounds, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        _core.update(
            _core.Kind[kind], settings, rounds + 1, 1.0, 1.0, False, arrays[0], arrays[1], *used
        )
        for array in (arrays[0], *arrays[2:][:moments]):
            for _ in ("read", "written"):
                _core.crc32c(array)
        rounds += 1
    return rounds * elements / (time.perf_counter() - begin)


def commit_seconds(folder: Path, rounds: int = 9) -> float:
    """Give the seconds of a commit of little: two pages written, each made durable."""
    path = folder / f".commit-test-{time.monotonic_ns()}"
    file = File(path, Mode.create)
    try:
        page, ring, spent = buffer(4096), Ring(depth=1), []
        for _ in range(rounds):
            begin = time.perf_counter()
            for number in range(2):
                ring.write(file, 4096 * number, page)
                (done,) = ring.submit_and_wait(1)
                if done.error:
                    raise OSError(done.error, f"the commit test of {folder}")
                file.sync()
            spent.append(time.perf_counter() - begin)
    finally:
        file.close()
        path.unlink()
    return statistics.median(spent)


def measure(folder: Path, mebibytes: int = 512) -> Rates:
    """Measure one disk and this processor; devices on this disk share it."""
    disk = RawDisk(folder, mebibytes)
    try:
        read = disk.run(mebibytes << 19, reads=1, writes=0).read
        write = disk.run(mebibytes << 19, reads=0, writes=1).write
        both = disk.run(mebibytes << 20).total
    finally:
        disk.close()
    kernel = kernel_rate()
    return Rates(
        media_read=read, media_write=write, media_both=both, media_all=both, kernel=kernel,
        host_kernel=kernel, commit_s=commit_seconds(folder),
    )  # fmt: skip


def device_speed(
    address: str | Path, options: DeviceOptions | None = None, *, params: int = 1 << 22
) -> float:
    """Give parameters a second that a device in this folder steps, alone.

    Measured by a device of its own kind in a folder inside, which is removed again: disk, file
    system, processor and a slowed medium all count. It writes `params` times 24 bytes, and reads
    them, three times.

    Raises:
        UserError: Not a folder of this machine.
    """
    from smart_infinity import bench

    if str(address).partition(":")[0] in ("unix", "tcp"):
        raise UserError(
            f"the speed of device {address} cannot be measured: its folder is another's; give "
            "weights as numbers"
        )
    folder = Path(address)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".speed-", dir=folder) as inside:
            config = bench.Config(params=params, options=options or DeviceOptions())
            with bench.Bench(config, [Path(inside)]) as one:
                # The first step reads what was never written, which costs a disk nothing.
                seconds = [one.step()["total_s"] for _ in range(3)][1:]
    except OSError as error:
        raise UserError(f"{folder}: its speed cannot be measured ({error})") from error
    return params / statistics.median(seconds)


def device_speeds(
    addresses: Sequence[str | Path],
    options: Sequence[DeviceOptions | None] | None = None,
    *,
    params: int = 1 << 22,
) -> list[float]:
    """Give `device_speed` of each, one after the other; `options` has one for each."""
    each = options or [None] * len(addresses)
    return [
        device_speed(address, option, params=params)
        for address, option in zip(addresses, each, strict=True)
    ]
