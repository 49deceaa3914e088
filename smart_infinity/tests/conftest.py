"""Devices in temporary folders, and the way to the helpers beside this file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Test modules are no package; their helpers are plain modules.
sys.path.insert(0, str(Path(__file__).parent))

from smart_testing import Make

from smart_infinity import SmartOptimizer

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture
def smart(tmp_path: Path) -> Iterator[Make]:
    """Make optimizers on `devices` folders below tmp_path (the same ones again: a resume)."""
    made: list[SmartOptimizer] = []

    def make(params: Any, devices: int = 1, **options: Any) -> SmartOptimizer:
        folders = [tmp_path / f"device-{d}" for d in range(devices)]
        optimizer = SmartOptimizer(params, devices=folders, **{"tile": 1024, **options})
        made.append(optimizer)
        return optimizer

    yield make
    for optimizer in made:
        optimizer.array.kill()
