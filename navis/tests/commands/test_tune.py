"""`navis tune`, and searches that use what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import navis


def test_tune_then_search_by_recall(run: Any, ix: Path, query_file: Path, base: Any) -> None:
    from navis.formats import write_vectors

    write_vectors(ix.parent / "base.fbin", base[:1500])
    run("gt", ix.parent / "base.fbin", query_file, ix.parent / "t.bin", "--k", "20")
    words = ["tune", ix, "--target-recall", "0.95", "--queries", query_file]
    computed = run(*words)
    given = run(*words, "--truth", ix.parent / "t.bin")
    assert given["recall"] >= 0.95
    assert {k: given[k] for k in ("L", "margin", "recall")} == {
        k: computed[k] for k in ("L", "margin", "recall")
    }
    kept = [t for t in given["trials"] if (t["L"], t["margin"]) == (given["L"], given["margin"])]
    assert [t["recall"] for t in kept] == [given["recall"]]
    words = ["search", ix, query_file, "--truth", ix.parent / "t.bin"]
    (row,) = run(*words, "--target-recall", "0.95")["rows"]
    assert row["L"] == given["L"]
    assert row["recall"] == pytest.approx(given["recall"])
    assert "not tuned" in run(*words, "--target-recall", "0.99", code=2)
    assert "give one" in run(*words, "--target-recall", "0.95", "--L", "10", code=2)


def test_tune_works_beside_a_writer(run: Any, ix: Path, queries: Any) -> None:
    with navis.Index.open(ix) as index:
        run("tune", ix, "--target-recall", "0.9", "--k", "5")
        ids, _ = index.search(queries, 5, target_recall=0.9)  # as soon as it is there
        assert ids.shape == (50, 5)
        index.insert([99999], np.ones(48, np.float32))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target-recall", "1.1"], "target_recall 1.1"),
        (["--target-recall", "x"], "--target-recall"),
        ([], "--target-recall"),
        (["--target-recall", "0.9", "--k", "1501"], "holds 1500"),
        (["--target-recall", "0.9", "--queries", "none.fbin"], "none.fbin"),
        (["--target-recall", "0.9", "--truth", "t.bin"], "--queries"),
    ],
)
def test_bad_input_is_one_line(run: Any, ix: Path, words: list[str], says: str) -> None:
    assert says in run("tune", ix, *words, code=2)
    assert not (ix / "tuning.json").exists()
