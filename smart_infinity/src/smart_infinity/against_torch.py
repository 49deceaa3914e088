"""Our steps beside torch's fused ones: how many numbers differ in any bit.

The reference is torch on this processor in this process; the gradients are the same random ones,
of magnitudes from 1e-6 to 10.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from shorthaul.errors import EnvironmentLack, Fault

from smart_infinity import _core, kinds
from smart_infinity.client import DeviceOptions
from smart_infinity.optimizer import SmartOptimizer

CLASSES: dict[str, Any] = {
    "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An optimizer and its hyperparameters."""

    kind: str
    options: Mapping[str, Any]

    def torch(self, params: Any) -> torch.optim.Optimizer:
        """Make torch's optimizer of the case, with its fused kernels."""
        made: torch.optim.Optimizer = CLASSES[self.kind](params, **self.options, fused=True)
        return made


CASES = {
    "adamw": Case("adamw", {"lr": 1e-3, "weight_decay": 0.01}),
    "adamw-no-decay": Case("adamw", {"lr": 1e-3, "weight_decay": 0.0}),
    "adam": Case("adam", {"lr": 1e-3, "weight_decay": 0.01}),
    "adam-small-beta1": Case("adam", {"lr": 1e-3, "betas": (0.4, 0.95)}),
    "adam-maximize": Case("adam", {"lr": 1e-3, "maximize": True}),
    "adagrad": Case("adagrad", {"lr": 1e-2, "lr_decay": 0.1}),
    "adagrad-decay": Case("adagrad", {"lr": 1e-2, "weight_decay": 0.01}),
    "sgd": Case("sgd", {"lr": 1e-2}),
    "sgd-momentum": Case("sgd", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-nesterov": Case("sgd", {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "sgd-dampening": Case("sgd", {"lr": 1e-2, "momentum": 0.9, "dampening": 0.1}),
}


LEVELS = ("avx512", "avx2", "generic", "opencl")


@dataclass(frozen=True)
class Setup:
    """How our side computes: what steps tiles (`LEVELS`), devices, elements of a tile."""

    level: str
    devices: int
    tile: int

    @property
    def options(self) -> DeviceOptions:
        """What the devices are told."""
        return DeviceOptions(update="opencl" if self.level == "opencl" else "cpu")


def lack(name: str) -> str:
    """Say why tiles cannot be stepped at a level here; empty where they can."""
    if name == "opencl":
        return _core.opencl_reason()
    before = _core.simd()
    try:
        _core.use_simd(name)
    except EnvironmentLack as error:
        return str(error)
    _core.use_simd(before)
    return ""


@dataclass
class Found:
    """What a comparison found: numbers compared, and how many of them differ in any bit."""

    parameters: int = 0
    moments: int = 0
    compared: int = 0
    other: list[str] = field(default_factory=list)

    @property
    def differing(self) -> int:
        """Everything that is not the same."""
        return self.parameters + self.moments + len(self.other)

    def add_parameters(self, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
        """Compare parameters."""
        self.parameters += differing(ours, theirs)
        self.compared += sum(one.numel() for one in ours)

    def add_state(self, kind: str, ours: Mapping[int, Any], theirs: Sequence[Any]) -> None:
        """Compare moments and counts of steps, in torch's form."""
        for i, reference in enumerate(theirs):
            for name in kinds.OPTIMIZERS[kind].arrays:
                if reference.get(name) is None:  # SGD without momentum keeps none
                    continue
                self.moments += differing([ours[i][name]], [reference[name]])
                self.compared += reference[name].numel()
            # torch's SGD counts no steps.
            if "step" in reference and float(ours[i]["step"]) != float(reference["step"]):
                self.other.append(f"parameter {i}: step {ours[i]['step']}, not {reference['step']}")


def differing(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> int:
    """Give how many elements differ in any bit; 16-bit types are compared as they are."""
    count = 0
    for a, b in zip(ours, theirs, strict=True):
        whole = torch.int32 if a.dtype == torch.float32 else torch.int16
        count += int((a.detach().contiguous().view(whole) != b.detach().view(whole)).sum())
    return count


def tensors(sizes: Sequence[int], seed: int, dtype: Any = torch.float32) -> list[torch.Tensor]:
    """Give parameters of these sizes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype).requires_grad_() for n in sizes]


def gradients(sizes: Sequence[int], step: int, seed: int) -> list[torch.Tensor]:
    """Give the gradients of a step."""
    generator = torch.Generator().manual_seed(100_003 * seed + step)
    return [
        torch.randn(n, generator=generator)
        * 10 ** (torch.rand(n, generator=generator) * 7 - 6)
        for n in sizes
    ]  # fmt: skip


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Let processes started within compute at this level; OpenCL is asked for by their options."""
    if name == "opencl":
        yield
        return
    before = os.environ.get("SMART_INFINITY_SIMD")
    os.environ["SMART_INFINITY_SIMD"] = name
    try:
        yield
    finally:
        del os.environ["SMART_INFINITY_SIMD"]
        if before is not None:
            os.environ["SMART_INFINITY_SIMD"] = before


def compare(
    case: Case,
    setups: Sequence[Setup],
    sizes: Sequence[int],
    steps: int,
    folder: Path,
    seed: int = 0,
) -> list[Found]:
    """Step the same parameters with torch and with every setup, in lockstep.

    Two groups, the second with a third of the learning rate and twice the weight decay, and a
    cosine schedule. Parameters are compared after every step, moments and counts after the last.

    Devices make their folders below `folder`, which is empty.

    Raises:
        Fault: A device steps its tiles by something else than its setup says.
    """

    def grouped(params: list[torch.Tensor]) -> list[dict[str, Any]]:
        half = len(params) // 2
        second: dict[str, Any] = {"params": params[half:], "lr": case.options["lr"] / 3}
        if case.options.get("weight_decay"):
            second["weight_decay"] = 2 * case.options["weight_decay"]
        return [{"params": params[:half]}, second]

    def scheduled(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    theirs = tensors(sizes, seed)
    reference = case.torch(grouped(theirs))
    found = [Found() for _ in setups]
    with contextlib.ExitStack() as stack:
        ours, optimizers = [], []
        for number, setup in enumerate(setups):
            ours.append(tensors(sizes, seed))
            places = [folder / f"{number}-{device}" for device in range(setup.devices)]
            with level(setup.level):
                optimizers.append(stack.enter_context(SmartOptimizer(
                    grouped(ours[-1]), devices=places, optimizer=case.kind, tile=setup.tile,
                    options=setup.options, **case.options,
                )))  # fmt: skip
            for device in optimizers[-1].array.devices:
                if device.ready.get("level") != setup.level:
                    said = device.ready.get("level")
                    raise Fault(f"{device.address} steps tiles by {said}, not {setup.level}")
        schedules = [scheduled(one) for one in (reference, *optimizers)]
        for step in range(steps):
            given = gradients(sizes, step, seed)
            for params, optimizer in ((theirs, reference), *zip(ours, optimizers, strict=True)):
                for param, gradient in zip(params, given, strict=True):
                    param.grad = gradient
                optimizer.step()
            for schedule in schedules:
                schedule.step()
            for one, params in zip(found, ours, strict=True):
                one.add_parameters(params, theirs)
        states = [reference.state[param] for param in theirs]
        for one, smart in zip(found, optimizers, strict=True):
            one.add_state(case.kind, smart.state_dict()["state"], states)
    return found


# ---------------------------------------------------------------------- torch's other tools


@dataclass(frozen=True)
class _Tool:
    """How a small net is trained: with which of torch's tools, and what ours does in their place.

    `ours` are options of SmartOptimizer; the training of both is `train`, of torch's side with
    `theirs` too.
    """

    ours: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)


_CLIPPED = {"max_norm": 0.05}
TOOLS = {
    "clip_grad_norm_, 3 passes a step": _Tool(train={**_CLIPPED, "passes": 3}),
    "max_norm, at step()": _Tool(_CLIPPED, {"passes": 3}, _CLIPPED),
    "max_norm, gradients sent in backward": _Tool(
        {**_CLIPPED, "offload": "backward", "accumulation_steps": 3}, {"passes": 3}, _CLIPPED
    ),
    "gradients that wait on disk": _Tool(
        {"offload": "backward", "options": DeviceOptions(landing_bytes=0)}
    ),
    "tiles stepped ahead, in backward": _Tool({"speculate": True}),
    "tiles stepped ahead, and taken back where clipped": _Tool(
        {"max_norm": 0.2, "speculate": True, "accumulation_steps": 3},
        {"passes": 3},
        {"max_norm": 0.2},
    ),
    "GradScaler with an overflow": _Tool(train={"overflow_at": 3}),
    "some gradients absent": _Tool(train={"absent": True}),
}


def tool(name: str, devices: int, steps: int, folder: Path, seed: int = 0) -> Found:
    """Train a small net both ways, with one of torch's tools; losses are compared too."""
    chosen = TOOLS[name]
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.01}
    theirs, ours = _net(seed), _net(seed)
    reference = torch.optim.AdamW(theirs.parameters(), **options, fused=True)
    places = [folder / str(device) for device in range(devices)]
    found = Found()
    with SmartOptimizer(
        ours.parameters(), devices=places, tile=1024, **options, **chosen.ours
    ) as optimizer:
        losses = [
            _train(theirs, reference, steps, seed, **{**chosen.train, **chosen.theirs}),
            _train(ours, optimizer, steps, seed, **chosen.train),
        ]
        found.other += [
            f"step {step}: loss {b}, not {a}"
            for step, (a, b) in enumerate(zip(*losses, strict=True))
            if a != b
        ]
        found.add_parameters(list(ours.parameters()), list(theirs.parameters()))
        states = [reference.state[param] for param in theirs.parameters()]
        found.add_state("adamw", optimizer.state_dict()["state"], states)
    return found


def masters(devices: int, steps: int, folder: Path, seed: int = 0) -> Found:
    """Step bfloat16 parameters, whose float32 masters are to be those that torch would step."""
    sizes = (1, 7, 8, 9, 1023, 4096)
    ours = tensors(sizes, seed, torch.bfloat16)
    theirs = [param.detach().float().requires_grad_() for param in ours]
    case, found = CASES["adamw"], Found()
    reference = case.torch(theirs)
    places = [folder / str(device) for device in range(devices)]
    with SmartOptimizer(ours, devices=places, tile=1024, **case.options) as optimizer:
        for step in range(steps):
            given = [one.bfloat16() for one in gradients(sizes, step, seed)]
            for low, high, gradient in zip(ours, theirs, given, strict=True):
                low.grad, high.grad = gradient, gradient.float()
            optimizer.step()
            reference.step()
        state = optimizer.state_dict()["state"]
    found.add_parameters([state[i]["master"] for i in range(len(sizes))], theirs)
    found.add_parameters(ours, [param.detach().bfloat16() for param in theirs])
    found.add_state("adamw", state, [reference.state[param] for param in theirs])
    return found


def _net(seed: int) -> torch.nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(20, 133), torch.nn.Tanh(), torch.nn.Linear(133, 33), torch.nn.Tanh(),
        torch.nn.Linear(33, 5),
    )  # fmt: skip
    with torch.no_grad():
        for param in net.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.2)
    return net


def _train(
    net: torch.nn.Sequential,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int,
    *,
    max_norm: float | None = None,
    passes: int = 1,
    overflow_at: int | None = None,
    absent: bool = False,
) -> list[float]:
    params = list(net.parameters())
    scaler = None
    if overflow_at is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for part in range(passes):
            generator = torch.Generator().manual_seed(1000 * (seed + step) + part)
            loss = net(torch.randn(8, 20, generator=generator)).square().mean() / passes
            total += float(loss.detach())
            (loss if scaler is None else scaler.scale(loss)).backward()
        if absent:
            params[step % len(params)].grad = None
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        if scaler is None:
            optimizer.step()
        else:
            if step == overflow_at:
                assert params[0].grad is not None
                params[0].grad[0, 0] = float("inf")
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        losses.append(total)
    return losses
