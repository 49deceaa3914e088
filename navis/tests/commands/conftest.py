"""What the tests of the verbs share: a way to run one, and an index to run it on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import navis
from navis.cli import main
from navis.formats import write_vectors

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb; gives its JSON, or its one line of error when `code` is not 0."""

    def go(*words: Any, code: int = 0) -> Any:
        out = tmp_path / "out.json"
        capsys.readouterr()
        got = main([*(str(word) for word in words), "--json", str(out)])
        error = capsys.readouterr().err.strip()
        assert got == code, error
        if code == 0:
            return json.loads(out.read_text())
        assert len(error.splitlines()) == 1, error
        return error

    return go


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, base: Any) -> Path:
    folder = tmp_path_factory.mktemp("built") / "ix"
    navis.Index.build(folder, base[:1500]).close()
    return folder


@pytest.fixture
def ix(tmp_path: Path, built: Path) -> Path:
    """An index of 1,500 vectors, each test's own."""
    return Path(shutil.copytree(built, tmp_path / "ix"))


@pytest.fixture
def query_file(tmp_path: Path, queries: Any) -> Path:
    path = tmp_path / "q.fbin"
    write_vectors(path, np.asarray(queries))
    return path
