"""Figures of a run are made of its reports."""

import json
import math
from typing import Any

import pytest

from pipe_bd.counters import Clock, Counters
from pipe_bd.plan import Plan
from pipe_bd.result import Result, steady_period


def result(plan: Plan | None) -> Result:
    ranks: list[dict[str, Any]] = []
    for rank in range(2):
        counters = Counters()
        counters.teacher_calls.update({"a": 2, "b": 1 + rank})
        counters.loader_reads = 3
        clock = Clock(counters, None)
        with clock.span("teacher"):
            pass
        counters.seconds["student"] = 0.25
        counters.seconds["data"] = 5.0
        ranks.append(
            {
                "rank": rank,
                "wall_s": 1.0 + rank,
                "cpu_s": 3.0 - rank,
                "marks": [1.0, 2.0, 10.0, 10.5, 11.0],
                "counters": counters.to_dict(),
            }
        )
    return Result("dpu", plan, None, 5, 8, {"a": {"s": {0: 1.0, 4: math.nan}}}, ranks)


def test_totals_and_extremes() -> None:
    found = result(Plan.pipeline([1, 2]))
    assert found.total("teacher_calls") == {"a": 4, "b": 3}
    assert found.total("loader_reads") == 6
    assert (found.wall_s, found.busiest_cpu_s) == (2.0, 3.0)
    assert found.period_s(skip=2) == 0.5
    assert result(None).period_s() == 2.0 / 5


def test_the_fill_is_left_out_of_the_period() -> None:
    marks = [0.0, 8.0, 9.0, 10.0]
    assert steady_period(marks, 1) == 1.0
    assert steady_period(marks, 0) == pytest.approx(10 / 3)
    assert steady_period(marks, 99) == 1.0
    assert math.isnan(steady_period([1.0], 0))


def test_idle_is_what_is_left_and_loading_overlaps() -> None:
    for row in result(Plan.pipeline([1, 2])).shares():
        assert row["data"] == 5.0
        assert row["idle"] == pytest.approx(2.0 - 0.25, abs=0.01)


def test_it_is_plain_json() -> None:
    document = result(Plan.pipeline([1, 2])).to_dict()
    again = json.loads(json.dumps(document))
    assert again["plan"]["stages"][1] == {"first": 1, "last": 1, "devices": 1}
    assert again["losses"]["a"]["s"]["0"] == 1.0
    assert "marks" not in again["ranks"][0]
