"""The closed forms against numbers worked out by hand, and against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipe_bd.blocks import BlockPair, Boundary, Candidate, Task
from pipe_bd.formulas import Counts, differences, expected, gradient_bytes
from pipe_bd.losses import NormalisedMSE
from pipe_bd.plan import Plan, Stage, row_ranges
from pipe_bd.runtime.relay import overlaps
from pipe_bd.source import tensor_source

BOUNDS = [Boundary((n,), torch.float32) for n in (1, 2, 3, 4)]  # three blocks


def counts(schedule: str, plan: Plan | None = None, **more: object) -> Counts:
    given = {
        "blocks": 3,
        "ranks": 2,
        "steps": 5,
        "batch": 10,
        "plan": plan,
        "boundaries": BOUNDS,
        "gradients": [100, 200, 300],
        **more,
    }
    return expected(schedule, **given)  # type: ignore[arg-type]


def test_by_hand() -> None:
    # Per step: dp calls 2·6, rows 10·6, reads 2·3, rows 3·10, bytes 2·(2−1)·600.
    assert counts("dp") == Counts(60, 300, 30, 150, 0, 0, 6000)
    assert counts("ls") == Counts(30, 300, 15, 150, 0, 0, 0)
    # joint: calls 2·3, each row through each block once, two readers of halves.
    assert counts("joint", Plan.joint(3, 2)) == Counts(30, 150, 10, 50, 0, 0, 6000)
    # dpu cut after block 1: the boundary of 3 floats a row.
    assert counts("dpu", Plan.pipeline([2, 3])) == Counts(15, 150, 5, 50, 5 * 10 * 12, 5, 0)
    # [2,1]: the group of two sums blocks 0 and 1; two messages.
    plan = Plan((Stage(0, 1, 2), Stage(2, 2, 1)))
    assert counts("ahd", plan, ranks=3) == Counts(25, 150, 10, 50, 600, 10, 5 * 2 * 300)


def test_a_stream_is_read_once_and_its_rows_handed_on() -> None:
    plan = Plan((Stage(0, 1, 2), Stage(2, 2, 1)))
    found = counts("ahd", plan, ranks=3, streaming=True)
    assert (found.loader_reads, found.loader_rows) == (5, 50)
    assert found.relay_bytes == 600 + 5 * 5 * 4  # five of ten rows of one float
    assert found.relay_messages == 10 + 5


def test_what_travels_along_is_counted() -> None:
    carry = {"mask": Boundary((7,), torch.bool)}
    found = counts("dpu", Plan.pipeline([2, 3]), carry=carry)
    assert found.relay_bytes == 5 * (10 * 12 + 10 * 7)
    assert found.relay_messages == 10


@settings(deadline=None)
@given(batch=st.integers(1, 200), senders=st.integers(1, 9), receivers=st.integers(1, 9))
def test_row_overlaps_partition_the_batch(batch: int, senders: int, receivers: int) -> None:
    table = overlaps(batch, senders, receivers)
    rows = [row for _, _, lo, hi in table for row in range(lo, hi)]
    assert rows == list(range(batch))  # each row once, in order
    for s, r, lo, hi in table:
        for which, count in ((s, senders), (r, receivers)):
            first, last = row_ranges(batch, count)[which]
            assert first <= lo < hi <= last
    assert len(table) <= senders + receivers - 1
    assert len({(s, r) for s, r, _, _ in table}) == len(table)


def test_gradient_bytes_are_of_what_is_trained() -> None:
    frozen = nn.Linear(2, 3)
    frozen.bias.requires_grad_(False)
    library = {"a": nn.Linear(2, 3), "b": nn.Linear(2, 3, bias=False)}
    pairs = [
        BlockPair("plain", nn.Linear(2, 3), nn.Linear(2, 3)),
        BlockPair("frozen", nn.Linear(2, 3), frozen),
        BlockPair("library", nn.Linear(2, 3), library, NormalisedMSE()),
        BlockPair("kept", nn.ReLU(), Candidate(nn.ReLU(), steps=0).module),
        BlockPair("double", nn.Linear(2, 3), nn.Linear(2, 3).double()),
    ]
    pairs[3].candidates["student"].steps = 0
    task = Task(pairs, tensor_source(torch.ones(2, 2), 2))
    assert gradient_bytes(task) == [
        4 * (9 + 1),
        4 * (6 + 1),
        4 * (9 + 6 + 2 + 1),
        0,
        8 * (9 + 1),
    ]


def test_differences_name_the_field() -> None:
    a = counts("ls")
    assert differences(a, a) == {}
    b = Counts(**{**a.to_dict(), "loader_reads": 16})
    assert differences(a, b) == {"loader_reads": [15, 16]}


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_one_rank_or_many_the_teacher_sees_each_row_once(ranks: int) -> None:
    for plan in (Plan.joint(3, ranks), Plan((Stage(0, 0, ranks), Stage(1, 2, 1)))):
        assert counts("ahd", plan, ranks=ranks + 1).teacher_rows == 5 * 10 * 3
