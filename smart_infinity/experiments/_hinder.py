"""What else can go wrong with a run's devices: failing disks, full ones, devices that stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shorthaul.errors import EnvironmentLack, Fault, ShorthaulError, UserError
from shorthaul.experiments import Context

from smart_infinity.client import DeviceOptions
from smart_infinity.errors import DeviceLost
from smart_infinity.experiments import _faults, _kill
from smart_infinity.experiments._kill import Reference, Tally

Rows = list[list[Any]]


@dataclass
class _Caught:
    error: ShorthaulError | None = None
    begin: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


@contextmanager
def _expecting(kind: type[ShorthaulError]) -> Iterator[_Caught]:
    """Catch an error of the kind that is expected, and note how long it took to come."""
    caught = _Caught()
    try:
        yield caught
    except kind as error:
        caught.error = error
    caught.seconds = time.monotonic() - caught.begin


@dataclass
class _Hindrances:
    context: Context
    reference: Reference
    tally: Tally
    rows: Rows = field(default_factory=list)

    def seen(
        self, what: str, caught: _Caught, folders: list[Path], word: str = "", **options: Any
    ) -> None:
        """Note what was said and what is left after two steps that were durable.

        The error names the device, and `word`.
        """
        left = _kill.look(folders, self.reference, **options)
        self.tally.see(left, durable=2, returned=2)
        said = str(caught.error)
        named = caught.error is not None and str(folders[0]) in said and word in said
        self.tally.unnamed += not named
        self._row(what, caught, left.step, left.differs)

    def unharmed(self, what: str, caught: _Caught, folders: list[Path], steps: int) -> None:
        """Note that nothing was said, and that all steps are there."""
        left = _kill.look(folders, self.reference)
        self.tally.see(left, durable=steps, returned=steps)
        self._row(what, caught, left.step, left.differs)

    def refused(self, what: str, caught: _Caught, *, word: str, made: bool) -> None:
        """Note that a run was refused before anything was made."""
        self.tally.unnamed += word not in str(caught.error) or made
        self._row(what, caught, None, None)

    def _row(self, what: str, caught: _Caught, step: int | None, differs: int | None) -> None:
        said = "nothing" if caught.error is None else str(caught.error)
        said = said.replace(f"{self.context.workdir}/", "")
        self.rows.append([what, said, step, differs, round(caught.seconds, 1)])
        self.context.run.metric(
            hindered=what, said=said, step=step, differs=differs, seconds=caught.seconds
        )


def _spoiled(seen: _Hindrances, name: str, library: Path) -> None:
    """Take two steps, and then some more on a disk that fails."""
    workdir, fault = seen.context.workdir, _faults.FAULTS[name]
    folders = _kill.folders(workdir, "spoiled")
    spoiler = _faults.Spoiler(library, fault, folders[0] / "state.smart", workdir / "trigger")
    with _expecting(ShorthaulError) as caught, spoiler.armed(), _kill.started(folders) as (
        optimizer, params,
    ):  # fmt: skip
        _kill.train(optimizer, params, 2)
        spoiler.begin()
        caught.begin = time.monotonic()
        _kill.train(optimizer, params, 2)
    if spoiler.spoiled == 0:
        raise Fault(f"{name}: no call was spoiled, nothing was tried")
    if fault.code:
        seen.seen(name, caught, folders, os.strerror(fault.code))
    else:
        seen.unharmed(name, caught, folders, 4)
        seen.tally.unnamed += caught.error is not None


def _cut_off(seen: _Hindrances) -> None:
    """Cut a device's file off under it: the kernel itself reads less than was asked for."""
    folders = _kill.folders(seen.context.workdir, "cut-off")
    file, held = folders[0] / "state.smart", b""
    with _expecting(Fault) as caught, _kill.started(folders) as (optimizer, params):
        _kill.train(optimizer, params, 2)
        held = file.read_bytes()
        os.truncate(file, len(held) // 2)
        caught.begin = time.monotonic()
        _kill.train(optimizer, params, 1)
    file.write_bytes(held)
    seen.seen("its file is cut off in mid-run, then put back", caught, folders)


def _stopped(seen: _Hindrances) -> None:
    """Stop a device: it is there, and silent."""
    folders = _kill.folders(seen.context.workdir, "stopped")
    options = DeviceOptions(timeout_s=seen.context.settings["timeout_s"])
    with _expecting(DeviceLost) as caught, _kill.started(folders, options=options) as (
        optimizer, params,
    ):  # fmt: skip
        _kill.train(optimizer, params, 2)
        process = optimizer.array.devices[0].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        caught.begin = time.monotonic()
        _kill.train(optimizer, params, 1)
    what = f"a device is stopped (silence of {options.timeout_s:g} s is a loss)"
    seen.seen(what, caught, folders)


@contextmanager
def _small_disk(context: Context, kibibytes: int) -> Iterator[Path]:
    """Mount a file system with little room; an EnvironmentLack says why that cannot be."""
    if os.geteuid() != 0:
        raise EnvironmentLack("mounting a small file system needs root")
    small = context.workdir / "small"
    small.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentLack(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield small
    finally:
        _unmount(small)


def _unmount(folder: Path) -> None:
    """Unmount; the kernel lets go of a ring's files a while after their process has ended."""
    until = time.monotonic() + 10
    while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        if time.monotonic() > until:
            subprocess.run(["umount", str(folder)], check=True)
        time.sleep(0.1)


def _without_room(seen: _Hindrances) -> None:
    """Make a state where there is no room; then let gradients wait where there is none left."""
    buffered = DeviceOptions(buffered=True)
    with _small_disk(seen.context, 200) as small:
        with _expecting(UserError) as caught, _kill.started([small / "a"], options=buffered):
            pass
        made = (small / "a" / "state.smart").exists()
        what = "a new state on a disk without room"
        seen.refused(what, caught, word="needs", made=made)
    with _small_disk(seen.context, 4096) as small:
        folders = [small / "a"]
        with _kill.started(folders, options=buffered) as (optimizer, params):
            _kill.train(optimizer, params, 2)
        size = (folders[0] / "state.smart").stat().st_size
        _fill(small / "full", size // 32)
        landing = DeviceOptions(buffered=True, landing_bytes=0)
        with _expecting(ShorthaulError) as caught, _kill.started(
            folders, options=landing, offload="backward"
        ) as (optimizer, params):  # fmt: skip
            loss = sum((param * one).sum() for param, one in _gradients(params))
            loss.backward()
            optimizer.step()
        (small / "full").unlink()
        seen.seen("gradients find no room to wait in", caught, folders, options=buffered)


def _gradients(params: list[Any]) -> list[tuple[Any, Any]]:
    return [(param, _kill.gradient(i, 2)) for i, param in enumerate(params)]


def _fill(path: Path, leave: int) -> None:
    """Take all room of a file system but so many bytes."""
    free = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))


def run(context: Context, reference: Reference, tally: Tally, notes: list[str]) -> tuple[Rows, int]:
    """Hinder runs in every way there is here; the rows, and how many disks failed on request."""
    seen = _Hindrances(context, reference, tally)
    faults = 0
    try:
        library = _faults.library(context.workdir)
        for name in context.settings["faults"]:
            _spoiled(seen, name, library)
            faults += 1
    except EnvironmentLack as error:
        notes.append(f"failing disks were not tried: {error}")
    _cut_off(seen)
    _stopped(seen)
    try:
        _without_room(seen)
    except EnvironmentLack as error:
        notes.append(f"full disks were not tried: {error}")
    return seen.rows, faults
