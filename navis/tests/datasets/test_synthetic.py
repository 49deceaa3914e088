"""Synthetic sets: of one seed the same bits, in any chunks; and shaped as they say."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from navis.datasets.synthetic import BLOCK, Mixture, Synthetic, clustered, drift
from navis.formats.vectors import read_vectors
from navis.groundtruth import exact

SMALL: dict[str, Any] = {"clusters": 12, "intrinsic": 3, "queries": 20}


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 6000), start=st.integers(0, 5000), length=st.integers(0, 3000))
def test_chunks_of_any_size_and_any_rows_are_the_same_bits(
    rows: int, start: int, length: int
) -> None:
    for made in (clustered(5000, 8, **SMALL), drift(5000, 8, **SMALL)):
        whole = made.base()
        np.testing.assert_array_equal(np.concatenate(list(made.chunks(rows))), whole)
        stop = min(5000, start + length)
        np.testing.assert_array_equal(made.rows(start, stop), whole[start:stop])


def test_a_larger_set_starts_with_the_smaller_and_the_seed_tells_sets_apart() -> None:
    few, many = clustered(100, 8, **SMALL).base(), clustered(3000, 8, **SMALL).base()
    np.testing.assert_array_equal(many[:100], few)
    np.testing.assert_array_equal(few, clustered(100, 8, **SMALL).base())
    other = clustered(100, 8, seed=1, **SMALL)
    assert not (other.base() == few).any()
    assert not (other.queries == clustered(100, 8, **SMALL).queries).any()


def test_the_bits_are_those_of_every_other_machine() -> None:
    # Sums in a fixed order, no BLAS. Only another generator of numpy's may change them.
    made = drift(3000, 16, **SMALL, seed=7)
    found = [float(made.rows(0, 2)[1, 3]), float(made.rows(2999, 3000)[0, 15])]
    found += [float(made.queries[19, 0]), float(made.late_queries[0, 1])]
    wanted = [0.16998204588890076, 0.8788489103317261, 0.10904531180858612, 0.9500070214271545]
    assert found == wanted


@pytest.mark.parametrize("suffix", [".fbin", ".npy"])
def test_write_streams_the_same_rows(tmp_path: Path, suffix: str) -> None:
    made = drift(5000, 8, **SMALL)
    made.write(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read_vectors(tmp_path / f"x{suffix}"), made.base())


def test_memory_holds_one_base_and_a_few_blocks() -> None:
    made = clustered(20 * BLOCK, 64, **SMALL)
    tracemalloc.start()
    base = made.base()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < base.nbytes + 5 * BLOCK * 64 * 4 + 2_000_000


def test_clusters_have_their_sizes_and_their_intrinsic_dimension() -> None:
    mixture = Mixture(64, clusters=4, intrinsic=5, noise=0.05, spread=0.2, seed=3)
    x = mixture.rows(0, 8000)
    nearest = exact(mixture.centres, x, 1).ids[:, 0]
    shares = np.bincount(nearest, minlength=4) / len(x)
    np.testing.assert_allclose(shares, mixture.shares, atol=0.02)
    largest = int(mixture.shares.argmax())
    around = x[nearest == largest] - mixture.centres[largest]
    values = np.linalg.svd(around.astype(np.float64), compute_uv=False) ** 2
    assert values[:5].sum() / values.sum() > 0.98
    np.testing.assert_allclose(np.linalg.norm(around, axis=1).mean(), 0.2, rtol=0.2)


def test_queries_come_from_the_same_mixture_but_are_other_vectors() -> None:
    made = clustered(4000, 32, clusters=20, intrinsic=4, queries=200)
    base = made.base()
    to_base = exact(base, made.queries, 1).distances
    within = exact(base, base[:200], 2).distances
    assert to_base is not None
    assert within is not None
    assert to_base.min() > 0
    assert np.median(to_base) == pytest.approx(np.median(within[:, 1]), rel=0.2)


def test_drift_ends_in_a_far_region_with_queries_of_its_own() -> None:
    made = drift(5000, 32, clusters=50, intrinsic=4, queries=100)
    base = made.base()
    assert made.boundary == 4600
    early, late = base[:4600], base[4600:]
    np.testing.assert_array_equal(early, clustered(4600, 32, clusters=50, intrinsic=4).base())
    gap = np.sqrt(exact(early, late, 1).distances.min())  # type: ignore[union-attr]
    spread = np.linalg.norm(early - early.mean(axis=0), axis=1).mean()
    assert gap > spread
    assert (exact(base, made.late_queries, 10).ids >= 4600).all()
    assert (exact(base, made.queries, 10).ids < 4600).all()
    assert made.queries.shape == made.late_queries.shape == (100, 32)


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (clustered, {"n": 0}, "0 vectors"),
        (clustered, {"dim": 0}, "dim is 0"),
        (clustered, {"queries": -1}, "-1 queries"),
        (clustered, {"clusters": 0}, "clusters is 0"),
        (clustered, {"intrinsic": 0}, "intrinsic is 0"),
        (clustered, {"noise": -0.1}, "noise is -0.1"),
        (clustered, {"spread": float("nan")}, "spread is nan"),
        (clustered, {"seed": -1}, "seed is -1"),
        (drift, {"share": 0.0}, "a share of 0.0 of 10 rows"),
        (drift, {"share": 1.0}, "a share of 1.0"),
        (drift, {"share": 0.01}, "both regions need a row"),
        (drift, {"distance": -1.0}, "shift is -1.0"),
    ],
)
def test_parameters_out_of_range_are_told(make: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(**{"n": 10, "dim": 4, **options})


def test_rows_beyond_the_base_are_told() -> None:
    made: Synthetic = clustered(10, 4, **SMALL)
    for start, stop in ((-1, 3), (0, 11), (5, 4)):
        with pytest.raises(UserError, match="the base has 0 to 10"):
            made.rows(start, stop)
    with pytest.raises(UserError, match="chunks of 0 rows"):
        next(made.chunks(0))
