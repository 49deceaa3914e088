"""Small data that every test may read; made once."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import pytest

from navis.datasets.synthetic import clustered

os.environ.setdefault("OMP_NUM_THREADS", "1")

Matrix = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def base() -> Matrix:
    return clustered(3000, 48, clusters=30, intrinsic=12, queries=50).base()


@pytest.fixture(scope="session")
def queries() -> Matrix:
    return clustered(3000, 48, clusters=30, intrinsic=12, queries=50).queries
