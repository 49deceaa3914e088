"""Indexes to damage, the shim, and the way to the helpers beside this file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import navis
from navis.datasets.synthetic import clustered
from navis.experiments._crash import Matrix, Model

# Test modules are no package; their helpers are plain modules.
sys.path.insert(0, str(Path(__file__).parent))
import power
from small import BUILT, DIM, ROWS, Fresh


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="session")
def data(shared: Path) -> Any:
    made = clustered(ROWS, DIM, clusters=40, intrinsic=12, queries=500)
    np.save(shared / "vectors.npy", made.base())
    return made


@pytest.fixture(scope="session")
def vectors_file(shared: Path, data: Any) -> Path:
    return shared / "vectors.npy"


@pytest.fixture(scope="session")
def vectors(vectors_file: Path) -> Matrix:
    loaded: Matrix = np.load(vectors_file)
    return loaded


@pytest.fixture(scope="session")
def queries(data: Any) -> Matrix:
    drawn: Matrix = data.queries
    return drawn


@pytest.fixture(scope="session")
def fresh(shared: Path, vectors: Matrix) -> Fresh:
    """``fresh(folder, layout)`` puts a new small index there and says what is in it."""

    def make(folder: Path, layout: str) -> Model:
        template = shared / layout
        if not template.exists():
            navis.Index.build(template, vectors[:BUILT], layout=layout, degree=24).close()
        shutil.copytree(template, folder)
        return Model(vectors, BUILT)

    return make


@pytest.fixture(scope="session")
def shim(shared: Path) -> Path:
    try:
        return power.compile_shim(shared)
    except FileNotFoundError:
        pytest.skip("there is no gcc to compile the recording shim with")
    except subprocess.CalledProcessError:
        pytest.fail("shim.c does not compile")
