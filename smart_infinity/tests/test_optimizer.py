"""The optimizer among torch's tools: clipping, accumulation, scaling, saving, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul.errors import UserError
from smart_testing import Make, differing_bits, gradients, set_gradients, tensors

from smart_infinity.errors import NotFinite


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(20, 33), torch.nn.Tanh(), torch.nn.Linear(33, 5))


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(step))


def train(
    net: Any, optimizer: Any, steps: range, *, max_norm: float | None = None, k: int = 1
) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        for part in range(k):
            loss = net(batch(100 * step + part)).square().mean() / k
            loss.backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def reference(steps: int, **options: Any) -> tuple[Any, Any, list[float]]:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    return net, optimizer, train(net, optimizer, range(steps), **options)


OPTIONS = {"lr": 1e-2, "weight_decay": 0.01}


def test_torchs_clipping_and_accumulation_work_on_gradients_that_stay(smart: Make) -> None:
    net = model()
    theirs, _, losses = reference(8, max_norm=0.05, k=3)
    optimizer = smart(net.parameters(), 2, **OPTIONS)
    assert train(net, optimizer, range(8), max_norm=0.05, k=3) == losses
    assert differing_bits(list(net.parameters()), list(theirs.parameters())) == 0


@pytest.mark.parametrize("offload", ["step", "backward"])
def test_its_own_clipping_equals_torchs(offload: str, smart: Make) -> None:
    net = model()
    theirs, _, losses = reference(8, max_norm=0.05, k=3)
    more = {"accumulation_steps": 3} if offload == "backward" else {}
    optimizer = smart(net.parameters(), 2, offload=offload, max_norm=0.05, **more, **OPTIONS)
    assert train(net, optimizer, range(8), k=3) == losses
    assert differing_bits(list(net.parameters()), list(theirs.parameters())) == 0


def test_gradients_that_went_down_in_backward_are_freed(smart: Make) -> None:
    net = model()
    optimizer = smart(net.parameters(), offload="backward", **OPTIONS)
    net(batch(0)).square().mean().backward()
    assert all(param.grad is None for param in net.parameters())
    optimizer.step()
    theirs, _, _ = reference(1)
    assert differing_bits(list(net.parameters()), list(theirs.parameters())) == 0


def test_gradients_wait_on_disk_where_memory_is_short(smart: Make) -> None:
    from smart_infinity.client import DeviceOptions

    net = model()
    theirs, _, losses = reference(4)
    options = DeviceOptions(landing_bytes=0)
    optimizer = smart(net.parameters(), offload="backward", options=options, **OPTIONS)
    assert train(net, optimizer, range(4)) == losses
    assert differing_bits(list(net.parameters()), list(theirs.parameters())) == 0
    counters = optimizer.array.counts()[0]["device"]["engine"]
    assert counters["landed_write_bytes"] == counters["landed_read_bytes"] > 0


def test_an_undeclared_second_backward_is_named(smart: Make) -> None:
    net = model()
    smart(net.parameters(), offload="backward", **OPTIONS)
    net(batch(0)).sum().backward()
    with pytest.raises(UserError, match="accumulation_steps=2"):
        net(batch(1)).sum().backward()


def test_a_scaler_skips_a_step_with_an_overflow(smart: Make) -> None:
    losses = {}
    nets = {"ours": model(), "theirs": model()}
    for name, net in nets.items():
        if name == "ours":
            optimizer: Any = smart(net.parameters(), **OPTIONS)
        else:
            optimizer = torch.optim.AdamW(net.parameters(), **OPTIONS, fused=False, foreach=False)
            optimizer = torch.optim.AdamW(net.parameters(), **OPTIONS, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        found = []
        for step in range(8):
            optimizer.zero_grad()
            loss = net(batch(step)).square().mean()
            scaler.scale(loss).backward()
            if step == 4:
                next(net.parameters()).grad[0, 0] = float("inf")
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            found.append((float(loss.detach()), scaler.get_scale()))
        losses[name] = found
    assert losses["ours"] == losses["theirs"]
    assert differing_bits(*[list(net.parameters()) for net in nets.values()]) == 0


@pytest.mark.parametrize("offload", ["step", "backward"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(
    bad: float, offload: str, smart: Make
) -> None:
    net = model()
    optimizer = smart(net.named_parameters(), 2, offload=offload, **OPTIONS)
    train(net, optimizer, range(2))
    before = [param.detach().clone() for param in net.parameters()]
    loss = (net(batch(7)) * bad).square().mean()
    loss.backward()
    with pytest.raises(NotFinite, match="holds NaN or Inf: no parameter was changed"):
        optimizer.step()
    assert differing_bits(before, list(net.parameters())) == 0
    optimizer.zero_grad()
    train(net, optimizer, range(2, 5))
    theirs, _, _ = reference(5)
    assert differing_bits(list(net.parameters()), list(theirs.parameters())) == 0


def test_parameters_without_a_gradient_stay_and_their_steps_are_not_counted(smart: Make) -> None:
    ours, theirs = tensors(), tensors()
    a = smart(ours, 2, lr=1e-2)
    b = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    for step in range(6):
        for params, optimizer in ((ours, a), (theirs, b)):
            found = gradients(params, step)
            found = [None if (i + step) % 3 == 0 else g for i, g in enumerate(found)]
            set_gradients(params, found)
            optimizer.step()
    assert differing_bits(ours, theirs) == 0
    assert a.steps == [int(b.state[p]["step"]) for p in theirs]


def test_a_step_without_any_gradient_is_none(smart: Make) -> None:
    params = tensors((4,))
    optimizer = smart(params)
    optimizer.step()
    assert optimizer.steps == [0]
    assert optimizer.step(lambda: 3.5) == 3.5


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "blocks8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resume_goes_on_to_the_bit(moments: str, dtype: Any, smart: Make) -> None:
    def steps(params: list[Any], optimizer: Any, which: range) -> None:
        for step in which:
            set_gradients(params, gradients(params, step))
            optimizer.step()

    whole = tensors(dtype=dtype)
    once = smart(whole, 2, moments=moments, lr=1e-2)
    steps(whole, once, range(9))
    expected = once.state_dict()
    once.close()
    for folder in [Path(device.address) for device in once.array.devices]:
        for file in folder.iterdir():
            file.unlink()
    params = tensors(dtype=dtype)
    first = smart(params, 2, moments=moments, lr=1e-2)
    steps(params, first, range(4))
    first.extra = {"epoch": 3}
    steps(params, first, range(4, 5))
    first.close()
    fresh = tensors(dtype=dtype, seed=9)
    second = smart(fresh, 2, lr=1e-2)
    assert second.steps == [5] * len(fresh)
    assert second.extra == {"epoch": 3}
    assert all(torch.equal(a, b) for a, b in zip(params, fresh, strict=True))
    steps(fresh, second, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(fresh, whole, strict=True))
    found = second.state_dict()
    for i, one in expected["state"].items():
        for name, value in one.items():
            assert torch.equal(found["state"][i][name], value), (i, name)


def test_state_dicts_go_both_ways_between_torch_and_ours(smart: Make, tmp_path: Path) -> None:
    theirs = tensors()
    b = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    for step in range(3):
        set_gradients(theirs, gradients(theirs, step))
        b.step()
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    a = smart(ours, 2, lr=0.5)
    a.load_state_dict(b.state_dict())
    back = [p.detach().clone().requires_grad_() for p in theirs]
    c = torch.optim.AdamW(back, lr=1e-2, fused=True)
    c.load_state_dict(a.state_dict())
    for step in range(3, 6):
        for params, optimizer in ((ours, a), (theirs, b), (back, c)):
            set_gradients(params, gradients(params, step))
            optimizer.step()
    assert differing_bits(ours, theirs) == 0
    assert differing_bits(back, theirs) == 0


def test_what_cannot_be_resumed_is_named(smart: Make) -> None:
    smart(tensors((5, 6)), 2).close()
    for params, devices, options, said in (
        (tensors((5, 7)), 2, {}, "its parameter '1' is float32 \\[6\\], the model's '1'"),
        (tensors((5,)), 2, {}, "made for 2 parameters, the model has 1"),
        (tensors((5, 6)), 1, {}, "made with devices=2, asked for 1"),
        (tensors((5, 6)), 2, {"optimizer": "adam"}, "made with optimizer='adamw'"),
        (tensors((5, 6)), 3, {}, "holds no state, .* does"),
        (tensors((5, 6)), 2, {"resume": False}, "holds a state already"),
    ):
        with pytest.raises(UserError, match=said):
            smart(params, devices, **options)


def test_bad_arguments_are_named(smart: Make, tmp_path: Path) -> None:
    for options, said in (
        ({"optimizer": "adamx"}, "unknown optimizer 'adamx'; did you mean"),
        ({"momentum": 0.9}, "adamw has no 'momentum'"),
        ({"lr": -1.0}, "lr=-1"),
        ({"betas": (0.9, 1.5)}, "beta2=1.5"),
        ({"compress": "topk:2"}, "ratio=2.0"),
        ({"compress": "topq:1"}, "write none or topk:0.01"),
        ({"offload": "later"}, "use step or backward"),
        ({"max_norm": 0}, "max_norm=0"),
        ({"tile": 1000}, "tile=1000: use a multiple of 1024"),
        ({"moments": "float8"}, "moments='float8'"),
        ({"weights": [1, 2]}, "2 weights for 1 devices"),
        ({"resume": True}, "no state to resume"),
    ):
        with pytest.raises(UserError, match=said):
            smart(tensors((4,)), **options)
    with pytest.raises(UserError, match=r"is torch\.float64"):
        smart([torch.zeros(3, dtype=torch.float64, requires_grad=True)])
    optimizer = smart(tensors((4,)))
    with pytest.raises(UserError, match="cannot be added"):
        optimizer.add_param_group({"params": tensors((3,))})


def test_16_bit_parameters_have_float32_masters(smart: Make) -> None:
    params = tensors(dtype=torch.bfloat16)
    masters = [p.detach().float().requires_grad_() for p in params]
    a = smart(params, 2, lr=1e-2)
    b = torch.optim.AdamW(masters, lr=1e-2, fused=True)
    for step in range(5):
        found = gradients(params, step)
        set_gradients(params, found)
        set_gradients(masters, [g.float() for g in found])
        a.step()
        b.step()
    state = a.state_dict()["state"]
    assert differing_bits([state[i]["master"] for i in range(len(params))], masters) == 0
    assert all(torch.equal(p, m.bfloat16()) for p, m in zip(params, masters, strict=True))
