"""Verification must be able to fail: on other weights, on NaN, on a count."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pipe_bd import formulas
from pipe_bd.api import clone
from pipe_bd.losses import Loss
from pipe_bd.models import build
from pipe_bd.verify import _worker, compare


def test_equal_students_are_equal_and_one_bit_is_not() -> None:
    task = build("toy-vgg")
    assert compare(task, clone(task)) == (True, 0.0)
    other = clone(task)
    weight = next(other.pairs[3].student.parameters())
    with torch.no_grad():
        weight[0] += 1e-6
    same, largest = compare(task, other)
    assert not same
    assert largest == pytest.approx(1e-6, rel=0.2)


def test_a_buffer_counts_as_well() -> None:
    task = build("toy-bn")
    other = clone(task)
    with torch.no_grad():
        next(b for b in other.pairs[0].student.buffers() if b.is_floating_point())[0] += 1
    assert compare(task, other) == (False, 1.0)


def test_nan_is_no_equality() -> None:
    task, other = build("toy-vgg"), build("toy-vgg")
    for t in (task, other):
        with torch.no_grad():
            next(t.pairs[5].student.parameters()).fill_(float("nan"))
    same, largest = compare(task, other)
    assert not same
    assert largest == float("inf")


class _Sum(Loss):
    """A sum over rows is no mean: its shares may not be weighted by rows."""

    def share(self, output: Tensor, target: Tensor, fraction: float, norm: Tensor | None) -> Tensor:
        del norm
        return (output - target).square().sum() * fraction


def _verdicts() -> dict[str, Any]:
    good = build("toy-gpt", steps=2, optimizer="adamw")
    wrong = build("toy-vgg", steps=2)
    wrong.pairs = [dataclasses.replace(pair, loss=_Sum()) for pair in wrong.pairs]
    out = {"good": _worker(good), "wrong": _worker(wrong)}
    real = formulas.found
    formulas.found = lambda result: formulas.Counts(**{**real(result).to_dict(), "teacher_rows": 1})
    out["miscounted"] = _worker(good)
    return out


def test_what_differs_does_not_pass(ranks: Any) -> None:
    found = ranks(_verdicts, 2)
    for table in found["good"].values():
        assert all(v.passed for v in table.values())
    schedules = found["good"]["schedules"]
    assert sorted(schedules) == ["ahd", "dp", "dpu", "joint", "ls", "tr"]
    assert {n for n, v in schedules.items() if v.must_be_bitwise} == {"ls", "tr", "dpu", "ahd"}
    assert sorted(found["good"]["compositions"]) == ["1+1", "2"]
    wrong = found["wrong"]["schedules"]
    assert wrong["dpu"].passed
    assert not wrong["dp"].passed
    assert not wrong["joint"].passed
    assert wrong["dp"].max_abs_diff > 1e-6
    for verdict in found["miscounted"]["schedules"].values():
        assert not verdict.passed
        assert list(verdict.miscounts) == ["teacher_rows"]
        assert verdict.to_dict()["bitwise"] == verdict.bitwise
