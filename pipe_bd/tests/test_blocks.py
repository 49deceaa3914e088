"""What is wrong with a task is said before anything runs, and looking changes nothing."""

from typing import Any

import pytest
import torch
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, Candidate, Projected, Task, check, freeze
from pipe_bd.source import tensor_source


def task(*pairs: BlockPair, x: Tensor | None = None, **options: Any) -> Task:
    return Task(list(pairs), tensor_source(torch.ones(4, 3) if x is None else x, 2), **options)


def pair(teacher: nn.Module, student: Any, name: str = "b") -> BlockPair:
    return BlockPair(name, teacher, student)


class Returns(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        if self.what == "raises":
            raise KeyError("no such head")
        return {"tuple": (x, x), "scalar": x.sum(), "rows": x[:1], "none": None}[self.what]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [pair(nn.Linear(3, 5), nn.Linear(3, 4), "conv")],
            r"block 'conv': student 'student' returns \(rows, 4\), its teacher \(rows, 5\): make "
            "the shapes agree or wrap the student in pipe_bd.Projected",
        ),
        (
            [pair(nn.Linear(3, 5), nn.Linear(2, 5))],
            r"student 'student' of block 'b' rejects its input of shape \(rows, 3\): mat1 and mat2",
        ),
        (
            [pair(nn.Linear(3, 5), nn.Linear(3, 5), "a"), pair(nn.Linear(4, 5), nn.Linear(5, 5))],
            r"teacher of block 'b' rejects its input of shape \(rows, 5\)",
        ),
        ([pair(Returns("tuple"), nn.Linear(3, 3))], "teacher of block 'b' returned tuple: wrap"),
        ([pair(nn.Linear(3, 3), Returns("tuple"))], "student 'student' of block 'b' returned tup"),
        ([pair(nn.Linear(3, 3), Returns("none"))], "returned NoneType"),
        ([pair(Returns("rows"), nn.Linear(3, 3))], r"turns 2 rows into a tensor of shape \(1, 3\)"),
        ([pair(Returns("scalar"), nn.Linear(3, 3))], r"turns 2 rows into a tensor of shape \(\)"),
        ([pair(nn.Linear(3, 3), Returns("raises"))], "rejects its input .*no such head"),
        (
            [pair(nn.Linear(3, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)))],
            "student 'student' of block 'b' changes its input in place.*inplace=False",
        ),
        (
            [pair(nn.Sequential(nn.ReLU(inplace=True)), nn.Linear(3, 3))],
            "teacher of block 'b' changes its input in place",
        ),
    ],
)
def test_what_does_not_fit_is_named(pairs: list[BlockPair], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check(task(*pairs))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(), "no blocks given"),
        (
            lambda: task(*[pair(nn.Linear(3, 3), nn.Linear(3, 3))] * 2),
            "block name 'b' is used twice",
        ),
        (lambda: pair(nn.Linear(3, 3), {}), "block 'b' has no student"),
        (
            lambda: pair(nn.ReLU(), {"x": nn.Linear(3, 3), "y": nn.Linear(3, 3)}).student,
            r"several candidates \(x, y\): choose one by name",
        ),
    ],
)
def test_a_task_that_is_none(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_boundaries_are_those_of_the_modules() -> None:
    entry = nn.Embedding(9, 6)
    ids = torch.zeros(4, 7, dtype=torch.int64)
    bounds = check(task(pair(nn.Linear(6, 2), nn.Linear(6, 2)), x=ids, entry=entry))
    assert [(b.shape, b.dtype) for b in bounds] == [
        ((7, 6), torch.float32),
        ((7, 2), torch.float32),
    ]
    assert bounds[0].bytes(10) == 10 * 7 * 6 * 4
    embedding = check(task(pair(nn.Embedding(9, 2), nn.Embedding(9, 2)), x=ids))
    assert [b.dtype for b in embedding] == [torch.int64, torch.float32]
    half = check(
        task(pair(nn.Linear(3, 3), nn.Linear(3, 3))), torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert [b.dtype for b in half] == [torch.float32, torch.bfloat16]


def test_looking_changes_neither_modes_nor_buffers_nor_generators() -> None:
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()

    teacher, student = block(), block()
    teacher[1].eval()  # a mode of its own below a parent in train mode
    student[2].eval()
    before = {k: v.clone() for k, v in {**teacher.state_dict(), **student.state_dict()}.items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    job = task(pair(teacher, student))
    check(job)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in teacher] == [True, False, True]
    assert [m.training for m in student] == [True, True, False]
    after = {**teacher.state_dict(), **student.state_dict()}
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    with pytest.raises(UserError):
        check(task(pair(teacher, nn.Sequential(nn.Linear(3, 3), nn.Linear(9, 9)))))
    assert [m.training for m in teacher] == [True, False, True]


def test_freezing_is_of_the_teacher_and_the_entry_only() -> None:
    entry, student = nn.Embedding(3, 3), nn.Linear(3, 3)
    teacher = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    job = task(pair(teacher, student), entry=entry)
    freeze(job, "eval")
    assert not teacher.training
    assert not any(p.requires_grad for m in (teacher, entry) for p in m.parameters())
    assert all(p.requires_grad for p in student.parameters())
    freeze(job, "train")
    assert teacher[1].training


def test_batchnorm_counts_only_while_it_trains() -> None:
    frozen = nn.BatchNorm1d(3).eval()
    assert not pair(nn.ReLU(), frozen).has_training_batchnorm()
    assert pair(nn.ReLU(), {"a": nn.ReLU(), "b": nn.BatchNorm1d(3)}).has_training_batchnorm()


def test_a_projected_student_keeps_its_maps() -> None:
    student = Projected(nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 5))
    check(task(pair(nn.Linear(3, 5), Candidate(student))))
    assert len(list(student.parameters())) == 6
    assert torch.equal(Projected(nn.ReLU(), None, None)(-torch.ones(1)), torch.zeros(1))


def test_side_inputs_reach_every_block() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: Tensor) -> Tensor:
            return x * by

    pairs = [pair(Scaled(), Scaled(), name) for name in ("a", "b")]
    seen: list[Tensor] = []

    def side(x: Tensor, carry: Any) -> list[dict[str, Tensor]]:
        seen.append(carry["by"])
        return [{"by": carry["by"]}, {"by": carry["by"] + 1}]

    source = tensor_source(torch.ones(4, 3), 2, carry={"by": torch.full((4, 3), 2.0)})
    bounds = check(Task(pairs, source, side=side))
    assert len(bounds) == 3
    assert seen[0].shape == (2, 3)


def test_modules_may_be_anywhere() -> None:
    # "meta" stands for a GPU, where a second run finds the modules of the first.
    there = [pair(nn.Linear(4, 3), nn.Linear(4, 3), "a"), pair(nn.Linear(3, 2), nn.Linear(3, 2))]
    for p in there:
        p.teacher.to("meta")
        p.student.to("meta")
    assert [b.shape for b in check(task(*there, x=torch.ones(6, 4)))] == [(4,), (3,), (2,)]


def test_weights_that_two_students_share_are_refused() -> None:
    shared = nn.Linear(4, 4)
    both = [pair(nn.Linear(4, 4), shared, "a"), pair(nn.Linear(4, 4), shared, "b")]
    with pytest.raises(
        UserError, match=r"of block 'b' shares weights with student .* of block 'a'"
    ):
        check(task(*both, x=torch.ones(6, 4)))
    kept = [pair(nn.Linear(4, 4), Candidate(shared, steps=0), n) for n in "ab"]
    check(task(*kept, x=torch.ones(6, 4)))
