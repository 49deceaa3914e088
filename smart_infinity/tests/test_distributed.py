"""Several ranks are one: the same model, the same errors, the same state, or a refusal."""

from __future__ import annotations

import fcntl
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import smart_ranks
import torch
from shorthaul.errors import UserError
from shorthaul.launch import launch

from smart_infinity import SmartOptimizer, _core

KINDS = ["ddp", "fsdp"]


def outs(folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    return [torch.load(folder / f"out{rank}.pt", weights_only=True) for rank in range(ranks)]


def fork(folder: Path, case: str, kind: str, *more: Any) -> list[int | None]:
    """Run a case on two ranks, which are spared importing torch again; their exit codes."""
    forked = multiprocessing.get_context("fork")
    processes = [
        forked.Process(target=smart_ranks.run, args=(rank, 2, case, kind, folder, *more))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{case} {kind} {more}: a rank does not end")
    return [process.exitcode for process in processes]


def steps(folder: Path) -> list[int]:
    """The steps of both ranks' devices, when those are gone that served a rank that was killed."""
    devices = [folder / f"rank{rank}-device0" for rank in range(2)]
    for device in devices:
        with (device / "LOCK").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
    return [_core.State(device).step for device in devices]


def test_two_ranks_under_torchrun_are_one(tmp_path: Path) -> None:
    """To the bit as torch's optimizer on two ranks, and to 1e-6 as one process."""
    for kind in KINDS:
        (tmp_path / kind).mkdir()
    tests = str(Path(__file__).parent)
    launch("smart_ranks", [str(tmp_path)], 2, env={"PYTHONPATH": tests}, timeout_s=120)
    alone = smart_ranks.model()
    optimizer = torch.optim.AdamW(alone.parameters(), fused=True, **smart_ranks.OPTIONS)
    for step in range(7):
        smart_ranks.backward(alone, step)
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
        optimizer.step()
    params = list(alone.parameters())
    total = sum(p.numel() for p in params)
    for kind in KINDS:
        found = outs(tmp_path / kind)
        for one in found:
            assert (one["differ"], one["moments"], one["later"]) == (0, 0, [0, 0])
            for ours, expected in zip(one["full"], params, strict=True):
                assert (ours - expected).abs().max() <= 1e-6
            # A rank sends what is its own, and nothing else.
            assert one["sent"] == 5 * 4 * one["own"]
        assert sum(one["own"] for one in found) == total
        assert min(one["own"] for one in found) > total / 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_on_one_rank_is_raised_on_all(kind: str, tmp_path: Path) -> None:
    assert fork(tmp_path, "not_finite", kind) == [0, 0]
    first, second = outs(tmp_path)
    assert first["said"][0].startswith("NotFinite: rank 1: the gradient of ")
    assert second["said"][0].startswith("NotFinite: the gradient of ")
    for one in (first, second):
        assert "the gradients they have" in one["said"][1]
        assert (one["changed"], one["differ"]) == (0, 0)


def test_ranks_go_on_after_any_end(tmp_path: Path) -> None:
    assert fork(tmp_path, "resume", "ddp", 0, 3, "killed") == [0, -signal.SIGKILL]
    said = torch.load(tmp_path / "out0.pt", weights_only=True)["said"]
    assert said.startswith("another rank is gone or silent")
    assert "\n" not in said
    assert steps(tmp_path) == [3, 3]
    assert fork(tmp_path, "resume", "ddp", 3, 4, "half committed") == [0, 0]
    assert steps(tmp_path) == [5, 4]
    assert fork(tmp_path, "resume", "ddp", 4, 6, "close") == [0, 0]
    assert steps(tmp_path) == [6, 6]
    assert [one["differ"] for one in outs(tmp_path)] == [0, 0]


def test_ranks_with_a_shard_each_go_on_as_well(tmp_path: Path) -> None:
    assert fork(tmp_path, "resume", "fsdp", 0, 2, "half committed") == [0, 0]
    assert steps(tmp_path) == [3, 2]
    assert fork(tmp_path, "resume", "fsdp", 2, 4, "close") == [0, 0]
    assert [one["differ"] for one in outs(tmp_path)] == [0, 0]


def test_what_cannot_be_is_said_on_every_rank_in_one_line(tmp_path: Path) -> None:
    assert fork(tmp_path, "refuse", "ddp") == [0, 0]
    for rank, one in enumerate(outs(tmp_path)):
        said = dict(zip(("backward", "fresh", "more", "others", "half"), one["said"], strict=True))
        assert all(line.startswith("UserError: ") for line in said.values()), said
        assert all("\n" not in line for line in said.values())
        assert "offload='backward' on several ranks" in said["backward"]
        assert "holds a state already" in said["fresh"]
        assert "holds no state" in said["more"]
        assert f"asked for by rank {rank} of 2" in said["others"]
        assert "rank 1 holds no state, rank 0 does" in said["half"]
    # And of one rank alone, in this process.
    with pytest.raises(UserError, match=r"made by rank 0 of 2, .* rank 0 of 1; start as") as caught:
        SmartOptimizer(smart_ranks.model().named_parameters(), devices=[tmp_path / "rank0-device0"])
    assert "\n" not in str(caught.value)
