"""Experiments are run through a command line; a stand-in for one is put beside the interpreter."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("ci_reproduce", ROOT / "ci" / "reproduce.py")
assert spec
assert spec.loader
ci_reproduce = importlib.util.module_from_spec(spec)
sys.modules["ci_reproduce"] = ci_reproduce  # dataclasses look their module up
spec.loader.exec_module(ci_reproduce)

CLI = """#!/usr/bin/env bash
case "$*" in
  *--list*) cat "$(dirname "$0")/listing.json" ;;
  *bad*) echo 'error: it broke' >&2; exit 2 ;;
  *) echo fine ;;
esac
"""
LISTING = """{
  "good": {"minutes": {"smoke": 0.1, "small": 2}},
  "bad": {"minutes": {"smoke": 0.1}}
}"""
CLAIMS = """
[[claim]]
id = "a"
says = "A"
source = "ours"
paper = "-"
experiment = "good"
metric = "m"
expect = {exact = 1}
demo = true
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one artifact whose command line is the script above."""
    (tmp_path / "made_up").mkdir()
    (tmp_path / "made_up" / "claims.toml").write_text(CLAIMS)
    (tmp_path / "listing.json").write_text(LISTING)
    script = tmp_path / "made-up"
    script.write_text(CLI)
    script.chmod(0o755)
    monkeypatch.setattr(ci_reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(ci_reproduce, "LOGS", tmp_path / "build" / "reproduce")
    monkeypatch.setattr(ci_reproduce, "cli", lambda artifact: str(script))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The script's exit code."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    return int(ci_reproduce.main())


def test_the_demo_runs_what_its_claims_rest_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "demo", "small") == 0
    out = capsys.readouterr().out
    assert "PASS  made_up good" in out
    assert "1 of 1 experiments ran" in out


def test_one_failure_shows_its_output_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "all", "smoke") == 1
    out = capsys.readouterr().out
    assert "PASS  made_up good" in out
    assert "FAIL  made_up bad" in out
    assert "error: it broke" in out
    assert "1 of 2 experiments ran" in out


def test_nothing_to_run_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "all", "paper") == 1
    assert "0 of 0" in capsys.readouterr().out


def test_an_unknown_artifact_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "all", "smoke", "nowhere")
    assert stop.value.code == 2
