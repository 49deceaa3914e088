"""Counts of a JUnit file, also of the files that a crash leaves or does not leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def counts(file: Path, code: int) -> str:
    """What the script prints."""
    script = ROOT / "ci" / "junit_counts.py"
    return subprocess.run(
        [sys.executable, script, file, str(code)], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("cases", "code", "expected"),
    [
        ("<testcase/><testcase><failure/></testcase><testcase><skipped/></testcase>", 1, "1 1 1"),
        ('<testcase status="run"/><testcase status="fail"><failure/></testcase>', 8, "1 1 0"),
        ("<testcase/><testcase/>", 0, "2 0 0"),
        ("<testcase/>", 139, "1 1 0"),
        ("", 5, "0 1 0"),
    ],
)
def test_counts(tmp_path: Path, cases: str, code: int, expected: str) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert counts(file, code) == expected


def test_no_file_is_a_failure(tmp_path: Path) -> None:
    assert counts(tmp_path / "none.xml", 134) == "0 1 0"
