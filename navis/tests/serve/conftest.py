"""A small index, and its application in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from starlette.testclient import TestClient

from navis import Index
from navis.serve.app import create_app
from navis.serve.config import Limits
from navis.serve.engine import Engine

DIM = 16


@pytest.fixture(scope="session")
def rows() -> npt.NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(300, DIM)).astype(np.float32)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Path:
    """Row i has label i % 3, and value i where i is even."""
    numbers = np.arange(len(rows))
    values = np.where(numbers % 2, np.nan, numbers)
    folder = tmp_path_factory.mktemp("built") / "ix"
    Index.build(folder, rows, labels=numbers % 3, values=values).close()
    return folder


@pytest.fixture
def folder(tmp_path: Path, built: Path) -> Path:
    """A copy, closed."""
    return Path(shutil.copytree(built, tmp_path / "ix"))


@pytest.fixture
def index(folder: Path) -> Iterator[Index]:
    with Index.open(folder) as index:
        yield index


@pytest.fixture
def engine(index: Index) -> Iterator[Engine]:
    engine = Engine(index, threads=2)
    yield engine
    engine.close()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    app = create_app(engine, limits=Limits(request_bytes=200_000, rows=50, k=20, list=100))
    with TestClient(app, base_url="http://localhost") as client:
        yield client
