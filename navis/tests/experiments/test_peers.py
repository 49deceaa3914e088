"""Peers as processes: the protocol, its failures, and that none is needed to be there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, Fault

from navis import peers
from navis.datasets.synthetic import clustered

GIVEN = {"degree": 16, "build_list": 32, "alpha": 1.2, "threads": 1, "code_bytes": 8, "beam": 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    made = clustered(500, 24, clusters=10, intrinsic=8, queries=20)
    np.save(folder / "base.npy", made.base())
    np.save(folder / "queries.npy", made.queries)
    return folder


@pytest.mark.parametrize("name", ["navis", "faiss"])
def test_a_system_builds_and_answers_in_its_process(name: str, files: Path, tmp_path: Path) -> None:
    with peers.Driver(name) as driver:
        built = driver.ask("build", base=files / "base.npy", rows=400, folder=tmp_path, **GIVEN)
        assert built["cpu_s"] > 0
        driver.ask("open", folder=tmp_path, **GIVEN)
        took = driver.ask("search", queries=files / "queries.npy", k=5, L=80, threads=1,
                          out=tmp_path / "ids.npy")  # fmt: skip
    ids = np.load(tmp_path / "ids.npy")
    base, queries = np.load(files / "base.npy")[:400], np.load(files / "queries.npy")
    nearest = ((queries[:, None] - base[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (ids[:, 0] == nearest).mean() > 0.9
    assert took["wall_s"] > 0
    if name == "navis":
        assert took["read_bytes"] % 512 == 0


def test_opening_anew_finds_what_was_built(files: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with peers.Driver("faiss") as driver:
            if not (tmp_path / "base.npy").exists():
                driver.ask("build", base=files / "base.npy", rows=100, folder=tmp_path, **GIVEN)
            driver.ask("open", folder=tmp_path, **GIVEN)
            driver.ask("search", queries=files / "queries.npy", k=5, L=20, threads=1,
                       out=tmp_path / "ids.npy")  # fmt: skip
    assert np.load(tmp_path / "ids.npy").max() < 100


def test_a_failure_there_is_a_fault_here(files: Path, tmp_path: Path) -> None:
    with peers.Driver("navis") as driver:
        with pytest.raises(Fault, match="navis cannot open"):
            driver.ask("open", folder=tmp_path / "nothing", **GIVEN)
        driver.ask("build", base=files / "base.npy", rows=100, folder=tmp_path, **GIVEN)


def test_a_death_there_is_a_fault_here(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 1\n")
    script.chmod(0o755)
    with peers.Driver("hnswlib", script) as driver, pytest.raises(Fault, match="no such library"):
        driver.ask("open", folder=tmp_path, **GIVEN)


def test_every_system_has_its_requirements() -> None:
    assert set(peers.requirements()) == set(peers.SYSTEMS)
    for entry in peers.requirements().values():
        assert all("==" in need or need.startswith("numpy") for need in entry["requires"])


@pytest.mark.slow
def test_environments_are_made_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peers.python_of("navis", tmp_path) == Path(sys.executable)
    assert peers.python_of("hnswlib", tmp_path) is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(
        peers, "requirements", lambda: {"hnswlib": {"requires": ["no-such-thing-as-this==0"]}}
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EnvironmentLack, match="hnswlib cannot be installed"):
        peers.python_of("hnswlib", tmp_path, make=True)
    assert not list(tmp_path.iterdir())
