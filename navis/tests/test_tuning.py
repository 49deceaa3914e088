"""Search lists found for a recall: the smallest, kept, used, and refused where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, UserError

import navis
from navis import tuning
from navis.errors import Corrupt
from navis.formats import Truth, recall
from navis.groundtruth import exact


@pytest.fixture(scope="module", params=["selective", "packed"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of ids 10, 11, …, read in by the tests that change nothing but the tuning."""
    from navis.datasets.synthetic import clustered

    base = clustered(3000, 48, clusters=30, intrinsic=12, queries=50).base()
    folder = tmp_path_factory.mktemp("tuning") / "ix"
    layout: Any = request.param
    # Coarse codes, few edges: something to tune.
    navis.Index.build(
        folder, base, np.arange(10, 3010), layout=layout, degree=12, code_bytes=8
    ).close()
    return folder


def measured(index: navis.Index, base: Any, queries: Any, **how: Any) -> float:
    truth = exact(base, queries, 20)
    ids, _ = index.search(queries, 10, **how)
    return recall(ids.astype(np.int64) - 10, truth.ids, 10, truth.distances)


@pytest.mark.parametrize("target", [0.7, 0.93])
def test_the_list_is_the_smallest_that_reaches_it(
    built: Path, base: Any, queries: Any, target: float
) -> None:
    with navis.Index.open(built, readonly=True) as index:
        tuned = index.tune(target, queries=queries)
        assert tuned.recall >= target
        assert tuned == tuning.look_up(built, 10, target)
        assert (tuned.queries, tuned.given, tuned.vectors) == (50, True, 3000)
        assert measured(index, base, queries, L=tuned.L, margin=tuned.margin) == tuned.recall
        assert measured(index, base, queries, target_recall=target) == tuned.recall
        if index.layout == "packed":
            assert tuned.margin is None
            every = None
        else:
            every = 0.0
        shorter = tuned.L if tuned.margin else tuned.L - 1
        # Without stopping early an eighth less does not do.
        too_short = shorter - max(2, tuned.L // 8) - 1
        if too_short >= 10:
            assert measured(index, base, queries, L=too_short, margin=every) < target


def test_without_queries_stored_vectors_tell_as_much(built: Path, base: Any, queries: Any) -> None:
    with navis.Index.open(built, readonly=True) as index:
        tuned = index.tune(0.9, seed=3)
        assert (tuned.queries, tuned.given) == (500, False)
        assert tuned.recall >= 0.9
        assert measured(index, base, queries, target_recall=0.9) >= 0.87


def test_a_stored_vector_is_held_out_of_its_own_answer(built: Path) -> None:
    with navis.Index.open(built, readonly=True) as index:
        stored = tuning.Stored(index)
        asked = tuning.stored_questions(stored, "l2", 5, count=40)
        assert asked.own is not None
        assert np.array_equal(index.get(stored.ids[asked.own]), asked.queries)
        assert not np.any(asked.truth.ids == asked.own[:, None])
        assert asked.truth.ids.shape == (40, 15)
        assert asked.truth.distances is not None
        assert np.all(np.diff(asked.truth.distances, axis=1) >= 0)
        rows = stored.rows_of(np.array([12, 9, 3009, 2**64 - 1], np.uint64))
        assert np.array_equal(stored.ids[rows[[0, 2]]], [12, 3009])
        assert rows[1] == rows[3] == -1


def test_ids_may_be_as_large_as_64_bits(tmp_path: Path, base: Any, queries: Any) -> None:
    ids = np.arange(500, dtype=np.uint64) * 3 + np.uint64(2**63)
    with navis.Index.build(tmp_path / "ix", base[:500], ids) as index:
        for asked in (queries, None):
            assert index.tune(0.9, queries=asked).recall >= 0.9


def test_a_truth_given_is_used(built: Path, base: Any, queries: Any) -> None:
    truth = exact(base, queries, 20)
    shifted = Truth(truth.ids + 10, truth.distances)
    with navis.Index.open(built, readonly=True) as index:
        computed = index.tune(0.9, queries=queries)
        assert index.tune(0.9, queries=queries, truth=shifted) == computed
        for bad, says in (
            (Truth(shifted.ids[:9], None), "9 queries"),
            (Truth(shifted.ids[:, :9], None), "9 neighbours"),
            (Truth(truth.ids + 2995, None), "not in the index"),
        ):
            with pytest.raises(UserError, match=says):
                index.tune(0.9, queries=queries, truth=bad)


def test_what_is_kept_is_looked_up_by_k_and_recall(tmp_path: Path) -> None:
    def entry(k: int, target: float, L: int) -> tuning.Tuned:
        return tuning.Tuned(k, target, L, 0.8, target, 50, True, 3000)

    with pytest.raises(
        UserError, match=r"tuned: nothing.*navis tune .* --target-recall 0.9 --k 10"
    ):
        tuning.look_up(tmp_path, 10, 0.9)
    for one in (entry(10, 0.9, 20), entry(10, 0.99, 70), entry(20, 0.95, 40)):
        tuning.keep(tmp_path, one)
    assert tuning.look_up(tmp_path, 10, 0.5).L == 20
    assert tuning.look_up(tmp_path, 10, 0.9).L == 20
    assert tuning.look_up(tmp_path, 10, 0.91).L == 70
    for k, target in ((10, 0.995), (5, 0.9)):
        with pytest.raises(UserError, match=r"tuned: 0\.9 at k 10, 0\.99 at k 10, 0\.95 at k 20"):
            tuning.look_up(tmp_path, k, target)
    tuning.keep(tmp_path, entry(10, 0.9, 25))  # again, after the index has grown
    assert tuning.look_up(tmp_path, 10, 0.9).L == 25
    assert len(tuning.load(tmp_path)) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["tuning.json"]
    for target in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(UserError, match="target_recall"):
            tuning.look_up(tmp_path, 10, target)


def test_a_damaged_or_newer_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    entry = {
        "k": 10,
        "target_recall": 0.9,
        "L": 20,
        "margin": None,
        "recall": 0.9,
        "queries": 5,
        "given": True,
        "vectors": 9,
    }
    sound: dict[str, Any] = {"version": 1, "tuned": [entry]}
    for damaged in (
        "{",
        "[]",
        "{}",
        json.dumps({"version": 1, "tuned": [{"k": 10}]}),
        json.dumps({"version": 1, "tuned": [{**entry, "L": 3}]}),
        json.dumps({"version": 1, "tuned": [{**entry, "L": "x"}]}),
        json.dumps({"version": "1", "tuned": []}),
        json.dumps({**sound, "tuned": 3}),
    ):
        file.write_text(damaged)
        with pytest.raises(Corrupt, match=r"tuning\.json.*navis tune"):
            tuning.load(tmp_path)
    file.write_text(json.dumps({**sound, "version": 2}))
    with pytest.raises(EnvironmentLack, match=r"tuning\.json.*newer navis"):
        tuning.load(tmp_path)
    file.write_text(json.dumps(sound))
    assert tuning.load(tmp_path)[0].L == 20


def test_bad_input_is_one_line_that_names_it(built: Path, queries: Any, base: Any) -> None:
    with navis.Index.open(built, readonly=True) as index:
        for given, says in (
            ({"target_recall": 1.2}, "target_recall 1.2"),
            ({"target_recall": 0.9, "k": 0}, "k 0"),
            ({"target_recall": 0.9, "k": 3000}, "use 1 to 2999"),
            ({"target_recall": 0.9, "k": 3001, "queries": queries}, "use 1 to 3000"),
            ({"target_recall": 0.9, "queries": queries[:, :7]}, "give .n, 48."),
            ({"target_recall": 0.9, "queries": np.full((2, 48), np.nan)}, "queries"),
            (
                {"target_recall": 0.9, "truth": Truth(np.zeros((1, 10), np.int64), None)},
                "without queries",
            ),
        ):
            with pytest.raises(UserError, match=says) as raised:
                index.tune(**given)
            assert "\n" not in str(raised.value)
        with pytest.raises(UserError, match="give one of them"):
            index.search(queries, 10, L=40, target_recall=0.9)


def test_a_recall_out_of_reach_says_what_is_reached(
    built: Path, queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_LONGEST", 12)
    before = (built / "tuning.json").read_bytes() if (built / "tuning.json").exists() else b""
    with navis.Index.open(built, readonly=True) as index:
        with pytest.raises(UserError, match=r"out of reach: recall is 0\.\d+ at L 12"):
            index.tune(1.0, queries=queries)
    after = (built / "tuning.json").read_bytes() if (built / "tuning.json").exists() else b""
    assert after == before


def test_a_snapshot_takes_it_along(built: Path, tmp_path: Path, queries: Any) -> None:
    shutil.copytree(built, tmp_path / "ix")
    with navis.Index.open(tmp_path / "ix") as index:
        tuned = index.tune(0.8, queries=queries)
        index.snapshot(tmp_path / "copy")
    assert tuning.look_up(tmp_path / "copy", 10, 0.8) == tuned
