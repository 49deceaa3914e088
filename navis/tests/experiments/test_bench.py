"""`navis bench`: the workload on a copy, and runbooks with exact recall."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from navis import Index
from navis.cli import main
from navis.datasets.synthetic import clustered
from navis.formats import write_truth, write_vectors
from navis.groundtruth import exact

STEPS = {
    1: {"operation": "insert", "start": 0, "end": 500},
    2: {"operation": "search"},
    3: {"operation": "delete", "start": 0, "end": 100},
    4: {"operation": "search"},
    5: {"operation": "replace", "tags_start": 100, "tags_end": 150, "ids_start": 500,
        "ids_end": 550},
    6: {"operation": "insert", "start": 600, "end": 700},
    7: {"operation": "search"},
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    made = clustered(800, 24, clusters=10, intrinsic=8, queries=30)
    write_vectors(tmp_path / "base.fbin", made.base())
    write_vectors(tmp_path / "queries.fbin", made.queries)
    truth = exact(made.base(), made.queries, 20)
    write_truth(tmp_path / "truth.bin", truth.ids, truth.distances)
    (tmp_path / "book.yaml").write_text(yaml.safe_dump({"toy": {"max_pts": 800, **STEPS}}))
    Index.build(tmp_path / "ix", made.base()[:600]).close()
    return tmp_path


def bench(files: Path, *more: str, index: str = "ix") -> int:
    data = [str(files / name) for name in (index, "base.fbin", "queries.fbin")]
    return main(["bench", *data, *more])


def test_the_workload_runs_on_a_copy(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(files.iterdir())
    out = files / "out.json"
    code = bench(files, "--start", "600", "--truth", str(files / "truth.bin"), "--json", str(out))
    assert code == 0
    found = json.loads(out.read_text())
    assert found["inserted"] == 200
    assert found["recall"] > 0.9
    assert found["requests_per_insert"] > 0
    assert "insert" in capsys.readouterr().out
    assert sorted(files.iterdir()) == sorted([*before, out])
    with Index.open(files / "ix", readonly=True) as index:
        assert len(index) == 600


def test_keep_works_on_the_index_itself(files: Path) -> None:
    code = bench(files, "--start", "600", "--count", "50", "--search-threads", "0", "--keep")
    assert code == 0
    with Index.open(files / "ix", readonly=True) as index:
        assert len(index) == 650


def test_searches_alone_take_the_time_given(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(files, "--insert-threads", "0", "--seconds", "0.2", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["searched"] > 0
    assert 0.15 < found["wall_s"] < 5


def test_a_runbook_is_done_with_exact_recall(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = files / "out.json"
    book = str(files / "book.yaml")
    assert bench(files, "--runbook", book, "--L", "80", "--json", str(out), index="new") == 0
    steps = json.loads(out.read_text())["steps"]
    assert [s["operation"] for s in steps] == [s["operation"] for s in STEPS.values()]
    assert [s["live"] for s in steps] == [500, 500, 400, 400, 400, 500, 500]
    assert all(s["recall"] > 0.95 for s in steps if s["operation"] == "search")
    assert not (files / "new").exists()
    assert "replace" in capsys.readouterr().out


def test_recall_after_a_replace_is_of_the_new_vectors(files: Path) -> None:
    book = files / "one.yaml"
    steps = {1: STEPS[1], 2: {**STEPS[5], "tags_start": 0, "tags_end": 50}, 3: STEPS[2]}
    book.write_text(yaml.safe_dump({"toy": {"max_pts": 800, **steps}}))
    out = files / "out.json"
    assert bench(files, "--runbook", str(book), "--keep", "--json", str(out), index="new") == 0
    assert json.loads(out.read_text())["steps"][-1]["recall"] > 0.95
    base = np.asarray(clustered(800, 24, clusters=10, intrinsic=8, queries=30).base())
    with Index.open(files / "new", readonly=True) as index:
        assert np.array_equal(index.get([0, 49]), base[[500, 549]])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--insert-threads", "0", "--search-threads", "0"], "nothing to do"),
        (["--k", "50"], "--k 50"),
        (["--start", "900"], "900"),
        (["--seconds", "0"], "--seconds"),
        (["--runbook", "book.yaml"], "starts from nothing"),
        (["--runbook", "absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    flags: list[str], said: str, files: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(files)
    assert bench(files, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_runbook_needs_its_rows(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = files / "long.yaml"
    book.write_text(yaml.safe_dump({"toy": {"max_pts": 5000, 1: {**STEPS[1], "end": 5000}}}))
    assert bench(files, "--runbook", str(book), index="new") == 2
    assert "800 rows" in capsys.readouterr().err
    assert not (files / "new").exists()
