"""The optimizer runs beside the storage that holds its state.

>>> from smart_infinity import SmartOptimizer
>>> optimizer = SmartOptimizer(model.parameters(), lr=1e-3, devices=["/mnt/a/s", "/mnt/b/s"])

`docs/` has the formats; `smart-infinity --help` the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smart_infinity.client import DeviceOptions
    from smart_infinity.compress import TopK
    from smart_infinity.optimizer import SmartOptimizer

__version__ = "0.1.0"
__all__ = ["DeviceOptions", "SmartOptimizer", "TopK"]
_WHERE = {"DeviceOptions": "client", "SmartOptimizer": "optimizer", "TopK": "compress"}


def __getattr__(name: str) -> Any:
    # Lazily: a device's process has no use for torch, which takes seconds to import.
    if name in _WHERE:
        return getattr(importlib.import_module(f"smart_infinity.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'smart_infinity' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
