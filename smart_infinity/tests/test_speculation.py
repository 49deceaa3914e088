"""Tiles stepped in the backward pass: the same bits as without, whatever comes between."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from shorthaul.errors import Fault, UserError
from smart_testing import Make, differing_bits

from smart_infinity import DeviceOptions, SmartOptimizer
from smart_infinity.errors import NotFinite
from smart_infinity.wire import Kind

STEPS = 6


def net(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for width in (40, 70, 30):
        layers += [torch.nn.LazyLinear(width), torch.nn.Tanh()]
    made = torch.nn.Sequential(*layers)
    made(torch.zeros(1, 50))
    return made.to(dtype)


def backward(model: torch.nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 50, generator=generator).to(next(model.parameters()).dtype)
    (model(x).square().mean() * scale).backward()


Between = Callable[[Any, torch.nn.Module, int], None]


def nothing(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    """Between the backward pass and the step."""


def clipped_by_torch(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3 if step == 3 else 1e9)


def written_behind_torchs_back(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        for param in model.parameters():
            assert param.grad is not None
            param.grad.data.mul_(2)


def permuted_behind_torchs_back(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        for param in model.parameters():
            assert param.grad is not None
            param.grad.data.copy_(param.grad.data.flip(0))


def other_rate(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)


def changed_model(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        with torch.no_grad():
            for param in model.parameters():
                param.mul_(0.5)


def second_pass(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        backward(model, 100)


def one_without(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        next(model.parameters()).grad = None


def skipped(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:  # as a scaler does after an overflow
        optimizer.zero_grad()
        backward(model, 200)


def none_at_all(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        optimizer.zero_grad()


def looked_at(optimizer: Any, model: torch.nn.Module, step: int) -> None:
    if step == 3:
        optimizer.state_dict()


@pytest.mark.parametrize(
    ("between", "kept"),
    [
        (nothing, STEPS - 1), (clipped_by_torch, 0), (written_behind_torchs_back, STEPS - 3),
        (permuted_behind_torchs_back, STEPS - 3), (other_rate, 0), (changed_model, STEPS - 3),
        (second_pass, STEPS - 3), (one_without, STEPS - 3), (skipped, STEPS - 3),
        (none_at_all, STEPS - 4),
        (looked_at, STEPS - 3),
    ],
)  # fmt: skip
def test_bits_are_torchs_whatever_comes_between(between: Between, kept: int, smart: Make) -> None:
    mine, reference = net(), net()
    ours = smart(mine.parameters(), 2, lr=1e-2, speculate=True)
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    for step in range(STEPS):
        for model, optimizer in ((mine, ours), (reference, theirs)):
            optimizer.zero_grad()
            backward(model, step)
            between(optimizer, model, step)
            optimizer.step()
        ours.flush()  # so that the next pass finds the devices free
    assert differing_bits(list(mine.parameters()), list(reference.parameters())) == 0
    assert ours.speculation is not None
    assert ours.speculation.kept == kept
    ours.close()
    again = net()
    smart(again.parameters(), 2, lr=1e-2)
    assert differing_bits(list(again.parameters()), list(reference.parameters())) == 0


def test_a_step_ahead_is_on_disk_before_step(smart: Make) -> None:
    model = net()
    optimizer = smart(model.parameters(), lr=1e-2, speculate=True)
    seen = []
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.array.wait_idle()
        seen.append(optimizer.array.counts()[0]["device"]["engine"]["tiles"])
        optimizer.step()
        optimizer.flush()
    tiles = len(optimizer.layout.tiles)
    assert seen[0] == 0
    # All but those that found no slot free at their time are stepped.
    assert tiles < seen[1] <= 2 * tiles


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype, smart: Make, tmp_path: Any) -> None:
    found = []
    for number, speculate in enumerate((False, True)):
        model = net(dtype)
        with SmartOptimizer(
            model.parameters(), devices=[tmp_path / f"of-{number}"], tile=1024, lr=1e-2,
            max_norm=0.05, speculate=speculate,
        ) as optimizer:  # fmt: skip
            for step in range(STEPS):
                optimizer.zero_grad()
                backward(model, step, 10.0 if step in (2, 3) else 0.01)
                optimizer.step()
                optimizer.flush()
            found.append([param.detach().float() for param in model.parameters()])
            if optimizer.speculation is not None:
                assert optimizer.speculation.kept > 0
                assert optimizer.speculation.taken_back == 1  # the first of the two
    assert differing_bits(*found) == 0


def test_accumulation(smart: Make) -> None:
    mine, reference = net(), net()
    ours = smart(mine.parameters(), lr=1e-2, speculate=True, accumulation_steps=2)
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    for step in range(STEPS):
        for model, optimizer in ((mine, ours), (reference, theirs)):
            optimizer.zero_grad()
            for part in range(2):
                backward(model, 2 * step + part, 0.5)
            optimizer.step()
        ours.flush()
    assert differing_bits(list(mine.parameters()), list(reference.parameters())) == 0
    assert ours.speculation is not None
    assert ours.speculation.kept == STEPS - 1


def test_a_gradient_that_is_not_finite_changes_nothing(smart: Make) -> None:
    mine, reference = net(), net()
    ours = smart(mine.parameters(), 2, lr=1e-2, speculate=True)
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    for step in range(STEPS):
        for model, optimizer in ((mine, ours), (reference, theirs)):
            optimizer.zero_grad()
            backward(model, step, float("nan") if step == 3 else 1.0)
            if step != 3:
                optimizer.step()
            elif optimizer is ours:
                with pytest.raises(NotFinite, match="NaN"):
                    ours.step()
        ours.flush()
    assert differing_bits(list(mine.parameters()), list(reference.parameters())) == 0


def test_a_device_that_dies_after_the_backward_pass_is_named(smart: Make) -> None:
    from smart_infinity.errors import DeviceLost

    model = net()
    optimizer = smart(
        model.parameters(), lr=1e-2, speculate=True, options=DeviceOptions(timeout_s=5)
    )
    for step in range(2):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        optimizer.flush()
    before = [param.detach().clone() for param in model.parameters()]
    process = optimizer.array.devices[0].process
    assert process is not None
    optimizer.zero_grad()
    backward(model, 2)
    process.kill()
    while optimizer.array.failure is None:  # until the link has told
        time.sleep(0.01)
    with pytest.raises(DeviceLost, match="SIGKILL"):
        optimizer.step()
    assert differing_bits(before, list(model.parameters())) == 0
    again = net()
    smart(again.parameters(), lr=1e-2)
    assert differing_bits(before, list(again.parameters())) == 0


AHEAD = [{"speculate": True}, {"offload": "backward"}]


@pytest.mark.parametrize("options", AHEAD)
def test_who_is_frozen_at_first_is_stepped_when_he_is_not(
    options: dict[str, Any], smart: Make
) -> None:
    mine, reference = net(), net()
    for model in (mine, reference):
        next(model.parameters()).requires_grad_(False)
    ours = smart(mine.parameters(), 2, lr=1e-2, **options)
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    for step in range(STEPS):
        for model, optimizer in ((mine, ours), (reference, theirs)):
            if step == 2:
                next(model.parameters()).requires_grad_(True)
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
        ours.flush()
    assert differing_bits(list(mine.parameters()), list(reference.parameters())) == 0


@pytest.mark.parametrize("options", AHEAD)
def test_who_is_forgotten_ends_his_devices_and_leaves_the_model(
    options: dict[str, Any], smart: Make, tmp_path: Any
) -> None:
    model = net()
    optimizer = SmartOptimizer(model.parameters(), devices=[tmp_path / "a"], lr=1e-2, **options)
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    process = optimizer.array.devices[0].process
    assert process is not None
    del optimizer
    gc.collect()
    assert process.poll() is not None
    assert not any(param._post_accumulate_grad_hooks for param in model.parameters())  # type: ignore[attr-defined]
    backward(model, 3)


def test_more_passes_than_were_said_at_first(smart: Make) -> None:
    mine, reference = net(), net()
    ours = smart(mine.parameters(), lr=1e-2, speculate=True)
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    for step in range(STEPS):
        for model, optimizer in ((mine, ours), (reference, theirs)):
            optimizer.zero_grad()
            backward(model, step)
            if step == 3:
                ours.accumulation_steps = 2
                backward(model, 100 + step)
            optimizer.step()
        ours.accumulation_steps = 1
        ours.flush()
    assert differing_bits(list(mine.parameters()), list(reference.parameters())) == 0


def test_sparse_and_double_gradients_are_met_by_step(smart: Make) -> None:
    embedding = torch.nn.Embedding(40, 30, sparse=True)
    optimizer = smart(embedding.parameters(), lr=1e-2, speculate=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UserError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"speculate": True}])
def test_a_commit_that_fails_is_told_and_ends_it(
    options: dict[str, Any], smart: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    optimizer = smart(model.parameters(), lr=1e-2, **options)
    device = optimizer.array.devices[0]
    send = device.send

    def refuse(kind: Any, *rest: Any, **more: Any) -> None:
        if kind is Kind.PREPARE and optimizer.array.step == 2:
            raise Fault("the disk is gone")
        send(kind, *rest, **more)

    monkeypatch.setattr(device, "send", refuse)
    told = []
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step)
        try:
            optimizer.step()
        except (Fault, UserError) as error:
            told.append((step, str(error)))
    assert told[0] == (3, "the disk is gone")
    assert [step for step, _ in told] == [3, 4, 5]
    assert "was not committed" in told[1][1]
    assert "the disk is gone" in told[1][1]
    optimizer.array.kill()
    again = smart(net().parameters(), lr=1e-2)
    assert (again.array.step, again.steps[0]) == (2, 2)


@pytest.mark.parametrize("options", AHEAD)
def test_a_forked_process_sends_nothing(options: dict[str, Any], smart: Make) -> None:
    model = net()
    optimizer = smart(model.parameters(), lr=1e-2, **options)
    for step in range(2):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        optimizer.flush()

    def received() -> dict[str, Any]:
        counts = optimizer.array.counts()[0]["device"]["received"]
        return {kind: count for kind, count in counts.items() if kind != "stats"}

    before = received()
    if os.fork() == 0:
        with contextlib.suppress(Exception):
            backward(model, 2)
        os._exit(0)
    os.wait()
    assert received() == before


@pytest.mark.parametrize("other", [{"compress": "topk:0.1"}, {"offload": "backward"}])
def test_what_cannot_be_taken_back_is_refused(other: dict[str, Any], smart: Make) -> None:
    with pytest.raises(UserError, match="speculate with"):
        smart(net().parameters(), lr=1e-2, speculate=True, **other)
