"""``pipe-bd doctor``: what this machine has and lacks."""

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
        doctor.run([*doctor.common(), native(), transformers(), gloo()], self.json)


def native() -> doctor.Check:
    """The compiled planner and simulator."""
    try:
        from pipe_bd import _core
    except ImportError as error:
        return doctor.Check(
            "planner",
            False,
            str(error),
            "pip install shorthaul-pipe-bd with a C++20 compiler",
            required=True,
        )
    return doctor.Check("planner", True, f"compiled ({_core.__name__})", required=True)


def transformers() -> doctor.Check:
    """The optional Hugging Face adapter."""
    there = importlib.util.find_spec("transformers") is not None
    detail = "installed" if there else "not installed: no Hugging Face adapter"
    return doctor.Check("transformers", there, detail, "pip install transformers")


def gloo() -> doctor.Check:
    """The CPU transport."""
    import torch.distributed as dist

    there = dist.is_available() and dist.is_gloo_available()
    return doctor.Check(
        "gloo",
        there,
        "available" if there else "this torch has no gloo",
        "install a torch built with gloo",
    )
