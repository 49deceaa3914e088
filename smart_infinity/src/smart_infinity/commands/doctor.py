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
        checks = [*doctor.common(torch=True), engine(), *accelerators()]
        for package, needed_for in (
            ("transformers", "smart-infinity train, and the Trainer example"),
            ("accelerate", "the Trainer example"),
            ("deepspeed", "the adapter for DeepSpeed"),
        ):
            there = importlib.util.find_spec(package) is not None
            detail = "installed" if there else f"not installed; {needed_for} needs it"
            checks.append(doctor.Check(package, there, detail, f"pip install {package}"))
        checks.append(beside_deepspeed())
        doctor.run(checks, self.json)


def beside_deepspeed() -> doctor.Check:
    """The environment that experiments beside DeepSpeed run it in."""
    from smart_infinity import deepspeed_environment as environment

    folder = environment.default_folder()
    if environment.find(folder) is not None:
        return doctor.Check("beside DeepSpeed", True, f"its environment is {folder}")
    lack = f"no environment in {folder}; deepspeed_duel and deepspeed_resume need one"
    return doctor.Check("beside DeepSpeed", False, lack, f"{environment.FIX} {folder}")


def accelerators() -> list[doctor.Check]:
    """What may stand in for the processor: OpenCL for updates, CUDA for top-k."""
    try:
        from smart_infinity import _core
    except ImportError:
        return []
    more = "docs/accelerators.md"
    no_opencl, no_cuda = _core.opencl_reason(), _core.cuda_reason()
    return [
        doctor.Check("OpenCL", not no_opencl, no_opencl or _core.opencl_device(), more),
        doctor.Check("CUDA top-k", not no_cuda, no_cuda or "usable", more),
    ]


def engine() -> doctor.Check:
    """The compiled engine."""
    try:
        from smart_infinity import _core
    except ImportError as error:
        fix = "pip install shorthaul-smart-infinity with a C++20 compiler"
        return doctor.Check("engine", False, str(error), fix, required=True)
    return doctor.Check("engine", True, f"compiled, {_core.simd()} kernels", required=True)
