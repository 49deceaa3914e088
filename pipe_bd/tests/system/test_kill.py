"""However a rank or the launcher ends, all end, somebody says why, and the run can go on.

Processes are found by the folder for temporary files that each test gives its run: its name is in
the command line of every rank.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from shorthaul import atomic
from shorthaul.launch import RankDied
from torch import Tensor, nn

from pipe_bd.api import run_here
from pipe_bd.blocks import BlockPair, Task
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import Plan, Stage
from pipe_bd.runtime.checkpoint import load_students
from pipe_bd.source import tensor_source

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

DEADLINE_S = 30
STEPS = 160
HYBRID = Plan((Stage(0, 1, 2), Stage(2, 3, 1), Stage(4, 5, 1)))
EVEN = Plan.even(6, 3)


class Run:
    """A ``pipe-bd train`` in the background."""

    def __init__(self, folder: Path, plan: Plan, *extra: str) -> None:
        self.marker = str(folder / "temporary")
        self.checkpoint = folder / "checkpoint"
        (folder / "temporary").mkdir(exist_ok=True)
        plan.save(folder / "plan.json")
        self.devices = plan.devices_used
        command = [
            *(sys.executable, "-m", "pipe_bd.cli", "train", "--model", "toy-gpt"),
            *("--devices", str(self.devices), "--schedule", "ahd"),
            *("--plan", str(folder / "plan.json"), "--steps", str(STEPS)),
            *("--checkpoint", str(self.checkpoint), "--checkpoint-every", "10", *extra),
        ]
        environment = {**os.environ, "TMPDIR": self.marker, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks that are alive, zombies left out."""
        found = {}
        for process in psutil.process_iter():
            try:
                if any(self.marker in word for word in process.cmdline()):
                    found[int(process.environ()["RANK"])] = process
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied, KeyError):
                continue
        return found

    def wait_for_step(self, step: int) -> None:
        """Until some block is on disk at this step or a later one."""
        deadline = time.monotonic() + 60
        while not any(
            int(re.sub(r"\D", "", p.name)) >= step for p in self.checkpoint.rglob("step-*.ckpt")
        ):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.01)

    def ends(self) -> tuple[int, str]:
        """Exit code and standard error; everything must be gone within the deadline."""
        started = time.monotonic()
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        while self.ranks():
            assert time.monotonic() - started < DEADLINE_S, f"orphans: {self.ranks()}"
            time.sleep(0.05)
        assert time.monotonic() - started < DEADLINE_S
        return self.process.returncode, errors

    def clean(self) -> None:
        for process in [*self.ranks().values(), self.process]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def begin(plan: Plan, *extra: str) -> Run:
        started.append(Run(tmp_path, plan, *extra))
        return started[-1]

    yield begin
    for run in started:
        run.clean()


