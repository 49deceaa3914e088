"""From models to tasks: chains of modules, CNNs cut by name, Hugging Face decoders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipe_bd.adapters.cnn import from_named, separable, split
    from pipe_bd.adapters.hf_layers import LayerShape
    from pipe_bd.adapters.huggingface import HFTask, from_hf
    from pipe_bd.adapters.sequential import from_sequential

_HOME = {
    "HFTask": "huggingface",
    "LayerShape": "hf_layers",
    "from_hf": "huggingface",
    "from_named": "cnn",
    "from_sequential": "sequential",
    "separable": "cnn",
    "split": "cnn",
}
__all__ = ["HFTask", "LayerShape", "from_hf", "from_named", "from_sequential", "separable", "split"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipe_bd.adapters' has no attribute {name!r}")
    return getattr(import_module(f"pipe_bd.adapters.{_HOME[name]}"), name)
