"""What somebody else does to parameters, processes and threads between two steps."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul.errors import UserError
from smart_testing import SIZES, Make, differing_bits, gradients, set_gradients, tensors

from smart_infinity import SmartOptimizer, _core, tile_records
from smart_infinity.errors import NotFinite

Change = Callable[[list[Any]], None]


def copied(params: list[Any]) -> None:
    with torch.no_grad():
        params[3].copy_(torch.arange(len(params[3])))


def clamped(params: list[Any]) -> None:
    with torch.no_grad():
        for param in params:
            param.clamp_(-0.5, 0.5)


def replaced(params: list[Any]) -> None:
    params[8].data = torch.full_like(params[8], 0.25)


@pytest.mark.parametrize("change", [copied, clamped, replaced])
@pytest.mark.parametrize("offload", ["step", "backward"])
def test_a_change_of_the_model_is_stepped_as_torch_does(
    change: Change, offload: str, smart: Make
) -> None:
    mine, theirs = tensors(), tensors()
    ours = smart(mine, 2, lr=1e-2)
    reference = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    for step in range(4):
        for params, optimizer in ((mine, ours), (theirs, reference)):
            if step == 2:
                change(params)
            set_gradients(params, gradients(params, step))
            optimizer.step()
    assert differing_bits(mine, theirs) == 0
    ours.close()
    again = tensors(seed=5)
    smart(again, 2, lr=1e-2)
    assert differing_bits(again, theirs) == 0


def test_a_model_that_is_loaded_is_stepped_from_there(smart: Make) -> None:
    net, reference, other = (torch.nn.Linear(30, 50) for _ in range(3))
    ours = smart(net.parameters(), lr=1e-2)
    net.load_state_dict(other.state_dict())
    reference.load_state_dict(other.state_dict())
    theirs = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    for module, optimizer in ((net, ours), (reference, theirs)):
        module(torch.ones(2, 30)).square().sum().backward()
        optimizer.step()
    assert differing_bits(list(net.parameters()), list(reference.parameters())) == 0


def test_a_write_that_torch_does_not_count_is_taken_when_it_is_said(smart: Make) -> None:
    mine, theirs = tensors(), tensors()
    ours = smart(mine, lr=1e-2)
    reference = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    for params, optimizer in ((mine, ours), (theirs, reference)):
        params[4].data[:] = 5.0
        if optimizer is ours:
            ours.take_parameters()
        set_gradients(params, gradients(params, 0))
        optimizer.step()
    assert differing_bits(mine, theirs) == 0


def test_masters_of_sixteen_bits_survive_a_look(smart: Make) -> None:
    """A write of what is there already changes nothing, not even what bfloat16 has no room for."""
    found = []
    for look in (False, True):
        params = tensors(dtype=torch.bfloat16, seed=1)
        folders = 1 + look
        optimizer = smart(params, folders, lr=1e-4)
        for step in range(3):
            if look:
                with torch.no_grad():
                    for param in params:
                        param.copy_(param.clone())
            set_gradients(params, gradients(params, step))
            optimizer.step()
        found.append([one["master"] for one in optimizer.state_dict()["state"].values()])
        optimizer.array.kill()
        for d in range(folders):
            (Path(optimizer.array.devices[d].address) / "state.smart").unlink()
    assert differing_bits(*found) == 0


def test_a_change_survives_a_step_that_was_refused(smart: Make) -> None:
    mine, theirs = tensors(), tensors()
    ours = smart(mine, lr=1e-2)
    reference = torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    clamped(mine)
    clamped(theirs)
    given = gradients(mine, 0)
    set_gradients(mine, [*given[:-1], torch.full_like(given[-1], torch.nan)])
    with pytest.raises(NotFinite):
        ours.step()
    assert differing_bits(mine, theirs) == 0
    for params, optimizer in ((mine, ours), (theirs, reference)):
        set_gradients(params, given)
        optimizer.step()
    assert differing_bits(mine, theirs) == 0


@pytest.mark.parametrize(
    ("data", "what"),
    [(torch.zeros(5), r"float32 \[5\] now"), (torch.zeros(9).double(), "float64")],
)
def test_another_shape_or_type_is_named(data: Any, what: str, smart: Make) -> None:
    params = tensors()
    optimizer = smart(params, lr=1e-2)
    set_gradients(params, gradients(params, 0))
    params[3].grad = None
    params[3].data = data
    with pytest.raises(UserError, match=what):
        optimizer.step()


def test_threads_take_turns(smart: Make) -> None:
    params = tensors()
    optimizer = smart(params, 2, lr=1e-3)
    set_gradients(params, gradients(params, 0))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                optimizer.step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    optimizer.flush()
    assert optimizer.array.step == 20


def test_a_forked_process_is_refused_and_harms_nothing(smart: Make) -> None:
    params = tensors()
    optimizer = smart(params, lr=1e-3)
    set_gradients(params, gradients(params, 0))
    optimizer.step()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            optimizer.step()
        except UserError as error:
            code = 0 if "forked" in str(error) else 2
        optimizer.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    optimizer.step()
    optimizer.flush()
    assert optimizer.array.step == 2


def test_after_the_end_it_says_that_it_is_closed(smart: Make) -> None:
    params = tensors()
    optimizer = smart(params, lr=1e-3)
    set_gradients(params, gradients(params, 0))
    optimizer.close()
    optimizer.close()
    for call in (optimizer.step, optimizer.state_dict, optimizer.flush):
        with pytest.raises(UserError, match="the optimizer is closed"):
            call()


def test_one_that_is_forgotten_ends_its_devices(tmp_path: Path) -> None:
    params = tensors()
    optimizer = SmartOptimizer(params, devices=[tmp_path / "a"], tile=1024)
    set_gradients(params, gradients(params, 0))
    optimizer.step()
    process: subprocess.Popen[bytes] | None = optimizer.array.devices[0].process
    assert process is not None
    del optimizer
    gc.collect()
    until = time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert _core.State(tmp_path / "a").step == 1


@pytest.mark.parametrize("extra", [{"a": float("nan")}, {"a": object()}, {"a": "x" * 100_000}])
def test_an_extra_that_cannot_be_stored_is_refused_before_the_step(
    extra: dict[str, Any], smart: Make
) -> None:
    params = tensors()
    optimizer = smart(params, lr=1e-3)
    before = [param.detach().clone() for param in params]
    set_gradients(params, gradients(params, 0))
    optimizer.extra = extra
    with pytest.raises(UserError, match="extra"):
        optimizer.step()
    assert differing_bits(params, before) == 0
    optimizer.extra = {}
    optimizer.step()


# ---------------------------------------------------------------------- states that are given


def given(optimizer: Any, count: int = len(SIZES)) -> dict[str, Any]:
    found: dict[str, Any] = optimizer.state_dict()
    assert len(found["state"]) == count
    return found


def with_first(state: dict[str, Any], **values: Any) -> dict[str, Any]:
    first = {**state["state"][0], **values}
    first = {name: value for name, value in first.items() if value != "gone"}
    return {**state, "state": {**state["state"], 0: first}}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"momentum_buffer": torch.zeros(1)}, "another optimizer's"),
        ({"max_exp_avg_sq": torch.zeros(1)}, "another optimizer's"),
        ({"exp_avg": torch.tensor([torch.nan])}, "NaN or Inf"),
        ({"exp_avg_sq": "gone"}, "no exp_avg_sq"),
        ({"step": torch.tensor(-3.0)}, "step -3"),
        ({"step": torch.tensor(1.5)}, "step 1.5"),
        ({"exp_avg": torch.zeros(2)}, r"is \[2\]"),
    ],
)
def test_a_state_that_is_not_this_optimizers_is_refused_whole(
    values: dict[str, Any], what: str, smart: Make
) -> None:
    params = tensors()
    optimizer = smart(params, lr=1e-3)
    set_gradients(params, gradients(params, 0))
    optimizer.step()
    before = given(optimizer)
    with pytest.raises(UserError, match=what):
        optimizer.load_state_dict(with_first(before, **values))
    after = given(optimizer)
    for one, two in zip(before["state"].values(), after["state"].values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("state", [{"a": 1}, "x", None])
def test_what_is_no_state_is_refused(state: Any, smart: Make) -> None:
    optimizer = smart(tensors(), lr=1e-3)
    with pytest.raises(UserError, match="no optimizer's state_dict"):
        optimizer.load_state_dict(state)


def test_settings_of_a_state_are_looked_at(smart: Make) -> None:
    params = tensors()
    optimizer = smart(params, lr=1e-3)
    state = given(optimizer)
    for more, what in (({"amsgrad": True}, "amsgrad"), ({"lr": float("nan")}, "lr")):
        groups = [{**group, **more} for group in state["param_groups"]]
        with pytest.raises(UserError, match=what):
            optimizer.load_state_dict({**state, "param_groups": groups})
    theirs = torch.optim.Adam(params, fused=True)
    with pytest.raises(UserError, match="is Adam's, this optimizer is adamw"):
        optimizer.load_state_dict(theirs.state_dict())


def test_torchs_sgd_goes_on_with_its_momentum(smart: Make) -> None:
    options = {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5}
    mine, theirs = tensors(), tensors()
    reference = torch.optim.SGD(theirs, fused=True, **options)
    for step in range(2):
        set_gradients(theirs, gradients(theirs, step))
        reference.step()
    with torch.no_grad():
        for own, other in zip(mine, theirs, strict=True):
            own.copy_(other)
    ours = smart(mine, optimizer="sgd", **options)
    ours.load_state_dict(reference.state_dict())
    for params, optimizer in ((mine, ours), (theirs, reference)):
        set_gradients(params, gradients(params, 2))
        optimizer.step()
    assert differing_bits(mine, theirs) == 0


# ---------------------------------------------------------------------- making a state


class Killed(Exception):
    """Stands for SIGKILL: nothing of the host's runs after it."""


