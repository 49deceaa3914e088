"""Functions and errors travel to the ranks and back."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from shorthaul.errors import UserError

from pipe_bd.runtime.spawn import run_ranks


class Own:
    def __init__(self, value: int) -> None:
        self.value = value


def _answer(own: Own, function: Any) -> tuple[Any, ...]:
    import torch

    threads = torch.get_num_threads()
    return Own(function(own.value)), os.environ["RANK"], os.environ["WORLD_SIZE"], threads


def test_what_rank_0_returns_comes_back(ranks: Any) -> None:
    base = 40
    answer, rank, size, threads = ranks(_answer, 2, Own(2), lambda v: v + base)
    assert answer.value == 42
    assert (rank, size, threads) == ("0", "2", 1)


def _fail() -> None:
    if os.environ["RANK"] == "1":
        raise UserError("block 3 is wrong")


def test_an_error_of_a_rank_is_raised_here(ranks: Any) -> None:
    with pytest.raises(UserError, match=r"^block 3 is wrong$"):
        ranks(_fail, 2)


def test_modules_beside_the_users_script_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_the_script.py").write_text("def answer():\n    return 42\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import beside_the_script  # type: ignore[import-not-found]

    try:
        assert run_ranks(beside_the_script.answer, 1) == 42
    finally:
        del sys.modules["beside_the_script"]
