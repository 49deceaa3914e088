import json
import subprocess
from pathlib import Path

import pytest
from shorthaul import machine


def test_describe_is_json_and_complete() -> None:
    found = json.loads(json.dumps(machine.describe()))
    assert set(found) == {
        "cpu", "cores", "memory_bytes", "kernel", "python", "versions", "gpu", "commit", "dirty",
        "load",
    }  # fmt: skip
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert found["versions"]["shorthaul-common"] == "0.1.0"
    assert "numpy" in found["versions"]


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_commit_and_dirty(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    head, dirty = machine.commit(tmp_path)
    assert head is not None
    assert len(head) == 40
    assert dirty is False
    (tmp_path / "file").write_text("b")
    assert machine.commit(tmp_path) == (head, True)


def test_a_stranger_repository_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "venv" / "machine.py"))
    (tmp_path / "venv").mkdir()
    monkeypatch.chdir(tmp_path)
    assert machine.commit() == (None, None)


def test_outside_a_checkout(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) == (None, None)


def test_output_of_what_is_absent_fails_or_works() -> None:
    assert machine.output("no-such-program-here") is None
    assert machine.output("false") is None
    assert machine.output("echo", "a b") == "a b"


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpu.cache_clear()
    monkeypatch.setattr(machine, "output", lambda *command: "NVIDIA H200\nNVIDIA H200")
    try:
        assert machine.gpu() == "2 x NVIDIA H200"
    finally:
        machine.gpu.cache_clear()
