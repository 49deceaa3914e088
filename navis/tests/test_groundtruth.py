"""Exact neighbours: against a plain float64 reference, with ties, whatever the chunk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from navis import groundtruth
from navis.formats.vectors import read_vectors, write_vectors
from navis.groundtruth import METRICS, exact

Array = np.ndarray


def reference(
    base: Array, queries: Array, k: int, metric: str, out: Any = ()
) -> tuple[Array, Array]:
    x, q = base.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        far = ((q[:, None] - x[None]) ** 2).sum(axis=2)
    else:
        if metric == "cosine":
            x, q = (
                v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (x, q)
            )
        far = (1.0 if metric == "cosine" else 0.0) - (q[:, None] * x[None]).sum(axis=2)
    far = np.round(far, 9)
    far[:, list(out)] = np.inf
    order = np.lexsort((np.broadcast_to(np.arange(len(base)), far.shape), far))[:, :k]
    found = np.take_along_axis(far, order, 1)
    ids = np.where(np.isfinite(found), order, -1)
    short = ((0, 0), (0, max(0, k - len(base))))
    return np.pad(ids, short, constant_values=-1), np.pad(found, short, constant_values=np.inf)


def sample(n: int, d: int, dtype: str, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return draw.standard_normal((n, d)).astype(dtype)
    bounds = np.iinfo(dtype)
    return draw.integers(bounds.min, bounds.max, (n, d), dtype, endpoint=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 80),
    d=st.integers(1, 12),
    k=st.integers(1, 12),
    chunk=st.integers(1, 90),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_equals_the_plain_sum_over_all_pairs(
    metric: str, dtype: str, n: int, d: int, k: int, chunk: int, seed: int, data: st.DataObject
) -> None:
    base, queries = sample(n, d, dtype, seed), sample(7, d, dtype, seed + 1)
    out = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=n)))
    ids, distances = reference(base, queries, k, metric, out)
    found = exact(base, queries, k, metric, exclude=out, chunk=chunk)
    assert found.distances is not None
    assert found.distances.dtype == np.float32
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.ids, ids)
    mask = np.isin(np.arange(n), out)
    again = exact(base, queries, k, metric, exclude=mask, chunk=chunk)
    np.testing.assert_array_equal(again.ids, found.ids)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15, deadline=None)
@given(chunk=st.integers(1, 700), seed=st.integers(0, 9), cells=st.sampled_from([1 << 23, 2000]))
def test_the_chunk_has_no_effect(metric: str, chunk: int, seed: int, cells: int) -> None:
    base, queries = sample(600, 24, "float32", seed), sample(20, 24, "float32", seed + 1)
    wanted = exact(base, queries, 10, metric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groundtruth, "_GEMM_CELLS", cells)
        patch.setattr(groundtruth, "_BLOCK_BYTES", cells)
        found = exact(base, queries, 10, metric, chunk=chunk)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.distances, wanted.distances)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("copies", [3, 40, 400])
def test_of_equal_vectors_the_lower_ids_come_first(metric: str, copies: int) -> None:
    # More copies than the first pass keeps candidates: only the second pass can tell.
    few = sample(5, 16, "float32", 3)
    base = np.tile(few, (copies, 1))
    found = exact(base, few, 10, metric, chunk=64)
    ids, _ = reference(base, few, 10, metric)
    np.testing.assert_array_equal(found.ids, ids)


def test_all_equal_is_the_worst_case_and_still_right() -> None:
    base = np.ones((3000, 8), np.float32)
    found = exact(base, base[:3], 20, exclude=range(0, 3000, 2))
    np.testing.assert_array_equal(found.ids, np.tile(np.arange(1, 40, 2), (3, 1)))
    assert not found.distances.any()  # type: ignore[union-attr]


def test_sums_of_another_order_break_no_tie() -> None:
    # The same numbers in other columns: equal distances whose float64 sums may differ in a bit.
    draw = np.random.default_rng(0)
    row = draw.standard_normal(64).astype(np.float32)
    base = np.stack([draw.permutation(row) for _ in range(200)])
    found = exact(base, np.zeros((1, 64), np.float32), 200)
    np.testing.assert_array_equal(found.ids[0], np.arange(200))


def test_neighbours_closer_than_float32_can_tell_are_told_apart() -> None:
    # Far from the origin the first pass's |x|² - 2qx cancels; the truth must not.
    draw = np.random.default_rng(1)
    base = (1e4 + draw.standard_normal((2000, 32))).astype(np.float32)
    queries = (1e4 + draw.standard_normal((5, 32))).astype(np.float32)
    ids, _ = reference(base, queries, 10, "l2")
    np.testing.assert_array_equal(exact(base, queries, 10, chunk=512).ids, ids)


def test_a_mapped_base_gives_the_same(tmp_path: Path) -> None:
    base, queries = sample(500, 6, "uint8", 0), sample(9, 6, "uint8", 1)
    wanted = exact(base, queries, 5)
    for suffix in (".u8bin", ".bvecs"):
        write_vectors(tmp_path / f"x{suffix}", base)
        found = exact(read_vectors(tmp_path / f"x{suffix}"), queries, 5, chunk=64)
        np.testing.assert_array_equal(found.ids, wanted.ids)


def test_zero_vectors_have_cosine_distance_one() -> None:
    base = np.array([[0, 0], [1, 0], [-1, 0]], np.float32)
    found = exact(base, np.array([[2, 0], [0, 0]], np.float32), 3, "cosine")
    np.testing.assert_array_equal(found.ids, [[1, 0, 2], [0, 1, 2]])
    np.testing.assert_array_equal(found.distances, [[0, 1, 2], [1, 1, 1]])


def test_nothing_left_gives_no_neighbours() -> None:
    base = sample(4, 3, "float32", 0)
    found = exact(base, base, 2, exclude=np.ones(4, bool))
    assert (found.ids == -1).all()
    assert np.isinf(found.distances).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_agrees_with_faiss(metric: str) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    base, queries = sample(3000, 32, "float32", 0), sample(50, 32, "float32", 1)
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    _, ids = faiss.knn(queries, base, 20, kind)
    assert (exact(base, queries, 20, metric).ids == ids).mean() > 0.999


F4 = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("base", "queries", "options", "says"),
    [
        (F4, F4, {"metric": "l1"}, "metric 'l1' is unknown; use l2, inner_product, cosine"),
        (F4, F4[:, :1], {}, "queries have d 1, the base 2"),
        (F4.astype(float), F4, {}, r"base are float64 \(3, 2\); give"),
        (F4, F4[0], {}, r"queries are float32 \(2,\)"),
        (F4[:0], F4, {}, "base are"),
        (F4, F4, {"k": 0}, "k is 0"),
        (F4, F4, {"chunk": 0}, "chunk 0"),
        (F4, F4, {"exclude": [3]}, "exclude holds 3 to 3; ids are 0 to 2"),
        (F4, F4, {"exclude": [-1]}, "exclude holds -1"),
        (F4, F4, {"exclude": [0.5]}, "exclude is float64"),
        (F4, F4, {"exclude": [True]}, "a mask of 3 rows"),
        (F4, F4 * np.float32(np.nan), {}, "queries: row 0 holds nan"),
        (F4 * np.float32([[1], [1], [np.inf]]), F4, {"chunk": 2}, "base: row 2 holds inf"),
        (F4 * np.float32(1e18), F4, {}, r"row 0 holds 9\.99.*scale the vectors down"),
        (F4, F4 * np.float32(1e-38), {}, "queries hold a vector"),
    ],
)
def test_what_makes_no_sense_is_told(
    base: Array, queries: Array, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        exact(base, queries, **{"k": 1, **options})
