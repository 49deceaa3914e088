"""The verbs of the command line, run as a user would, with bad input among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navis.cli import main
from navis.formats import write_vectors


@pytest.fixture
def files(tmp_path: Path, base: Any, queries: Any) -> Path:
    write_vectors(tmp_path / "base.fbin", base[:1000])
    write_vectors(tmp_path / "more.fbin", base[1000:1200])
    write_vectors(tmp_path / "q.fbin", queries)
    return tmp_path


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def test_from_a_file_to_recall(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", files / "base.fbin", files / "ix", "--json", files / "b.json") == 0
    assert json.loads((files / "b.json").read_text())["vectors"] == 1000
    assert run("gt", files / "base.fbin", files / "q.fbin", files / "t.bin", "--k", "20") == 0
    words = ["search", files / "ix", files / "q.fbin", "--truth", files / "t.bin", "--L", "10,60"]
    assert run(*words, "--json", files / "s.json") == 0
    rows = json.loads((files / "s.json").read_text())["rows"]
    assert [row["L"] for row in rows] == [10, 60]
    assert rows[1]["recall"] >= 0.97
    wanted = {"qps", "mean_ms", "p50_ms", "p99_ms", "cpu_ms", "requests", "bytes"}
    assert wanted <= rows[0].keys()
    assert abs(rows[1]["kernel_read_bytes"] - rows[1]["bytes"]) <= 0.02 * rows[1]["bytes"] + 600
    assert run("insert", files / "ix", files / "more.fbin", "--json", files / "i.json") == 0
    assert json.loads((files / "i.json").read_text())["first_id"] == 1000
    assert run("delete", files / "ix", "5,1000-1009") == 0
    assert run("stats", files / "ix", "--json", files / "st.json") == 0
    assert json.loads((files / "st.json").read_text())["live"] == 1189
    assert run("verify", files / "ix") == 0
    assert "no faults" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "none.fbin", "ix"], "none.fbin"),
        (["build", "base.fbin", "ix", "--metric", "x"], "--metric"),
        (["build", "base.fbin", "."], "not empty"),
        (["build", "base.fbin", "ix", "--memory-budget", "lots"], "--memory-budget"),
        (["search", "none", "q.fbin"], "no such folder"),
        (["search", "ixs", "q.fbin", "--L", "ten"], "--L"),
        (["search", "ixs", "bad.fbin"], "dimensions"),
        (["search", "ixs", "q.fbin", "--k", "5000"], "holds 1000"),
        (["insert", "ixs", "q.fbin", "--start", "99999"], "99999"),
        (["delete", "ixs", "a-b"], "ids"),
        (["delete", "ixs", "18446744073709551615"], "too large"),
        (["delete", "ixs", "0-18446744073709551614"], "more than"),
        (["delete", "ixs", "floats.npy"], "whole numbers"),
        (["delete", "ixs", "none.npy"], "no such file"),
        (["insert", "ixs", "q.fbin", "--first-id", "-1"], "--first-id -1"),
        (["insert", "ixs", "q.fbin", "--first-id", "18446744073709551615"], "--first-id"),
        (["search", "ixs", "q.fbin", "--L", "99999999999999999999"], "99999999999999999999"),
        (["search", "ixs", "q.fbin", "--out", "ixs"], "--out ixs is a folder"),
        (["gt", "base.fbin", "q.fbin", "ixs"], "is a folder"),
        (["gt", "base.fbin", "q.fbin", "t.bin", "--k", "1001"], "--k 1001"),
        (["build", "base.fbin", "ix", "--count", "0"], "no rows"),
        (["build", "base.fbin", "ix", "--code-bytes", "0"], "code_bytes 0"),
        (["build", "base.fbin", "ix", "--build-list", "0"], "build_list 0"),
        (["build", "base.fbin", "ix", "--beam", "0"], "beam 0"),
        (["build", "base.fbin", "ix", "--threads", "100000"], "threads 100000"),
        (["verify", "."], "not a navis index"),
        (["sarch"], "search"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    files: Path,
    base: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(files)
    write_vectors(files / "bad.fbin", base[:5, :7])
    np.save(files / "floats.npy", np.array([1.5, 2.0]))
    if "ixs" in words:
        assert run("build", "base.fbin", "ixs") == 0
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
    assert not (files / "ix").exists()


def test_verify_says_which_file_is_damaged(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", files / "base.fbin", files / "ix") == 0
    vectors = files / "ix" / "vectors.dat"
    content = bytearray(vectors.read_bytes())
    content[64] ^= 0xFF
    vectors.write_bytes(content)
    assert run("verify", files / "ix") == 1
    assert "vectors.dat" in capsys.readouterr().err


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert len(capsys.readouterr().out.splitlines()) <= 24


def test_doctor_knows_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    assert "engine" in capsys.readouterr().out


def test_ids_are_read_from_files_and_ranges(tmp_path: Path) -> None:
    from navis.commands.change import id_list

    np.save(tmp_path / "ids.npy", np.array([3, 4]))
    (tmp_path / "ids.txt").write_text("1\n2\n")
    assert id_list("1,5-7").tolist() == [1, 5, 6, 7]
    assert id_list(str(tmp_path / "ids.npy")).tolist() == [3, 4]
    assert id_list(str(tmp_path / "ids.txt")).tolist() == [1, 2]
