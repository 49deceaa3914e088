"""SIGKILL anywhere: the state is that of a whole step, and training goes on to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from smart_testing import differing_bits

from smart_infinity import SmartOptimizer, keep
from smart_infinity.client import DeviceOptions
from smart_infinity.errors import DeviceLost
from smart_infinity.experiments import _crash_child
from smart_infinity.experiments._crash_child import gradient, parameters
from smart_infinity.wire import Kind

CHILD = Path(str(_crash_child.__file__))


class Reference:
    """Parameters after any number of steps, by torch, computed once."""

    def __init__(self) -> None:
        self.params = parameters()
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-3, weight_decay=0.01, fused=True)
        self.after = [[p.detach().clone() for p in self.params]]

    def __getitem__(self, step: int) -> list[torch.Tensor]:
        while len(self.after) <= step:
            for i, param in enumerate(self.params):
                param.grad = gradient(i, len(self.after) - 1)
            self.optimizer.step()
            self.after.append([p.detach().clone() for p in self.params])
        return self.after[step]


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.set_num_threads(1)
    return Reference()


def run_and_kill(folders: list[Path], rng: random.Random) -> tuple[int, int, str]:
    """Start the child, kill it or a device at some moment; the last steps it has told of."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), *map(str, folders)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert line[:1] == ["pids"], (line, process.stderr.read() if process.stderr else "")
    pids = [int(word) for word in line[1:]]
    victim = rng.choice([process.pid, *pids])
    for _ in range(rng.randrange(8)):
        process.stdout.readline()
    time.sleep(rng.random() * 0.02)
    os.kill(victim, signal.SIGKILL)
    begin = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 30
    if victim != process.pid:
        assert process.returncode == 1
        assert "is lost: killed by SIGKILL" in err
        assert str(folders[pids.index(victim)]) in err
    told = [line.split() for line in out.splitlines() if line.startswith("durable")]
    durable = max((int(words[1]) for words in told), default=-1)
    returned = max((int(words[3]) for words in told), default=0)
    for pid in pids:  # nobody is left
        for _ in range(200):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"device {pid} outlived its host")
    return durable, returned, err


def check(folders: list[Path], reference: Reference, durable: int, returned: int) -> int:
    found = keep.inspect(folders)
    assert all(one.clean for one in found)
    params = [torch.zeros_like(p).requires_grad_() for p in parameters()]
    with SmartOptimizer(params, devices=folders, resume=True) as optimizer:
        step = optimizer.array.step
        assert optimizer.steps == [step] * len(params)
    assert differing_bits(params, reference[step]) == 0
    assert durable <= step
    # A step whose parameters came back may be lost, and no more than that one.
    assert returned - 1 <= step
    return step


def rounds(count: int, tmp_path: Path, reference: Reference, seed: int) -> None:
    rng = random.Random(seed)
    folders = [tmp_path / "a", tmp_path / "b"]
    last = 0
    for _ in range(count):
        durable, returned, _ = run_and_kill(folders, rng)
        step = check(folders, reference, durable, max(returned, last))
        assert step >= last
        last = step
    assert last > 0


@pytest.mark.system
def test_killed_at_random_moments(tmp_path: Path, reference: Reference) -> None:
    rounds(5, tmp_path, reference, 0)


@pytest.mark.slow
@pytest.mark.system
def test_killed_fifty_times(tmp_path: Path, reference: Reference) -> None:
    rounds(50, tmp_path, reference, 1)


def prepared(folders: list[Path], steps: int) -> tuple[Any, list[torch.Tensor]]:
    """An optimizer that has taken `steps` steps."""
    params = parameters()
    optimizer = SmartOptimizer(params, devices=folders, tile=4096, lr=1e-3, weight_decay=0.01)
    for step in range(steps):
        for i, param in enumerate(params):
            param.grad = gradient(i, step)
        optimizer.step()
    optimizer.flush()
    return optimizer, params


