"""A bench runs every competitor as often, from the same start, and counts exactly."""

import pytest

from pipe_bd.api import clone
from pipe_bd.bench import Entry, bench
from pipe_bd.models import build
from pipe_bd.plan import Plan
from pipe_bd.verify import compare


def test_rounds_are_complete_and_counts_exact() -> None:
    task = build("toy-gpt", steps=3)
    before = clone(task)
    pipeline = Plan.even(6, 2)
    entries = [
        Entry("reference", "sequential"),
        Entry("dp", "dp"),
        Entry("ls", "ls"),
        Entry("dpu", "dpu", pipeline),
        Entry("chosen", "ahd"),
        Entry("dpu again", "dpu", pipeline),
    ]
    found = bench(task, 2, entries, 2, trials=1)
    labels = [e.label for e in entries]
    for table in (found.wall_s, found.cpu_s, found.period_s, found.shares, found.counts):
        assert list(table) == labels
    assert all(len(v) == 2 for v in found.cpu_s.values())
    assert all(v > 0 for row in found.wall_s.values() for v in row)
    calls = {label: counts["teacher_calls"] / 3 for label, counts in found.counts.items()}
    assert calls == {
        **{"reference": 6, "dp": 42, "ls": 21, "dpu": 6, "dpu again": 6},
        "chosen": calls["chosen"],
    }
    assert found.plans["chosen"]["stages"][0]["first"] == 0
    assert found.plans["dp"] is None
    assert found.ratio("dp", "dp")["median"] == pytest.approx(1.0)
    assert found.noise("dpu", "dpu again")["spread"] >= 0
    assert found.medians("wall_s")["ls"] == pytest.approx(sum(found.wall_s["ls"]) / 2)
    assert len(found.profile["blocks"]) == 6
    assert compare(before, task)[0]  # what is compared starts from the same students
