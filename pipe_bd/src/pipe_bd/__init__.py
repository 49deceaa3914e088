"""Pipelined blockwise distillation (Pipe-BD, DATE 2023).

One relayed teacher pass, no barrier, planned by measurement.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipe_bd.api import distill
    from pipe_bd.blocks import BlockPair, Candidate, Projected, Task
    from pipe_bd.losses import MSE, Loss, NormalisedMSE, SoftCrossEntropy
    from pipe_bd.plan import Plan, Stage
    from pipe_bd.profile import Profile
    from pipe_bd.result import Result
    from pipe_bd.source import Batch, StreamSource, dataset_source, tensor_source

try:
    __version__ = version("shorthaul-pipe-bd")
except PackageNotFoundError:
    __version__ = "0+uninstalled"

# Imported on first use: planning and simulating must not pay for torch.
_HOME = {
    "BlockPair": "blocks",
    "Candidate": "blocks",
    "Projected": "blocks",
    "Task": "blocks",
    "distill": "api",
    "MSE": "losses",
    "Loss": "losses",
    "NormalisedMSE": "losses",
    "SoftCrossEntropy": "losses",
    "Plan": "plan",
    "Stage": "plan",
    "Profile": "profile",
    "Result": "result",
    "Batch": "source",
    "StreamSource": "source",
    "dataset_source": "source",
    "tensor_source": "source",
}
__all__ = [
    "MSE",
    "Batch",
    "BlockPair",
    "Candidate",
    "Loss",
    "NormalisedMSE",
    "Plan",
    "Profile",
    "Projected",
    "Result",
    "SoftCrossEntropy",
    "Stage",
    "StreamSource",
    "Task",
    "__version__",
    "dataset_source",
    "distill",
    "tensor_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipe_bd' has no attribute {name!r}")
    return getattr(import_module(f"pipe_bd.{_HOME[name]}"), name)
