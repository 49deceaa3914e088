"""`distill` from users' scripts: alone, starting its own ranks, and under the real torchrun."""

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shorthaul.errors import UserError
from torch import nn

import pipe_bd
from pipe_bd import BlockPair, Plan, Stage, distill
from pipe_bd.api import run_here, validate
from pipe_bd.blocks import Task
from pipe_bd.losses import MSE
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import row_ranges
from pipe_bd.rng import derive
from pipe_bd.source import tensor_source

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def pairs(n: int = 3) -> list[BlockPair]:
    torch.manual_seed(0)
    return [
        BlockPair(
            f"b{i}", nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)), MSE(), SGD
        )
        for i in range(n)
    ]  # fmt: skip


def test_sequential_is_what_a_person_would_write_bit_by_bit() -> None:
    x = torch.randn(20, 4)
    ours, plain = pairs(), pairs()
    distill(ours, x, schedule="sequential", batch_size=5, steps=6, seed=9)
    source = tensor_source(x, 5, steps=6, seed=9)
    for block, pair in enumerate(plain):
        student = pair.student.train()
        optimizer = SGD(student.parameters())
        for step in range(6):
            with torch.no_grad():
                inputs = source.load(step, 0, 5).x
                for before in plain[:block]:
                    inputs = before.teacher(inputs)
                target = pair.teacher(inputs)
            torch.manual_seed(derive(9, "dropout", pair.name, "student", step, 0))
            loss = F.mse_loss(student(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for a, b in zip(ours, plain, strict=True):
        for key, value in a.student.state_dict().items():
            assert torch.equal(value, b.student.state_dict()[key])


def test_the_result_says_what_happened() -> None:
    ours = pairs()
    result = distill(ours, torch.randn(20, 4), batch_size=5, devices=1)
    assert (result.schedule, result.steps, result.batch) == ("ahd", 4, 5)
    assert result.plan == Plan.joint(3, 1)
    assert {b: list(c["student"]) for b, c in result.losses.items()} == {
        f"b{i}": [0, 1, 2, 3] for i in range(3)
    }
    assert result.total("teacher_calls") == {f"b{i}": 4 for i in range(3)}
    assert result.total("loader_rows") == 20
    assert result.wall_s > 0
    assert len(result.shares()) == 1
    document = result.to_dict()
    assert document["losses"]["b0"]["student"]["3"] == result.losses["b0"]["student"][3]
    assert result.period_s() > 0


def test_the_callers_world_is_left_as_it_was() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    ours = pairs()
    torch.set_rng_state(state)
    x = torch.arange(40.0).view(10, 4)
    with torch.no_grad():
        distill(ours, x, batch_size=5, schedule="sequential")
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for pair in ours for p in pair.student.parameters())
    assert all(p.grad is None for pair in ours for p in pair.student.parameters())
    assert not any(pair.teacher.training for pair in ours)


def test_it_may_be_called_again_and_goes_on_from_there() -> None:
    ours = pairs()
    losses = [
        distill(ours, torch.ones(10, 4), batch_size=5, schedule="sequential", steps=20)
        .losses["b0"]["student"]
        for _ in range(2)
    ]  # fmt: skip
    assert losses[1][0] < losses[0][0]


X = torch.ones(12, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "dpo"}, "unknown schedule 'dpo'"),
        ({"batch_size": 0}, "batch size 0 is not positive"),
        ({"steps": 0}, "0 steps leave nothing to train on"),
        ({"depth": 0}, "depth is 0"),
        ({"devices": 0}, "devices is 0"),
        ({"data": X[:0]}, "the data is empty"),
        ({"devices": 2, "plan": Plan.pipeline([1, 2])}, r"does not cover block 2: it ends at blo"),
        ({"devices": 2, "plan": Plan.pipeline([1, 2, 4])}, "names block 3, but the model has 3"),
        ({"devices": 2, "plan": Plan((Stage(1, 2, 2),))}, "does not cover block 0"),
        (
            {"devices": 2, "plan": Plan.pipeline([1, 2, 3])},
            "needs 3 devices, but there are 2",
        ),
        (
            {"devices": 9, "plan": Plan.joint(3, 9), "batch_size": 4},
            "split over 9 devices but have only 4 rows",
        ),
        (
            {"devices": 2, "schedule": "dpu", "plan": Plan.joint(3, 2)},
            "schedule 'dpu' gives each stage one device, the plan has one of 2: use 'ahd'",
        ),
        (
            {"devices": 2, "schedule": "joint", "teacher_mode": "train"},
            "the teacher is in train mode and batches are split over 2 devices",
        ),
        (
            {"devices": 2, "schedule": "dp", "teacher_mode": "train"},
            "the teacher is in train mode and batches are split over 2 devices",
        ),
        (
            {"devices": 9, "schedule": "dp", "batch_size": 4},
            "split over 9 devices but have only 4 rows",
        ),
        (
            {"devices": 2, "plan": Plan((Stage(0, 2, 2),), blocks=("x", "y", "z"))},
            r"the plan is for 3 blocks \(x, y, z\), the task has 3 blocks",
        ),
        ({"schedule": "ls", "assignment": (0, 1, 0)}, "must give one of 1 ranks for each of 3"),
        ({"schedule": "ls", "assignment": (0,)}, "must give one of 1 ranks for each of 3 blocks"),
        ({"plan": "nowhere.json"}, r"nowhere\.json: cannot be read"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_started(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("pipe_bd.api.run_ranks", started)
    given = {"data": X, "batch_size": 6, **options}
    with pytest.raises(UserError, match=message) as error:
        distill(pairs(), **given)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_student_with_batchnorm_is_not_split_unless_asked() -> None:
    student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    task = Task([BlockPair("norm", nn.Linear(4, 4), student)], tensor_source(X, 6))
    plan = Plan.joint(1, 2)
    with pytest.raises(UserError, match=r"block 0.* allows groups of at most 1"):
        validate(task, plan, Options(devices=2, plan=plan))
    for policy in ("sync", "local"):
        validate(task, plan, Options(devices=2, plan=plan, batchnorm=policy))
    student.eval()
    validate(task, plan, Options(devices=2, plan=plan))


def test_public_names_are_there() -> None:
    assert all(hasattr(pipe_bd, name) for name in pipe_bd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        pipe_bd.distil  # noqa: B018


def test_planning_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, pipe_bd.planner, pipe_bd.simulator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- scripts. What they define lives in __main__; there is no guard.

COMMON = """
import random, sys
import numpy, torch
from torch import nn
from pipe_bd import BlockPair, Plan, distill
from shorthaul.errors import UserError

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
    def forward(self, x):
        return torch.relu(self.layer(x))

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 20
    def __getitem__(self, n): return torch.full((4,), n / 20) + torch.rand(4), n

def make():
    torch.manual_seed(0)
    return [BlockPair(f"b{i}", Own(), Own(), lambda a, b: (a - b).abs().mean(),
                      lambda p: torch.optim.SGD(p, lr=0.1)) for i in range(3)]

def weights(pairs):
    return torch.cat([p.detach().flatten() for pair in pairs for p in pair.student.parameters()])

def state():
    return (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist())
"""

SPAWNING = (
    COMMON
    + """
import beside
reference, ours, streamed, planned = make(), make(), make(), make()
before = state()
distill(reference, Rows(), schedule="sequential", batch_size=5, steps=6)
assert torch.equal(weights(reference), weights(reference))
distill(ours, Rows(), schedule="dpu", devices=2, batch_size=5, steps=6, plan=Plan.pipeline([1, 3]))
assert torch.equal(weights(ours), weights(reference)), "spawned ranks differ"
assert not torch.equal(weights(ours), weights(make())), "nothing was learnt"

loader = torch.utils.data.DataLoader(Rows(), batch_size=5, shuffle=True)
for pair in streamed:
    pair.loss = beside.loss  # a module beside the script
result = distill(streamed, loader, schedule="ahd", devices=2, plan=Plan.joint(3, 2), steps=6)
assert result.total("loader_reads") == 6, result.total("loader_reads")
result = distill(planned, Rows(), devices=2, batch_size=5)  # measured and planned
assert state() == before, "the caller's generators moved"
print("plan", result.plan.shape())
"""
)

TORCHRUN = (
    COMMON
    + """
import os, torch.distributed as dist
rank = int(os.environ["RANK"])
reference = make()
torch.manual_seed(100 + rank)
before = state()
runs = {
    "dpu": dict(schedule="dpu", plan=Plan.pipeline([1, 3])),
    "tr": dict(schedule="tr", plan=Plan.pipeline([2, 3])),
    "ls": dict(schedule="ls", assignment=(0, 1, 0)),
    "joint": dict(schedule="joint"),
    "planned": dict(),
    "one of two": dict(schedule="sequential", devices=1),
}
students = {}
for name, options in runs.items():
    ours = make() ; torch.manual_seed(100 + rank)
    distill(ours, Rows(), batch_size=5, steps=6, **options)
    students[name] = weights(ours)
    everyone = [torch.empty_like(students[name]) for _ in range(2)]
    dist.all_gather(everyone, students[name])
    assert torch.equal(*everyone), f"{name}: ranks hold different students"
for name in ("dpu", "tr", "ls"):
    assert torch.equal(students[name], students["one of two"]), name
assert (students["joint"] - students["one of two"]).abs().max() < 1e-6
assert not torch.equal(students["dpu"], weights(make()))
torch.manual_seed(100 + rank)
assert state() == before, "the caller's generators moved"

for options, word in ((dict(devices=3), "3 devices were asked for, but only 2 ranks"),
                      (dict(schedule="dp", devices=1), "dp uses every rank")):
    try:
        distill(make(), Rows(), batch_size=5, **options)
    except UserError as error:
        assert word in str(error), error
    else:
        raise AssertionError(word)
dist.destroy_process_group()
print(f"rank {rank} done")
"""
)


@pytest.mark.timeout(120)
def test_a_script_without_a_guard_starts_its_own_ranks(tmp_path: Path, script: Any) -> None:
    (tmp_path / "beside.py").write_text("def loss(a, b):\n    return (a - b).square().mean()\n")
    done = script(tmp_path / "user.py", SPAWNING)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("plan 0-")
    assert done.stdout.count("plan") == 1  # the script ran once, not once per rank


@pytest.mark.timeout(120)
def test_a_script_under_the_real_torchrun(tmp_path: Path, script: Any) -> None:
    done = script(tmp_path / "user.py", TORCHRUN, torchrun=2)
    assert done.returncode == 0, done.stderr[-3000:]
    # both ranks write to one pipe: a line of one may end up inside a line of the other
    assert sorted(re.findall(r"rank \d done", done.stdout)) == ["rank 0 done", "rank 1 done"]


def test_row_ranges_of_a_task_cover_it() -> None:
    assert row_ranges(10, 4) == [(0, 3), (3, 6), (6, 8), (8, 10)]


def test_students_may_be_handed_as_a_task() -> None:
    task = build("toy-vgg", steps=2)
    before = copy.deepcopy(task.pairs[0].student.state_dict())
    result = distill(task, schedule="sequential")
    assert result.steps == 2
    after = task.pairs[0].student.state_dict()
    assert not all(torch.equal(v, after[k]) for k, v in before.items())
    again = run_here(task, Options(schedule="sequential", device="cpu"))
    assert again.losses.keys() == result.losses.keys()
