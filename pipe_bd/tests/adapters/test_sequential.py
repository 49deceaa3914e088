"""Chains of modules as tasks."""

from __future__ import annotations

import pytest
import torch
from shorthaul.errors import UserError
from torch import nn

from pipe_bd.adapters import from_sequential
from pipe_bd.api import distill
from pipe_bd.losses import SoftCrossEntropy
from pipe_bd.stitch import stitch, teacher_of


def chain(hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


DATA = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def test_cuts_make_blocks_and_the_chain_is_unchanged():
    teacher = chain()
    expected = teacher(DATA)
    task = from_sequential(
        teacher,
        list(chain()),
        cuts=[2, 4],
        source=DATA,
        batch_size=8,
        steps=2,
        last_loss=SoftCrossEntropy(),
    )
    assert [len(p.teacher) for p in task.pairs] == [2, 2, 1]
    assert isinstance(task.pairs[-1].objective, SoftCrossEntropy)
    assert torch.equal(teacher_of(task)(DATA), expected)
    result = distill(task, schedule="sequential")
    assert list(result.losses) == ["block0", "block1", "block2"]
    assert stitch(task)(DATA).shape == (32, 3)


def test_a_cut_before_an_inplace_relu_does_not_damage_the_target():
    teacher = chain()
    task = from_sequential(
        teacher, lambda name, block: nn.Sequential(nn.Linear(4, 8)) if name == "a" else None,
        cuts=[1, 4], names=["a", "b", "c"], source=DATA, batch_size=8, steps=2,
    )  # fmt: skip
    distill(task, schedule="sequential")
    assert teacher[1].inplace  # the user's own module is as it was
    x = task.pairs[0].teacher(DATA)
    before = x.clone()
    task.pairs[1].teacher(x)
    assert torch.equal(x, before)


def test_blocks_that_are_kept_are_copies_that_do_not_train():
    task = from_sequential(chain(), {"block2": nn.Linear(8, 6)}, source=DATA, batch_size=8, steps=3)
    result = distill(task, schedule="sequential")
    assert result.losses["block0"] == {"student": {}}
    assert len(result.losses["block2"]["student"]) == 3
    assert torch.equal(task.pairs[0].student.weight, task.pairs[0].teacher.weight)


@pytest.mark.parametrize(
    ("student", "options", "words"),
    [
        (chain(), {"cuts": [4, 2]}, "must grow"),
        (chain(), {"cuts": [9]}, "between 1 and 4"),
        ([nn.Linear(4, 8)], {}, "5 blocks, the student 1"),
        ({"blok2": nn.Linear(8, 6)}, {}, "no block 'blok2'"),
        (lambda name, block: None, {}, "no block is replaced"),
        (chain(), {"names": ["a"]}, "1 names for 5 blocks"),
    ],
)
def test_bad_chains(student, options, words):
    with pytest.raises(UserError, match=words):
        from_sequential(chain(), student, source=DATA, batch_size=8, **options)


def test_a_module_that_is_no_chain():
    with pytest.raises(UserError, match=r"Linear, not a chain.*from_named"):
        from_sequential(nn.Linear(2, 2), nn.Linear(2, 2), source=DATA, batch_size=8)


def test_a_student_with_nothing_to_train_is_named():
    task = from_sequential(chain(), {"block1": nn.Tanh()}, source=DATA, batch_size=8, steps=1)
    with pytest.raises(UserError, match="'block1' has no parameter to train"):
        distill(task, schedule="sequential")
