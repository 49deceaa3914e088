"""Bit for bit torch's fused kernels: parameters and moments, however the model is cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from smart_testing import Make, differing_bits, gradients, set_gradients, tensors

from smart_infinity import _core

CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "adamw": ("adamw", torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
    "adamw-no-decay": ("adamw", torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0}),
    "adam": ("adam", torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.01}),
    "adam-small-beta1": ("adam", torch.optim.Adam, {"lr": 1e-3, "betas": (0.4, 0.95)}),
    "adam-maximize": ("adam", torch.optim.Adam, {"lr": 1e-3, "maximize": True}),
    "adagrad": ("adagrad", torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1, "eps": 1e-10}),
    "adagrad-decay": (
        "adagrad",
        torch.optim.Adagrad,
        {"lr": 1e-2, "weight_decay": 0.01, "eps": 1e-10},
    ),
    "sgd": ("sgd", torch.optim.SGD, {"lr": 1e-2}),
    "sgd-momentum": ("sgd", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-nesterov": ("sgd", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "sgd-dampening": ("sgd", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.1}),
}


@pytest.fixture(params=_core.simd_levels())
def level(request: Any) -> Any:
    before = _core.simd()
    _core.use_simd(request.param)
    yield request.param
    _core.use_simd(before)


def moments_of(kind: str, state: dict[str, Any]) -> list[Any]:
    names = {
        "adamw": ("exp_avg", "exp_avg_sq"), "adam": ("exp_avg", "exp_avg_sq"),
        "adagrad": ("sum",), "sgd": ("momentum_buffer",),
    }[kind]  # fmt: skip
    return [state[name] for name in names if state.get(name) is not None]


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_torch_over_100_steps(case: str, level: str) -> None:
    kind, torch_class, options = CASES[case]
    params = tensors((1, 7, 8, 9, 1023, 4096))
    reference = torch_class(params, **options, fused=True)
    ours = [p.detach().numpy().copy() for p in params]
    count = {"adamw": 2, "adam": 2, "adagrad": 1}.get(kind, int("momentum" in options))
    moments = [[np.zeros(p.numel(), np.float32) for p in params] for _ in range(count)]
    settings = _core.Settings()
    for name, value in options.items():
        if name == "betas":
            settings.beta1, settings.beta2 = value
        else:
            setattr(settings, name, value)
    for step in range(1, 101):
        settings.lr = options["lr"] * (0.5 + 0.5 * math.cos(step / 30))
        for group in reference.param_groups:
            group["lr"] = settings.lr
        found = gradients(params, step)
        set_gradients(params, found)
        reference.step()
        for i, gradient in enumerate(found):
            n = len(ours[i])
            cut = n - n % 8
            for part, rest in ((slice(0, cut), False), (slice(cut, n), True)):
                arrays = [moment[i][part] for moment in moments]
                arrays += [None] * (2 - len(arrays))
                if part.start < part.stop:
                    _core.update(
                        _core.Kind[kind], settings, step, 1.0, 1.0, rest, ours[i][part],
                        gradient.numpy()[part], *arrays,
                    )  # fmt: skip
    assert differing_bits([torch.from_numpy(o) for o in ours], params) == 0
    for i, param in enumerate(params):
        theirs = moments_of(kind, reference.state[param])
        assert differing_bits([torch.from_numpy(m[i]) for m in moments], theirs) == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("devices", [1, 3])
def test_the_optimizer_equals_torch_with_groups_and_a_schedule(
    case: str, devices: int, smart: Make
) -> None:
    kind, torch_class, options = CASES[case]

    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [{"params": params[:4]}, {"params": params[4:], "lr": options["lr"] / 3}]

    ours, theirs = tensors(), tensors()
    a = smart(groups(ours), devices, optimizer=kind, **options)
    b = torch_class(groups(theirs), **options, fused=True)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in (a, b)]
    for step in range(25):
        for params, optimizer in ((ours, a), (theirs, b)):
            set_gradients(params, gradients(params, step))
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert differing_bits(ours, theirs) == 0
    state = a.state_dict()["state"]
    for i, param in enumerate(theirs):
        assert differing_bits(moments_of(kind, state[i]), moments_of(kind, b.state[param])) == 0


def test_a_large_tensor_and_any_tile_and_number_of_devices_give_the_same_bits(
    tmp_path: Any,
) -> None:
    from smart_infinity import SmartOptimizer

    n = (1 << 20) + 3
    theirs = tensors((n, 17))
    reference = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.01, fused=True)
    for step in range(3):
        set_gradients(theirs, gradients(theirs, step))
        reference.step()
    for tile, devices in ((1024, 1), (1 << 18, 2), (1 << 16, 4)):
        ours = tensors((n, 17))
        folders = [tmp_path / f"{tile}-{d}" for d in range(devices)]
        with SmartOptimizer(
            ours, lr=1e-3, weight_decay=0.01, devices=folders, tile=tile
        ) as optimizer:
            for step in range(3):
                set_gradients(ours, gradients(ours, step))
                optimizer.step()
            assert differing_bits(ours, theirs) == 0
