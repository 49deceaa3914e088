"""The whole student from chosen blocks."""

from __future__ import annotations

import pytest
import torch
from shorthaul.errors import UserError
from torch import nn

from pipe_bd.blocks import BlockPair, Task
from pipe_bd.source import tensor_source
from pipe_bd.stitch import block_errors, stitch, teacher_of

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def task():
    torch.manual_seed(0)
    pairs = [
        BlockPair(f"b{i}", nn.Linear(3, 3), {"a": nn.Linear(3, 3), "b": nn.Dropout(0.5)})
        for i in range(2)
    ]
    return Task(pairs, tensor_source(X, 4), entry=nn.Linear(3, 3))


def test_one_choice_for_all_or_one_per_block(task):
    x = task.entry(X)
    a0, a1 = (p.candidates["a"].module for p in task.pairs)
    assert torch.equal(stitch(task, "a")(X), a1(a0(x)))
    assert torch.equal(stitch(task, {"b0": "a", "b1": "b"})(X), a0(x))  # dropout, in eval mode
    assert torch.equal(teacher_of(task)(X), task.pairs[1].teacher(task.pairs[0].teacher(x)))


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (None, r"'b0' has several candidates \(a, b\)"),
        ({"b0": "a"}, "'b1' has several"),
        ("c", "'b0' has no candidate 'c'"),
        ({"b7": "a"}, "no block 'b7'"),
    ],
)
def test_choices_that_cannot_be(task, choose, words):
    with pytest.raises(UserError, match=words):
        stitch(task, choose)


def test_errors_per_candidate_leave_modes_alone(task):
    dropout = task.pairs[0].candidates["b"].module
    assert dropout.training
    errors = block_errors(task, X)
    assert set(errors) == {"b0", "b1"}
    assert errors["b0"]["a"] > 0
    assert dropout.training
    task.pairs[0].candidates["a"].module.load_state_dict(task.pairs[0].teacher.state_dict())
    assert block_errors(task, X)["b0"]["a"] == 0
