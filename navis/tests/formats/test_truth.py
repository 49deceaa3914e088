"""Truth sets in every format, and recall that counts ties fairly."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from navis.formats.truth import Truth, read_truth, recall, write_truth
from navis.formats.vectors import write_vectors

pytest.importorskip("h5py", reason="h5py is not installed; pip install h5py")

anywhere = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", ["gt.bin", "gt.ibin", "step3.gt100", "gt.ivecs", "gt.npy", "g.h5"])
@pytest.mark.parametrize("with_distances", [True, False])
@anywhere
@given(queries=st.integers(1, 9), k=st.integers(1, 9), top=st.integers(0, 2**31 - 1))
def test_what_was_written_is_read_back(
    tmp_path: Path, name: str, with_distances: bool, queries: int, k: int, top: int
) -> None:
    draw = np.random.default_rng(top)
    ids = draw.integers(-1, top, (queries, k), endpoint=True)
    distances = draw.random((queries, k), np.float32) if with_distances else None
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if distances is not None and path.suffix in (".ivecs", ".npy"):
        with pytest.raises(UserError, match="holds no distances"):
            write_truth(path, ids, distances)
        return
    write_truth(path, ids, distances)
    found = read_truth(path)
    assert found.ids.dtype == np.int64
    np.testing.assert_array_equal(found.ids, ids)
    if distances is None:
        assert found.distances is None
    else:
        np.testing.assert_array_equal(found.distances, distances)


def test_large_ids_need_an_unsigned_format(tmp_path: Path) -> None:
    ids = np.array([[2**32 - 2, -1]])
    write_truth(tmp_path / "gt.bin", ids)
    np.testing.assert_array_equal(read_truth(tmp_path / "gt.bin").ids, ids)
    for name, bad in (("gt.ivecs", ids), ("gt.h5", ids), ("gt.bin", ids + 1), ("gt.bin", ids - 1)):
        with pytest.raises(UserError, match=r"does not fit|ids start at 0"):
            write_truth(tmp_path / name, bad)


@pytest.mark.parametrize("distances", [None, [[0.5, 1.5]] * 3])
def test_a_truth_set_cut_anywhere_is_never_read(tmp_path: Path, distances: object) -> None:
    path = tmp_path / "gt.bin"
    write_truth(path, [[1, 2], [3, 4], [5, 6]], distances)  # type: ignore[arg-type]
    whole = path.read_bytes()
    for cut in range(len(whole)):
        if cut == 8 + 24:
            continue  # the ids alone are a truth set too
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(path)):
            read_truth(path)
    path.write_bytes(whole + b"1")
    with pytest.raises(UserError, match="expected for the ids of 3 x 2 neighbours or 56 with"):
        read_truth(path)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (-1, 3), (3, -1)])
def test_a_damaged_header_is_told(tmp_path: Path, shape: tuple[int, int]) -> None:
    (tmp_path / "gt.bin").write_bytes(struct.pack("<2i", *shape))
    with pytest.raises(UserError, match="the header is damaged"):
        read_truth(tmp_path / "gt.bin")


def test_hdf5_must_have_one_distance_for_each_id(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    write_vectors(f"{path}::neighbors", np.zeros((3, 2), np.int32))
    assert read_truth(path).distances is None
    write_vectors(f"{path}::distances", np.zeros((3, 1), np.float32))
    with pytest.raises(UserError, match="write them anew"):
        read_truth(path)
    with pytest.raises(UserError, match="leave out '::n'"):
        write_truth(f"{path}::n", [[1]])


def test_ids_are_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "gt.npy", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match="store them as integers"):
        read_truth(tmp_path / "gt.npy")
    with pytest.raises(UserError, match="at least one"):
        write_truth(tmp_path / "gt.bin", np.zeros((0, 2), int))
    with pytest.raises(UserError, match="one distance for each id"):
        Truth(np.zeros((2, 2), np.int64), np.zeros((2, 1), np.float32))
    with pytest.raises(UserError, match=r"give \(queries, K\)"):
        Truth(np.zeros(2, np.int64))


def test_recall_counts_the_share_that_was_found() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth, truth, 4) == 1
    assert recall([[2, 1], [9, 5]], truth, 2) == 0.75
    assert recall([[1, 1], [-1, -1]], truth, 2) == 0.25  # twice found counts once
    assert recall([[3, 4], [7, 8]], truth, 2) == 0
    assert recall([[9, 9, 1], [9, 9, 5]], truth, 2) == 0  # only the first k are looked at


def test_any_of_equal_neighbours_will_do_when_distances_are_given() -> None:
    truth, distances = np.array([[1, 2, 3, 4]]), np.array([[0.0, 1.0, 1.0, 2.0]])
    assert recall([[1, 3]], truth, 2) == 0.5
    assert recall([[1, 3]], truth, 2, distances) == 1
    assert recall([[2, 3]], truth, 2, distances) == 1
    assert recall([[1, 4]], truth, 2, distances) == 0.5


def test_a_query_is_asked_only_for_the_neighbours_it_has() -> None:
    truth = np.array([[1, -1, -1], [4, 5, 6]])
    assert recall([[1, 9, -1], [4, 5, 6]], truth, 3) == 1
    far = np.array([[0.0, np.inf, np.inf], [1.0, 2.0, 3.0]])
    assert recall([[9, -1, -1], [4, 5, 6]], truth, 3, far) == 0.75


@anywhere
@given(
    queries=st.integers(1, 20),
    k=st.integers(1, 6),
    extra=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_recall_equals_that_of_sets(queries: int, k: int, extra: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = np.stack([draw.permutation(20)[: k + extra] for _ in range(queries)])
    found = np.stack([draw.permutation(20)[: k + extra] for _ in range(queries)])
    hits = [
        len(set(f[:k]) & set(t[:k])) for f, t in zip(found.tolist(), truth.tolist(), strict=True)
    ]
    assert recall(found, truth, k) == pytest.approx(sum(hits) / (queries * k))


@pytest.mark.parametrize(
    ("found", "truth", "k", "distances", "says"),
    [
        ([[1]], [[1, 2]], 2, None, r"found ids have shape \(1, 1\); k = 2"),
        ([[1, 2]], [[1]], 2, None, r"truth ids have shape \(1, 1\)"),
        ([[1]], [[1]], 0, None, "k = 0"),
        ([1], [[1]], 1, None, "found ids"),
        ([[1]], [[1], [2]], 1, None, "1 answers, 2 truths"),
        ([[1]], [[-1]], 1, None, "no neighbours"),
        ([[1]], [[1]], 1, [[1.0, 2.0]], "one each"),
    ],
)
def test_what_cannot_be_compared_is_told(
    found: object, truth: object, k: int, distances: object, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        recall(found, truth, k, distances)  # type: ignore[arg-type]