def final(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {block: c["student"] for block, c in load_students(folder).items()}


def equal(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return all(torch.equal(v, b[block][k]) for block, state in a.items() for k, v in state.items())


def sequential() -> dict[str, dict[str, Tensor]]:
    task = build("toy-gpt", steps=STEPS, optimizer="adamw")
    run_here(task, Options(schedule="sequential", device="cpu"))
    return {p.name: p.student.state_dict() for p in task.pairs}


def joined(folder: Path) -> dict[str, dict[str, Tensor]]:
    run = Run(folder, HYBRID)
    assert run.process.wait(120) == 0
    run.clean()
    return final(run.checkpoint)


@pytest.mark.parametrize(("plan", "victim"), [(EVEN, 1), (HYBRID, 1)], ids=["dpu", "hybrid"])
def test_a_killed_rank_ends_all_and_the_run_resumes_bit_by_bit(
    start: Callable[..., Run], plan: Plan, victim: int, tmp_path: Path
) -> None:
    run = start(plan)
    run.wait_for_step(40)
    alive = run.ranks()
    assert sorted(alive) == list(range(run.devices))
    alive[victim].send_signal(signal.SIGKILL)
    code, errors = run.ends()
    assert code == 1
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith(f"pipe-bd: error: rank {victim} was killed by SIGKILL")
    assert not list(Path(run.marker).glob("pipe-bd-*")), "a temporary folder was left"
    newest = [
        max(int(re.sub(r"\D", "", p.name)) for p in block.glob("*.ckpt"))
        for block in run.checkpoint.glob("block-*")
    ]
    assert max(newest) < STEPS, "the rank was killed too late to show anything"

    again = start(plan, "--resume")
    assert again.process.wait(100) == 0, again.process.communicate()
    assert not list(run.checkpoint.rglob("*.tmp"))
    assert atomic.read_json(run.checkpoint / "task.json")["model"] == "toy-gpt"
    (tmp_path / "whole").mkdir()
    reference = sequential() if plan is EVEN else joined(tmp_path / "whole")
    assert equal(reference, final(run.checkpoint))


def test_a_stopped_rank_is_missed_and_named(start: Callable[..., Run]) -> None:
    run = start(EVEN, "--deadline", "6")
    run.wait_for_step(20)
    run.ranks()[2].send_signal(signal.SIGSTOP)
    code, errors = run.ends()
    assert code == 1
    assert errors.strip() == (
        "pipe-bd: error: rank 2 failed: Lost: no sign of life for 6 s (stage 2: block4 to block5)"
    )


def test_a_killed_launcher_takes_its_ranks_along(start: Callable[..., Run]) -> None:
    run = start(EVEN)
    run.wait_for_step(20)
    assert len(run.ranks()) == 3
    run.process.kill()
    code, _ = run.ends()
    assert code == -signal.SIGKILL


def test_an_interrupted_run_leaves_nobody(start: Callable[..., Run]) -> None:
    run = start(EVEN)
    run.wait_for_step(20)
    run.process.send_signal(signal.SIGINT)
    assert run.ends() == (130, "pipe-bd: error: interrupted\n")


class _Fails(nn.Module):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.layer, self.at, self.calls = nn.Linear(4, 4), at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls > self.at:
            raise ValueError("boom\nand a second line")
        return self.layer(x)


def _user_error() -> None:
    pairs = [BlockPair(f"b{i}", nn.Linear(4, 4), _Fails(3 if i == 1 else 99)) for i in range(3)]
    task = Task(pairs, tensor_source(torch.ones(8, 4), 4, steps=9))
    run_here(task, Options(schedule="dpu", devices=2, plan=Plan.pipeline([1, 3]), device="cpu"))


def test_an_exception_in_a_users_module_names_it_in_one_line(ranks: Any) -> None:
    said = r"^rank 1 failed: Fault: a student of block 'b1' failed at step 3: ValueError: boom$"
    with pytest.raises(RankDied, match=said):
        ranks(_user_error, 2)


UNDER_TORCHRUN = """
import os, signal, sys, torch
from torch import nn
from pipe_bd import BlockPair, Plan, distill
class Dies(nn.Linear):
    calls = 0
    def forward(self, x):
        Dies.calls += self.training
        if Dies.calls == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
torch.manual_seed(0)
linear = lambda: nn.Linear(4, 4)
pairs = [BlockPair("a", linear(), linear()), BlockPair("b", linear(), Dies(4, 4))]
plan = Plan.pipeline([1, 2])
distill(pairs, torch.ones(40, 4), batch_size=4, schedule="dpu", plan=plan, steps=500)
"""


def test_under_a_users_torchrun_a_killed_rank_ends_all(tmp_path: Path, script: Any) -> None:
    started = time.monotonic()
    done = script(tmp_path / "dies.py", UNDER_TORCHRUN, torchrun=2, timeout=60)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    for process in psutil.process_iter():
        try:
            alive = any(str(tmp_path) in word for word in process.cmdline())
        except psutil.Error:
            continue
        assert not alive
    assert time.monotonic() - started < DEADLINE_S + 15  # torch's own start is no part of it
