"""Kills a training run, or one of its devices, and looks at what is left.

The crash experiment and the tests of recovery share it; `_crash_child` is the process.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shorthaul.errors import Fault

from smart_infinity import keep
from smart_infinity.experiments import _crash_child
from smart_infinity.experiments._crash_child import OPTIONS, TILE, gradient, parameters
from smart_infinity.wire import Kind

if TYPE_CHECKING:
    import torch

    from smart_infinity import SmartOptimizer

PHASES = ("updated", "one prepared", "all prepared", "one committed", "all committed")


class Reference:
    """Parameters and moments after any number of steps, by torch, computed once."""

    def __init__(self) -> None:
        import torch

        self.params = parameters()
        self.optimizer = torch.optim.AdamW(self.params, **OPTIONS, fused=True)
        self._after: list[list[torch.Tensor]] = []
        self._keep()

    def _keep(self) -> None:
        import torch

        state = [self.optimizer.state[param] for param in self.params]
        self._after.append([
            one.detach().clone()
            for param, held in zip(self.params, state, strict=True)
            for one in (param, *(held.get(name, torch.zeros_like(param))
                                 for name in ("exp_avg", "exp_avg_sq")))
        ])  # fmt: skip

    def __getitem__(self, step: int) -> list[torch.Tensor]:
        """Give parameter, mean and variance of each tensor in turn."""
        while len(self._after) <= step:
            for i, param in enumerate(self.params):
                param.grad = gradient(i, len(self._after) - 1)
            self.optimizer.step()
            self._keep()
        return self._after[step]


@dataclass(frozen=True)
class Killed:
    """A run that was killed.

    Attributes:
        victim: `host`, or the folder of the device.
        durable: Newest step that the run knew to be durable, -1 for none.
        returned: Newest step whose parameters it had.
        ended_s: Seconds until the run had ended, and with it its devices.
        named: Whether the run said which device was lost, and of what (True where it was the host).
        said: The last line of its standard error.
    """

    victim: str
    durable: int
    returned: int
    ended_s: float
    named: bool
    said: str


def run_and_kill(folders: Sequence[Path], draw: random.Random, victim: int) -> Killed:
    """Start a run, or go on with it, and kill device `victim`, or itself for -1, at some moment.

    Raises:
        Fault: It did not start, or a device outlived its host.
    """
    process = subprocess.Popen(
        [sys.executable, _crash_child.__file__, *map(str, folders)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline().split()
    if line[:1] != ["pids"]:
        raise Fault(f"the run to be killed did not start: {process.communicate()[1][-500:]}")
    pids = [int(word) for word in line[1:]]
    seen = [process.stdout.readline() for _ in range(draw.randrange(8))]
    time.sleep(draw.random() * 0.02)
    begin = time.monotonic()
    os.kill(process.pid if victim < 0 else pids[victim], signal.SIGKILL)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    ended = time.monotonic() - begin
    told = [words for words in map(str.split, [*seen, *out.splitlines()]) if len(words) == 4]
    for pid in pids:
        _wait_gone(pid)
    named = victim < 0 or (
        process.returncode == 1
        and f"device {folders[victim]} is lost: killed by SIGKILL" in err
    )  # fmt: skip
    return Killed(
        "host" if victim < 0 else str(folders[victim]),
        max((int(words[1]) for words in told), default=-1),
        max((int(words[3]) for words in told), default=0),
        ended,
        named,
        (err.strip().splitlines() or [""])[-1],
    )


def _wait_gone(pid: int) -> None:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise Fault(f"device {pid} outlived its host")


@dataclass(frozen=True)
class Left:
    """What a run has left, and what came of resuming it.

    Attributes:
        steps: Committed step of each device before anyone resumed.
        faults: Damaged arrays of the committed steps.
        step: At which it resumed.
        differs: Elements of parameters and moments that are not, bit by bit, those of that step.
    """

    steps: tuple[int, ...]
    faults: int
    step: int
    differs: int


class Tally:
    """What must not happen, counted.

    Attributes:
        mixed: Runs that have left anything but one whole step.
        lost: Runs that have lost a step that was known to be durable, or more than one step.
        differs: Runs that did not go on as one that nothing happened to.
        unnamed: Errors that were not said, or do not name the device.
    """

    def __init__(self) -> None:
        self.mixed = self.lost = self.differs = self.unnamed = 0

    def see(self, left: Left, *, durable: int, returned: int) -> None:
        """Count what is wrong with what a run has left."""
        apart = max(left.steps) - min(left.steps) > 1
        self.mixed += bool(left.differs or left.faults or apart)
        # A step whose parameters came back may be lost, and no more than that one.
        self.lost += durable > left.step or returned - 1 > left.step


def folders(base: Path, name: str) -> list[Path]:
    """Give two folders for devices below `base`, new."""
    below = base / name
    shutil.rmtree(below, ignore_errors=True)
    below.mkdir()
    return [below / "a", below / "b"]


def look(folders: Sequence[Path], reference: Reference, **options: Any) -> Left:
    """Inspect the folders, then resume without taking a step."""
    import torch

    from smart_infinity import SmartOptimizer

    found = keep.inspect(folders)
    params = [torch.zeros_like(p).requires_grad_() for p in parameters()]
    with SmartOptimizer(params, devices=list(folders), resume=True, **options) as optimizer:
        step = optimizer.array.step
        wrong = sum(count != step for count in optimizer.steps)
        differs = wrong + _differing(optimizer, params, reference, step)
    return Left(
        tuple(one.step for one in found), sum(len(one.faults) for one in found), step, differs
    )


def goes_on(folders: Sequence[Path], reference: Reference, steps: int) -> int:
    """Resume, take steps, and count the elements that then differ from a run never killed."""
    with started(folders) as (optimizer, params):
        train(optimizer, params, steps)
        return _differing(optimizer, params, reference, optimizer.array.step)


def _differing(
    optimizer: SmartOptimizer, params: list[torch.Tensor], reference: Reference, step: int
) -> int:
    import torch

    state = optimizer.state_dict()["state"]
    ours = [
        one
        for i, param in enumerate(params)
        for one in (param.detach(), state[i]["exp_avg"], state[i]["exp_avg_sq"])
    ]
    return sum(
        int((a.view(torch.int32) != b.view(torch.int32)).sum())
        for a, b in zip(ours, reference[step], strict=True)
    )


@contextlib.contextmanager
def started(
    folders: Sequence[Path], **options: Any
) -> Iterator[tuple[SmartOptimizer, list[torch.Tensor]]]:
    """Start a run in this process, on new folders or on those of one before."""
    from smart_infinity import SmartOptimizer

    params = parameters()
    optimizer = SmartOptimizer(params, devices=list(folders), tile=TILE, **OPTIONS, **options)
    try:
        yield optimizer, params
    except BaseException:
        optimizer.array.kill()
        raise
    optimizer.close()


def give_gradients(params: Sequence[torch.Tensor], step: int) -> None:
    """Set the gradients of the step after `step`."""
    for i, param in enumerate(params):
        param.grad = gradient(i, step)


def train(optimizer: SmartOptimizer, params: Sequence[torch.Tensor], steps: int) -> None:
    """Take steps, and wait until the last is durable."""
    for _ in range(steps):
        give_gradients(params, optimizer.steps[0])
        optimizer.step()
    optimizer.flush()


def stop_in(phase: str, folders: Sequence[Path], steps: int) -> None:
    """Take steps, begin one more, and kill all devices in a phase of its commit."""
    with started(folders) as (optimizer, params):
        train(optimizer, params, steps)
        optimizer.array.commit = lambda *given, **options: None  # type: ignore[method-assign]
        give_gradients(params, steps)
        optimizer.step()
        first, *others = optimizer.array.devices
        note = {"note": f'{{"steps":{steps + 1},"extra":{{}}}}'}
        at = PHASES.index(phase)
        if at >= PHASES.index("one prepared"):
            first.command(Kind.PREPARE, Kind.PREPARED, note, arg=steps + 1)
        if at >= PHASES.index("all prepared"):
            for device in others:
                device.command(Kind.PREPARE, Kind.PREPARED, note, arg=steps + 1)
        if at >= PHASES.index("one committed"):
            first.command(Kind.COMMIT, Kind.DONE)
        if at >= PHASES.index("all committed"):
            for device in others:
                device.command(Kind.COMMIT, Kind.DONE)
        for device in optimizer.array.devices:
            assert device.process is not None
            device.process.send_signal(signal.SIGKILL)
        optimizer.array.kill()