@pytest.mark.parametrize("made", [1, 2])
def test_a_state_whose_making_was_cut_off_is_made_anew(
    made: int, smart: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when one or both devices had files, but no numbers: they are no state to resume."""
    from smart_infinity.client import Device

    create, count = Device.create, 0

    def counted(self: Device, *args: Any, **more: Any) -> None:
        nonlocal count
        if count == made:
            raise Killed
        count += 1
        create(self, *args, **more)

    def never(self: Any, *args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Device, "create", counted)
        patch.setattr(SmartOptimizer, "_load_masters", never)
        with pytest.raises(Killed):
            smart(tensors(), 2, lr=1e-3)
    with pytest.raises(UserError, match="no state to resume"):
        smart(tensors(), 2, lr=1e-3, resume=True)
    params = tensors()
    smart(params, 2, lr=1e-3)
    assert differing_bits(params, tensors()) == 0


def test_devices_that_are_no_list_of_folders_are_named() -> None:
    for devices, what in (
        ("state", "give a list"), ([""], "name a folder"), ([5], "name a folder"),
        (["tcp:localhost:99999"], "1 to 65535"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=what):
            SmartOptimizer(tensors(), devices=devices)


def test_devices_in_another_order_and_parameters_given_twice_are_named(
    smart: Make, tmp_path: Path
) -> None:
    params = tensors()
    smart(params, 2, lr=1e-3).close()
    folders = [tmp_path / "device-1", tmp_path / "device-0"]
    with pytest.raises(UserError, match="in the order they were made"):
        SmartOptimizer(params, devices=folders, tile=1024)
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(UserError, match="again"):
        SmartOptimizer([params[0], params[0]], devices=[tmp_path / "new"])


@pytest.mark.parametrize("memory", ["transposed", "channels_last"])
@pytest.mark.parametrize("speculate", [False, True])
def test_parameters_in_another_order_of_memory_lose_no_update(
    memory: str, speculate: bool, smart: Make
) -> None:
    """Several devices' parts come up at the same time."""
    torch.manual_seed(0)
    if memory == "transposed":
        param = torch.randn(70, 90).t().requires_grad_()
    else:
        param = torch.randn(24, 16, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    assert not param.is_contiguous()
    optimizer = smart([param], 3, lr=1e-2, speculate=speculate)
    for step in range(8):
        optimizer.zero_grad()
        (
            param * torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        ).sum().backward()
        optimizer.step()
        optimizer.flush()
        again = torch.zeros_like(param, memory_format=torch.contiguous_format)
        for tile, area in tile_records.read(optimizer.array, optimizer.layout.tiles, mask=1):
            values = torch.frombuffer(area, dtype=torch.float32, count=tile.elements)
            for piece in tile.pieces:
                end = piece.element + piece.end - piece.begin
                again.view(-1)[piece.element : end] = values[piece.begin : piece.end]
        assert torch.equal(param.detach(), again)
