"""A fifth deleted: never returned again, recall kept, space given back; also beside other work."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from small import LAYOUTS

import navis
from navis.experiments._crash import Matrix
from navis.experiments._store import recall_of
from navis.groundtruth import exact

pytestmark = pytest.mark.timeout(300)
N, DELETED = 3000, 600


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fifth_deleted(tmp_path: Path, vectors: Matrix, queries: Matrix, layout: str) -> None:
    """The experiment `delete` compares with a rebuild, at its size; here recall is bounded."""
    gone = np.random.default_rng(0).permutation(N)[:DELETED].astype(np.uint64)
    truth = exact(vectors[:N], queries, 20, exclude=gone.astype(np.int64))
    with navis.Index.build(tmp_path / "ix", vectors[:N], layout=layout, degree=24) as index:
        built = index.stats()["files_bytes"]
        stop, returned = threading.Event(), []

        def search() -> None:
            while not stop.is_set():
                deleted = set(acknowledged)  # by calls that had returned before the search began
                ids, _ = index.search(queries[:100], 10)
                returned.append(len(deleted & set(ids.ravel().tolist())))

        acknowledged: list[int] = []
        beside = threading.Thread(target=search)
        beside.start()
        for first in range(0, DELETED, 20):
            index.delete(gone[first : first + 20])
            acknowledged.extend(gone[first : first + 20].tolist())
        index.compact()
        stop.set()
        beside.join()
        assert len(returned) > 1
        assert not any(returned)
        assert index.verify()["dead_edges"] == 0
        assert index.stats()["files_bytes"] < 0.85 * built
    with navis.Index.open(tmp_path / "ix") as index:
        assert index.verify()["faults"] == []
        found, _ = index.search(queries, 10)
        assert not np.isin(found, gone).any()
        assert recall_of(found, truth) > 0.97
        asked, _ = index.search(vectors[gone.astype(np.int64)], 10)
        assert not np.isin(asked, gone).any()
        assert len(index) == N - DELETED
        index.insert(gone, vectors[gone.astype(np.int64)])
        assert np.mean(index.search(vectors[gone.astype(np.int64)], 1)[0][:, 0] == gone) > 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_trained_may_be_deleted_meanwhile(
    tmp_path: Path, vectors: Matrix, layout: str
) -> None:
    """An insert that outgrows the quantizer trains it on vectors that another thread deletes."""
    with navis.Index.build(
        tmp_path / "ix", vectors[:1000], layout=layout, degree=24, durability="none"
    ) as index:
        beside = threading.Thread(target=lambda: [index.delete([i]) for i in range(1000)])
        beside.start()
        for first in range(1000, 1200, 10):
            index.insert(np.arange(first, first + 10), vectors[first : first + 10])
            index.retrain()
        beside.join()
        assert sorted(index.ids().tolist()) == list(range(1000, 1200))
        assert index.verify()["faults"] == []
