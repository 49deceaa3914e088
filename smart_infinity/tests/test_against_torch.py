"""What finds differing bits must find them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from shorthaul.errors import Fault

from smart_infinity import against_torch as beside


def test_any_bit_counts() -> None:
    a = torch.tensor([0.0, 1.0, float("nan"), 3.0])
    b = a.clone()
    assert beside.differing([a], [b]) == 0
    b.view(torch.int32)[1] += 1
    b[0] = -0.0
    assert beside.differing([a, a], [b, a]) == 2
    low = a.bfloat16()
    assert beside.differing([low], [b.bfloat16()]) == 1  # 1 + 2⁻²³ rounds to 1


def test_moments_and_counts_of_steps_are_compared() -> None:
    theirs = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    ours = {**theirs, "exp_avg_sq": torch.tensor([1.0, 1.0, 1.0, 2.0]), "step": torch.tensor(2.0)}
    found = beside.Found()
    found.add_state("adamw", {0: theirs}, [theirs])
    assert (found.differing, found.compared) == (0, 8)
    found.add_state("adamw", {0: ours}, [theirs])
    assert (found.moments, len(found.other), found.differing) == (1, 1, 2)


def test_the_level_is_that_of_what_is_started_within(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMART_INFINITY_SIMD", raising=False)
    with beside.level("generic"):
        assert os.environ["SMART_INFINITY_SIMD"] == "generic"
    assert "SMART_INFINITY_SIMD" not in os.environ
    monkeypatch.setenv("SMART_INFINITY_SIMD", "generic")
    with beside.level("avx2"):
        pass
    assert os.environ["SMART_INFINITY_SIMD"] == "generic"


def test_a_device_at_another_level_is_no_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMART_INFINITY_SIMD", "generic")
    monkeypatch.setattr(beside, "level", lambda name: pytest.MonkeyPatch.context())
    setup = beside.Setup("avx2", 1, 1024)
    with pytest.raises(Fault, match="steps tiles by generic, not avx2"):
        beside.compare(beside.CASES["adamw"], [setup], [9], 1, tmp_path)


def test_scalar_code_on_a_device_has_torchs_bits(tmp_path: Path) -> None:
    setup = beside.Setup("generic", 1, 1024)
    (found,) = beside.compare(beside.CASES["adamw"], [setup], [9, 17], 2, tmp_path)
    assert (found.differing, found.compared) == (0, 2 * 26 + 2 * 26)
