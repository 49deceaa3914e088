"""Flash wears out: bytes a step writes, and how many steps a drive bears."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shorthaul.errors import UserError

from smart_infinity.formulas import MOMENT_BYTES

# Written by the file system and the drive beyond what they are given: assumed, not measured.
AMPLIFICATION = 1.0


@dataclass(frozen=True)
class Wear:
    """What a training run writes.

    Attributes:
        bytes_per_param: Written per parameter and step.
        bytes_per_step: Over all devices.
        steps: Until a drive's rated endurance is used up, with the bytes dealt evenly.
        days: The same at a number of steps a day, if given.
    """

    bytes_per_param: float
    bytes_per_step: float
    steps: float
    days: float | None


def written_per_param(moments: int, moment_type: str, landed: float) -> float:
    """Give bytes written per parameter and step: master, moments, gradients that wait on disk."""
    if moment_type not in MOMENT_BYTES:
        raise UserError(f"moments {moment_type!r}: use {', '.join(MOMENT_BYTES)}")
    return 4.0 + moments * MOMENT_BYTES[moment_type] + landed


def wear(
    params: float,
    *,
    devices: int = 1,
    tbw: float = 600.0,
    moments: int = 2,
    moment_type: str = "float32",
    landed: float = 0.0,
    steps_per_day: float | None = None,
) -> Wear:
    """Give what a model's optimizer writes.

    Args:
        params: Parameters.
        devices: Drives they are dealt to.
        tbw: Rated endurance of one drive, in terabytes written.
        moments: Arrays of moments (Adam 2, AdaGrad and SGD with momentum 1).
        moment_type: How they are stored.
        landed: Bytes per parameter of gradients that wait on the drive for their step.
        steps_per_day: For `days`.

    Raises:
        UserError: One of them is not a number that could be.
    """
    for name, value in (("params", params), ("devices", devices), ("tbw", tbw)):
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: use more than 0")
    if params != int(params):
        raise UserError(f"--params {params}: use a whole number")
    for name, value in (("landed", landed), ("steps-per-day", steps_per_day or 0.0)):
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} {value}: use 0 or more")
    each = written_per_param(moments, moment_type, landed)
    total = each * params * AMPLIFICATION
    steps = tbw * 1e12 * devices / total
    return Wear(each, total, steps, None if not steps_per_day else steps / steps_per_day)
