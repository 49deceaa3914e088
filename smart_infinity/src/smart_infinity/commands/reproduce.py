"""``smart-infinity reproduce``: the paper's figures, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shorthaul import experiments


@dataclass(kw_only=True)
class Reproduce(experiments.Reproduce):
    """Run an experiment at a scale and record it under runs/."""

    artifact: ClassVar[str] = "smart_infinity"
    package: ClassVar[str] = "smart_infinity.experiments"
