"""The Python face of the index: metrics, types, changes, and every bad input in one line."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import EnvironmentLack, Fault, UserError

import navis
from navis.errors import Closed, Corrupt, Stale
from navis.formats import recall
from navis.groundtruth import exact


def found(index: navis.Index, queries: Any, k: int = 10, **options: Any) -> Any:
    ids, _ = index.search(queries, k, **options)
    return ids.astype(np.int64)


@pytest.mark.parametrize("layout", ["selective", "packed"])
@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
def test_every_metric_finds_and_measures_as_brute_force(
    tmp_path: Path, base: Any, queries: Any, metric: Any, layout: Any
) -> None:
    index = navis.Index.build(tmp_path / "ix", base[:2000], metric=metric, layout=layout)
    with index:
        index.insert(np.arange(2000, 3000), base[2000:])
        truth = exact(base, queries, 10, metric)
        ids, distances = index.search(queries, 10, L=80)
        assert recall(ids.astype(np.int64), truth.ids, 10, truth.distances) >= 0.95
        same = ids.astype(np.int64) == truth.ids
        assert truth.distances is not None
        scale = np.abs(truth.distances).max()
        np.testing.assert_allclose(distances[same], truth.distances[same], atol=2e-5 * scale)
        assert np.all(np.diff(distances, axis=1) >= 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
def test_every_type_is_stored_exactly(tmp_path: Path, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 120, (500, 20)).astype(dtype)
    with navis.Index.build(tmp_path / "ix", vectors) as index:
        assert index.dtype == np.dtype(dtype)
        more = rng.integers(0, 120, (10, 20)).astype(dtype)
        index.insert(np.arange(500, 510), more)
        assert np.array_equal(index.get(np.arange(495, 510)), np.vstack([vectors[495:], more]))
        _, distances = index.search(vectors[:50].astype(np.float32), 1, L=100)
        assert np.all(distances == 0)


@pytest.mark.parametrize("batch", [1, 100, 700, 3000])
def test_an_index_made_empty_is_good_whatever_comes_at_once(
    tmp_path: Path, base: Any, queries: Any, batch: int
) -> None:
    n = 600 if batch == 1 else 3000
    labels = [[i % 3, 10 + i % 2] for i in range(n)]
    values = np.arange(n, dtype=float)
    with navis.Index.create(tmp_path / "ix", 48) as index:
        for at in range(0, n, batch):
            end = min(n, at + batch)
            index.insert(
                np.arange(at, end), base[at:end], labels=labels[at:end], values=values[at:end]
            )
        truth = exact(base[:n], queries, 10, "l2")
        assert recall(found(index, queries, L=60), truth.ids, 10, truth.distances) >= 0.97
        assert index.verify()["unreachable"] <= n // 300
        held, numbers = index.attributes(np.arange(n))
        assert [list(row) for row in held] == labels
        assert np.array_equal(numbers, values)


def test_an_index_made_empty_learns_as_it_grows(tmp_path: Path, base: Any, queries: Any) -> None:
    with navis.Index.create(tmp_path / "ix", 48) as index:
        assert len(index) == 0
        for start in range(0, 3000, 100):
            index.insert(np.arange(start, start + 100), base[start : start + 100])
        truth = exact(base, queries, 10)
        assert recall(found(index, queries, L=60), truth.ids, 10) >= 0.95
        assert index.verify()["faults"] == []


def test_an_acknowledged_insert_is_there_after_opening_without_closing(
    tmp_path: Path, base: Any
) -> None:
    index = navis.Index.build(tmp_path / "ix", base[:100])
    index.insert([7000], base[200:201])
    index.close()
    with navis.Index.open(tmp_path / "ix") as again:
        assert 7000 in again
        assert found(again, base[200], 1)[0] == 7000


def test_a_deleted_id_is_in_no_result_and_can_come_back(tmp_path: Path, base: Any) -> None:
    with navis.Index.build(tmp_path / "ix", base[:1000]) as index:
        gone = np.arange(0, 1000, 5)
        assert index.delete(gone) == 200
        assert index.delete(gone) == 0
        assert not np.isin(found(index, base[:1000:5], 10, L=60), gone).any()
        index.insert([5], base[5:6])
        assert found(index, base[5], 1)[0] == 5


def test_many_threads_may_share_an_index(tmp_path: Path, base: Any, queries: Any) -> None:
    index = navis.Index.build(tmp_path / "ix", base[:1000], durability="group")
    faults: list[BaseException] = []

    def change(part: int) -> None:
        try:
            for start in range(1000 + part * 500, 1500 + part * 500, 50):
                index.insert(np.arange(start, start + 50), base[start : start + 50])
                assert found(index, base[start], 1, L=60)[0] == start
                index.delete([(start - 1000) // 2])  # of the built ones, each its own
        except BaseException as error:
            faults.append(error)

    def look() -> None:
        try:
            for _ in range(20):
                ids = found(index, queries, 10)
                assert all(len(set(row)) == 10 for row in ids)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=change, args=(i,)) for i in range(4)]
    threads += [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert len(index) == 3000 - 40
    assert index.verify()["faults"] == []
    index.close()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_history_of_changes_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("history") / "ix"
    model: dict[int, Any] = {}
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    index = navis.Index.create(path, 6, durability="group")
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["insert", "delete", "checkpoint", "reopen"])):
            case "insert":
                ids = rng.choice(40, data.draw(st.integers(1, 12)), replace=False)
                rows = rng.normal(size=(len(ids), 6)).astype(np.float32)
                known = sum(int(i) in model for i in ids)
                assert index.insert(ids, rows) == known
                model |= dict(zip(ids.tolist(), rows, strict=True))
            case "delete":
                ids = rng.choice(40, 5, replace=False)
                assert index.delete(ids) == sum(int(i) in model for i in ids)
                for i in ids.tolist():
                    model.pop(i, None)
            case "checkpoint":
                index.checkpoint()
            case "reopen":
                index.close()
                index = navis.Index.open(path, durability="group")
    assert sorted(index.ids().tolist()) == sorted(model)
    if model:
        order = np.array(sorted(model), dtype=np.uint64)
        rows = np.stack([model[int(i)] for i in order])
        assert np.array_equal(index.get(order), rows)
        ids, _ = index.search(rows, min(3, len(model)), L=50)
        assert np.array_equal(ids[:, 0], order)
    assert index.verify()["faults"] == []
    index.close()


def test_bad_input_is_one_line_that_names_it(tmp_path: Path, base: Any) -> None:
    index = navis.Index.build(tmp_path / "ix", base[:50])
    nan = base[:2].copy()
    nan[1, 3] = np.nan
    cases: list[tuple[str, Any]] = [
        ("vectors have 47 dimensions, the index has 48", lambda: index.insert([1], base[:1, :47])),
        ("queries have 3 dimensions, the index has 48", lambda: index.search(base[:1, :3])),
        ("row 1", lambda: index.insert([1, 2], nan)),
        ("row 1", lambda: index.search(nan, 1)),
        ("k 51: the index holds 50 vectors", lambda: index.search(base[:1], 51)),
        ("k 0", lambda: index.search(base[:1], 0)),
        ("L 5", lambda: index.search(base[:1], 10, L=5)),
        ("id 3 occurs twice", lambda: index.insert([3, 3], base[:2])),
        ("id -1", lambda: index.insert([-1], base[:1])),
        ("1 ids for 2 vectors", lambda: index.insert([1], base[:2])),
        ("ids of type float64", lambda: index.delete([0.5])),
        ("id 777 is not in the index", lambda: index.get([777])),
        ("metric 'hamming'", lambda: navis.Index.build(tmp_path / "b", base, metric="hamming")),
        ("is not empty", lambda: navis.Index.build(tmp_path / "ix", base)),
        ("degree 300", lambda: navis.Index.build(tmp_path / "b", base, degree=300)),
        ("dim 0", lambda: navis.Index.create(tmp_path / "b", 0)),
        ("open for writing already", lambda: navis.Index.open(tmp_path / "ix")),
        ("no such folder", lambda: navis.Index.open(tmp_path / "none")),
        ("not a navis index", lambda: navis.Index.open(tmp_path)),
        ("too small", lambda: navis.Index.open(tmp_path / "ix", readonly=True, memory_budget=9)),
        ("k 2.5: use a whole number", lambda: index.search(base[:1], 2.5)),
        ("L 'a'", lambda: index.search(base[:1], 1, L="a")),
        ("group 0", lambda: index.search(base[:1], 1, group=0)),
        ("margin 5", lambda: index.search(base[:1], 1, margin=5)),
        ("threads 100000", lambda: index.search(base[:1], 1, threads=100_000)),
        ("queries: give rows of numbers", lambda: index.search("abc", 1)),
        ("vectors: give rows of numbers", lambda: index.insert([1, 2], [[1.0], [1.0, 2.0]])),
        ("ids of shape (1, 3)", lambda: index.delete([[1, 2, 3]])),
        ("ids of type object", lambda: index.delete([2**64])),
        ("threads 0", lambda: navis.Index.build(tmp_path / "b", base, threads=0)),
        ("seed -1", lambda: navis.Index.build(tmp_path / "b", base, seed=-1)),
        ("layout 'x': use auto", lambda: navis.Index.build(tmp_path / "b", base, layout="x")),
        ("option 'foo' is unknown", lambda: navis.Index.build(tmp_path / "b", base, foo=1)),
        ("beam 0", lambda: navis.Index.build(tmp_path / "b", base, beam=0)),
        ("'64XB'", lambda: navis.Index.build(tmp_path / "b", base, memory_budget="64XB")),
        ("inside of the index", lambda: index.snapshot(tmp_path / "ix" / "copy")),
    ]
    for message, call in cases:
        with pytest.raises(UserError) as raised:
            call()
        assert message in str(raised.value), raised.value
        assert "\n" not in str(raised.value)
    zero = np.zeros((1, 4), np.float32)
    with pytest.raises(UserError, match="zero"):
        navis.Index.build(tmp_path / "c", zero, metric="cosine")
    assert not (tmp_path / "b").exists()
    index.close()
    with pytest.raises(Closed, match="closed"):
        index.search(base[:1], 1)


def test_a_damaged_or_newer_file_is_refused_by_name(tmp_path: Path, base: Any) -> None:
    navis.Index.build(tmp_path / "ix", base[:200]).close()
    state = tmp_path / "ix" / "state.nav"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Corrupt, match=r"state\.nav"):
        navis.Index.open(tmp_path / "ix")
    damaged = bytearray(whole)
    damaged[8:12] = (99).to_bytes(4, "little")
    state.write_bytes(damaged)
    with pytest.raises((EnvironmentLack, Corrupt), match=r"state\.nav"):
        navis.Index.open(tmp_path / "ix")
    state.write_bytes(whole)
    edges = tmp_path / "ix" / "edges.dat"
    pages = bytearray(edges.read_bytes())
    pages[100] ^= 1
    edges.write_bytes(pages)
    with navis.Index.open(tmp_path / "ix", cache="none") as index:
        assert any("edges.dat" in fault for fault in index.verify()["faults"])
        with pytest.raises(Corrupt, match=r"edges\.dat"):
            index.search(base[:200], 10, L=200)


def test_a_reader_beside_a_writer_is_right_or_says_it_is_stale(
    tmp_path: Path, base: Any, queries: Any
) -> None:
    path = tmp_path / "ix"
    navis.Index.build(path, base[:1500]).close()
    old = exact(base[:1500], queries, 10, "l2").ids
    with (
        navis.Index.open(path, pending_bytes=20_000) as writer,
        navis.Index.open(path, readonly=True, cache="none") as reader,
    ):
        stale = False
        for start in range(1500, 3000, 100):
            writer.insert(np.arange(start, start + 100), base[start : start + 100])
            writer.delete(np.arange(start - 1500, start - 1400))
            writer.compact()
            try:
                ids = found(reader, queries, 10, L=80)
            except Stale:
                stale = True
                break
            assert recall(ids, old, 10) >= 0.9
        assert stale
        with pytest.raises(Stale, match="open it again"):
            reader.verify()
        with navis.Index.open(path, readonly=True) as again:
            assert len(again) == len(writer)
            assert np.array_equal(found(again, queries, 10), found(writer, queries, 10))


def test_pages_in_hand_are_walked_beyond_the_list(tmp_path: Path, base: Any, queries: Any) -> None:
    path = tmp_path / "ix"
    navis.Index.build(path, base, layout="selective").close()
    truth = exact(base, queries, 10, "l2").ids
    reads, expansions, recalls = {}, {}, {}
    for shares in (False, True):
        with navis.Index.open(path, readonly=True, cache="none", share_pages=shares) as index:
            recalls[shares] = recall(found(index, queries, 10, L=12), truth, 10)
            counters = index.counters()
            reads[shares] = counters["search_edge_reads"]
            expansions[shares] = counters["search_expansions"]
    assert expansions[True] > 1.05 * expansions[False]
    assert reads[True] < reads[False]
    assert recalls[True] >= recalls[False]


def test_closing_ends_what_other_threads_have_under_way(tmp_path: Path, base: Any) -> None:
    index = navis.Index.build(tmp_path / "ix", base[:1000])
    ends: list[BaseException] = []
    running = threading.Barrier(4)

    def until_closed(call: Any) -> None:
        try:
            call()
            running.wait()
            while True:
                call()
        except BaseException as error:
            ends.append(error)

    calls = [
        lambda: index.insert(np.arange(900, 1400), base[900:1400]),
        lambda: index.search(base, 10),
        lambda: index.compact(),
    ]
    threads = [threading.Thread(target=until_closed, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    running.wait()
    index.close()
    for thread in threads:
        thread.join()
    assert [type(end) for end in ends] == [Closed] * 3
    with navis.Index.open(tmp_path / "ix") as again:
        assert again.verify()["faults"] == []
        assert len(again) == 1400


def test_a_reader_whose_log_a_writer_cuts_meanwhile_reads_again(
    tmp_path: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from navis import _core

    path, tries, real = tmp_path / "ix", [], _core.Index
    navis.Index.build(path, base[:300]).close()
    (segment,) = (path / "wal").iterdir()

    def cut_meanwhile(*given: Any) -> Any:
        tries.append(given)
        if len(tries) <= 2:
            if len(tries) == 1:
                os.truncate(segment, segment.stat().st_size - 8)
            raise Fault("it has become shorter")
        return real(*given)

    monkeypatch.setattr(_core, "Index", cut_meanwhile)
    with pytest.raises(Fault, match="shorter"):  # the second time nothing has changed
        navis.Index.open(path, readonly=True)
    assert len(tries) == 2


def test_readers_open_while_a_writer_checkpoints(tmp_path: Path, base: Any, queries: Any) -> None:
    path = tmp_path / "ix"
    with navis.Index.build(path, base[:1000]) as writer:
        stop = threading.Event()
        faults: list[BaseException] = []

        def write() -> None:
            for start in range(1000, 3000, 20):
                writer.insert(np.arange(start, start + 20), base[start : start + 20])
                writer.checkpoint()
                if stop.is_set():
                    return

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(15):
                with navis.Index.open(path, readonly=True) as reader:
                    assert len(reader) >= 1000
        except BaseException as error:
            faults.append(error)
        stop.set()
        thread.join()
        assert not faults, faults[0]


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
@pytest.mark.parametrize("value", [3e38, 1e19, -2e15])
def test_values_whose_squares_are_no_floats_are_named(
    tmp_path: Path, base: Any, metric: Any, value: float
) -> None:
    vectors = base[:300].copy()
    vectors[7, 3] = value
    with pytest.raises(UserError, match=r"row 7 holds .* in column 3; distances need 1e\+15"):
        navis.Index.build(tmp_path / "ix", vectors, metric=metric)
    assert not (tmp_path / "ix").exists()
    with navis.Index.build(tmp_path / "ix", base[:300], metric=metric) as index:
        with pytest.raises(UserError, match="row 0 holds"):
            index.insert([300], vectors[7])
        with pytest.raises(UserError, match="row 0 holds"):
            index.search(vectors[7], 1)
        assert len(index) == 300


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6, 1e12])
def test_cosines_are_of_directions_whatever_the_size(
    tmp_path: Path, base: Any, size: float
) -> None:
    with navis.Index.build(tmp_path / "ix", base[:300] * size, metric="cosine") as index:
        found, distances = index.search(base[:50], 1, L=60)
        assert np.array_equal(found[:, 0], np.arange(50))
        assert np.allclose(distances, 0, atol=1e-5)
        with pytest.raises(UserError, match="row 1 is shorter than 1e-15"):
            index.insert([301, 302], np.vstack([base[0], np.full(48, 1e-20, np.float32)]))


def test_complex_numbers_are_refused(tmp_path: Path, base: Any) -> None:
    with navis.Index.build(tmp_path / "ix", base[:300]) as index:
        with pytest.raises(UserError, match="complex"):
            index.search(base[:2] * 1j, 1)
        with pytest.raises(UserError, match="complex"):
            index.insert([300], base[0] * 1j)


def test_a_build_whose_budget_is_too_small_to_open_says_that_it_is_built(
    tmp_path: Path, base: Any
) -> None:
    with pytest.raises(UserError, match=r"give .* MiB.*is built, and opens with that"):
        navis.Index.build(tmp_path / "ix", base, memory_budget="2MiB")
    with navis.Index.open(tmp_path / "ix", memory_budget="64MiB") as index:
        assert len(index) == len(base)