@pytest.mark.parametrize("moment", ["updated", "one prepared", "all prepared", "one committed"])
def test_killed_between_the_phases_of_a_commit(
    moment: str, tmp_path: Path, reference: Reference
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    optimizer, params = prepared(folders, 3)
    optimizer.array.commit = lambda *args, **options: None
    for i, param in enumerate(params):
        param.grad = gradient(i, 3)
    optimizer.step()
    first, second = optimizer.array.devices
    note = {"note": '{"steps":4,"extra":{}}'}
    if moment != "updated":
        first.command(Kind.PREPARE, Kind.PREPARED, note, arg=4)
    if moment in ("all prepared", "one committed"):
        second.command(Kind.PREPARE, Kind.PREPARED, note, arg=4)
    if moment == "one committed":
        first.command(Kind.COMMIT, Kind.DONE)
    for device in optimizer.array.devices:
        device.process.send_signal(signal.SIGKILL)
    optimizer.array.kill()
    assert check(folders, reference, 3, 3) == 3
    # And from there on to the bit.
    optimizer, params = prepared(folders, 0)
    for step in range(3, 6):
        for i, param in enumerate(params):
            param.grad = gradient(i, step)
        optimizer.step()
    optimizer.close()
    assert differing_bits(params, reference[6]) == 0


def test_a_stopped_device_is_named(tmp_path: Path) -> None:
    params = parameters()
    optimizer = SmartOptimizer(
        params, devices=[tmp_path / "a", tmp_path / "b"], tile=4096,
        options=DeviceOptions(timeout_s=4.0),
    )  # fmt: skip
    process = optimizer.array.devices[1].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    for i, param in enumerate(params):
        param.grad = gradient(i, 0)
    with pytest.raises(DeviceLost, match=r"/b is lost: no sign of life"):
        optimizer.step()
    assert time.monotonic() - begin < 30
    process.send_signal(signal.SIGCONT)
    optimizer.array.kill()


def test_a_lost_device_ends_the_step_and_the_others_keep_theirs(
    tmp_path: Path, reference: Reference
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    optimizer, params = prepared(folders, 2)
    process = optimizer.array.devices[0].process
    assert process is not None
    process.kill()
    for i, param in enumerate(params):
        param.grad = gradient(i, 2)
    with pytest.raises(DeviceLost, match="killed by SIGKILL"):
        optimizer.step()
    optimizer.array.kill()
    assert check(folders, reference, 2, 2) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.system
def test_no_space_is_said_with_the_bytes_that_are_needed(tmp_path: Path) -> None:
    from shorthaul.errors import UserError

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(UserError, match="refuses O_DIRECT: give a folder on another one"):
            SmartOptimizer(parameters(), devices=[small / "a"], tile=4096)
        options = DeviceOptions(buffered=True)
        with pytest.raises(UserError, match=r"needs \d+ bytes \(\d+ MiB\), there are"):
            SmartOptimizer(parameters(), devices=[small / "a"], tile=4096, options=options)
        assert not (small / "a" / "state.smart").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_file_cut_off_under_it_leaves_the_committed_step(
    tmp_path: Path, reference: Reference
) -> None:
    from shorthaul.errors import Fault

    folders = [tmp_path / "a"]
    optimizer, params = prepared(folders, 2)
    file = folders[0] / "state.smart"
    whole = file.stat().st_size
    held = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(whole // 2)
    for i, param in enumerate(params):
        param.grad = gradient(i, 2)
    with pytest.raises(Fault, match=r"tile \d+: (reading|the)"):
        optimizer.step()
    optimizer.array.kill()
    file.write_bytes(held)
    assert check(folders, reference, 2, 2) == 2


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt", "raise SystemExit(3)", "del o"])
def test_a_program_that_just_ends_keeps_its_last_step(end: str, tmp_path: Path) -> None:
    script = f"""
import torch
from smart_infinity import SmartOptimizer
p = torch.zeros(3000, requires_grad=True)
o = SmartOptimizer([p], devices=[{str(tmp_path / "a")!r}], tile=1024)
for _ in range(3):
    p.grad = torch.ones(3000)
    o.step()
print(o.array.devices[0].process.pid, flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid = int(done.stdout)
    assert keep.inspect([tmp_path / "a"])[0].step == 3
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
