"""``smart-infinity doctor``: what this machine has and lacks."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from shorthaul import doctor
from shorthaul.cli import Common


@dataclass(kw_only=True)
class Doctor(Common):
    """Say what this machine has and lacks, each with its reason."""

    def run(self) -> None:
        """Print the checks."""
        checks = [*doctor.common(torch=True), engine()]
        for package, gives in (
            ("transformers", "smart-infinity train, and the Trainer example"),
            ("pyopencl", "OpenCL kernels"),
            ("deepspeed", "the benchmark beside DeepSpeed"),
        ):
            there = importlib.util.find_spec(package) is not None
            detail = "installed" if there else f"not installed: no {gives}"
            checks.append(doctor.Check(package, there, detail, f"pip install {package}"))
        doctor.run(checks, self.json)


def engine() -> doctor.Check:
    """The compiled engine."""
    try:
        from smart_infinity import _core
    except ImportError as error:
        fix = "pip install shorthaul-smart-infinity with a C++20 compiler"
        return doctor.Check("engine", False, str(error), fix, required=True)
    return doctor.Check("engine", True, f"compiled, {_core.simd()} kernels", required=True)
