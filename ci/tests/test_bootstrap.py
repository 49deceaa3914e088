"""ci/bootstrap on a machine that lacks things and may not be changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def bare_path(folder: Path, *tools: str) -> Path:
    """A PATH with only what the script itself calls, and `tools`."""
    folder.mkdir()
    for tool in ("bash", "env", "dirname", "id", *tools):
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def bootstrap(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with `path` as its whole PATH, forbidden to install."""
    return subprocess.run(
        [ROOT / "ci" / "bootstrap", *arguments],
        env={"PATH": str(path), "SHORTHAUL_NO_APT": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_names_the_one_command_and_exits_3(tmp_path: Path) -> None:
    done = bootstrap(bare_path(tmp_path / "bin"), "test")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("apt-get install -y --no-install-recommends python3 ")
    for package in ("python3-venv", "g++", "cmake", "ninja-build", "make", "git", "shellcheck"):
        assert package in done.stdout.split()
    assert "this machine lacks" in done.stderr


def test_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bin", "git", "make")
    done = bootstrap(path, "demo", PYTHON=sys.executable)
    wanted = done.stdout.split()
    assert "g++" in wanted
    assert {"git", "make", "python3", "shellcheck", "chromium"}.isdisjoint(wanted)


@pytest.mark.parametrize("tier", ["demo", "test"])
def test_looks_for_the_header_of_liburing(tmp_path: Path, tier: str) -> None:
    wanted = bootstrap(bare_path(tmp_path / "bin"), tier).stdout.split()
    there = any(Path(root, "include/liburing.h").exists() for root in ("/usr", "/usr/local"))
    assert ("liburing-dev" in wanted) == (not there)


def test_an_old_python_does_not_count(tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bin")
    old = path / "python3"
    old.write_text("#!/usr/bin/env bash\necho /usr/bin/python3\nexit 1\n")
    old.chmod(0o755)
    assert "python3" in bootstrap(path).stdout.split()


def test_an_unknown_tier_is_bad_input() -> None:
    done = bootstrap(Path(os.environ["PATH"]), "everything")
    assert done.returncode == 2
    assert done.stderr == "bootstrap: unknown tier 'everything'; use demo or test\n"
