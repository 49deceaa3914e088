"""The optimizers: names, defaults as torch's, and which arrays each keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shorthaul.cli import nearest
from shorthaul.errors import UserError

from smart_infinity import _core


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer.

    Attributes:
        defaults: Hyperparameters and their defaults, as in torch.optim.
        arrays: torch's names of its state tensors, in the order in which they are stored.
    """

    name: str
    defaults: Mapping[str, Any]
    arrays: tuple[str, ...]

    def moments(self, defaults: Mapping[str, Any]) -> tuple[str, ...]:
        """Give the arrays kept with these hyperparameters: SGD without momentum has none."""
        if self.name == "sgd" and not defaults["momentum"]:
            return ()
        return self.arrays


_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "maximize": False}
OPTIMIZERS = {
    "adamw": Optimizer("adamw", {**_ADAM, "weight_decay": 1e-2}, ("exp_avg", "exp_avg_sq")),
    "adam": Optimizer("adam", {**_ADAM, "weight_decay": 0.0}, ("exp_avg", "exp_avg_sq")),
    "adagrad": Optimizer(
        "adagrad",
        {"lr": 1e-2, "lr_decay": 0.0, "weight_decay": 0.0, "eps": 1e-10, "maximize": False},
        ("sum",),
    ),
    "sgd": Optimizer(
        "sgd",
        {
            "lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0,
            "nesterov": False, "maximize": False,
        },
        ("momentum_buffer",),
    ),
}  # fmt: skip
WITHOUT_MOMENTUM: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"beta1": 0.0}, "adam": {"beta1": 0.0}, "adagrad": {},
    "sgd": {"momentum": 0.0, "nesterov": False},
}  # fmt: skip
"""Settings of a step whose gradients carry a momentum already."""
MOMENTS = ("float32", "bfloat16", "blocks8")


def optimizer(name: str) -> Optimizer:
    """Look an optimizer up; an unknown one is a UserError with the nearest name."""
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}{nearest(name, OPTIMIZERS)}")
    return OPTIMIZERS[name]


def merged(kind: Optimizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the kind's defaults with what was given; an unknown name is a UserError."""
    for name in given:
        if name not in kind.defaults:
            raise UserError(f"{kind.name} has no {name!r}{nearest(name, kind.defaults)}")
    return {**kind.defaults, **given}


def settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Give a parameter group's hyperparameters as the core names them; else a UserError."""
    found = {
        name: group[name]
        for name in (
            "lr", "eps", "weight_decay", "momentum", "dampening", "lr_decay", "nesterov", "maximize"
        )
        if name in group
    }  # fmt: skip
    if group.get("amsgrad"):
        raise UserError("amsgrad=True: the devices have no amsgrad")
    if "betas" in group:
        try:
            found["beta1"], found["beta2"] = group["betas"]
        except (TypeError, ValueError):
            raise UserError(f"betas={group['betas']!r}: use two numbers") from None
    numbers: dict[str, float | bool] = {}
    for name, value in found.items():
        try:
            numbers[name] = value if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            raise UserError(f"{name}={value!r}: use a number") from None
    return numbers


def check(kind: Optimizer, group: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that make no sense (UserError), as a device would."""
    core = _core.Settings()
    for name, value in settings(group).items():
        setattr(core, name, value)
    _core.check_settings(_core.Kind[kind.name], core)
