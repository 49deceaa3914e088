"""`navis cachesim`: trace, keep, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_record_then_replay(
    run: Any, ix: Path, query_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ix.parent / "kept.trace"
    words = ["cachesim", ix, "--queries", query_file, "--L", "30", "--sizes", "2,20,100"]
    found = run(*words, "--record", kept)
    assert (found["lists"], found["traversals"], found["L"]) == (1500, 50, 30)
    assert found["distinct"] <= found["accesses"] >= 50 * 20
    assert [row["entries"] for row in found["rows"]] == [30, 300, 1500]
    for policy in ("lfu", "lru"):
        ratios = [row["hit_ratio"][policy] for row in found["rows"]]
        assert ratios == sorted(ratios)
        cold = found["rows"][2]["hit_ratio_cold"][policy]
        assert cold == pytest.approx(1 - found["distinct"] / found["accesses"])
    words = ["--trace", kept, "--sizes", "2,20,100"]
    assert run("cachesim", *words) == found
    assert run("cachesim", ix, *words) == found
    (row,) = run("cachesim", *words[:2], "--sizes", "20", "--policies", "none,lru")["rows"]
    assert row["hit_ratio"] == {"none": 0, "lru": found["rows"][1]["hit_ratio"]["lru"]}
    assert run("cachesim", ix, "--queries", query_file, "--seek")["seek"] is True


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ix"], "--queries"),
        (["--queries", "q.fbin"], "give INDEX"),
        (["none", "--queries", "q.fbin"], "no such folder"),
        (["ix", "--queries", "none.fbin"], "none.fbin"),
        (["ix", "--queries", "q.fbin", "--trace", "x"], "leave out"),
        (["--trace", "none"], "cannot be read"),
        (["--trace", "q.fbin"], "not a trace"),
        (["ix", "--queries", "q.fbin", "--sizes", "0"], "--sizes"),
        (["ix", "--queries", "q.fbin", "--sizes", "five"], "--sizes"),
        (["ix", "--queries", "q.fbin", "--policies", "fifo"], "--policies"),
        (["ix", "--queries", "q.fbin", "--L", "0"], "L 0"),
        (["ix", "--queries", "q.fbin", "--record", "q.fbin/x"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    run: Any,
    ix: Path,
    query_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(ix.parent)
    assert says in run("cachesim", *words, code=2)
