"""Filters at 10 % and 1 %, in an index that grew: recall, and better than filtering afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import LAYOUTS

import navis
from navis.experiments._crash import Matrix
from navis.experiments._store import recall_of
from navis.groundtruth import exact

pytestmark = pytest.mark.timeout(300)
N = 3000


@pytest.mark.parametrize("every", [10, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_filtered_recall(
    tmp_path: Path, vectors: Matrix, queries: Matrix, layout: str, every: int
) -> None:
    """A third built with labels and values, a third before a checkpoint, a third in the log."""
    draw = np.random.default_rng(every)
    labels, values = draw.integers(0, every, N), draw.random(N)
    third, queries = N // 3, queries[:200]
    with navis.Index.build(
        tmp_path / "ix", vectors[:third], layout=layout, degree=24, labels=labels[:third],
        values=values[:third], durability="none",
    ) as index:  # fmt: skip
        for first in range(third, N, 100):
            rows = slice(first, first + 100)
            ids = np.arange(first, first + 100)
            index.insert(ids, vectors[rows], labels=labels[rows], values=values[rows])
            if first == 2 * third:
                index.checkpoint()
    kinds = (
        (navis.Filter(any_of=(3,)), labels == 3),
        (
            navis.Filter(between=(0.5, 0.5 + 1 / every)),
            (values >= 0.5) & (values <= 0.5 + 1 / every),
        ),
    )
    with navis.Index.open(tmp_path / "ix") as index:
        unfiltered, _ = index.search(queries, 40, L=40)
        for asked, matches in kinds:
            truth = exact(vectors[:N], queries, 20, exclude=~matches)
            found, _ = index.search(queries, 10, L=40, filter=asked)
            there = found[found < N].astype(np.int64)
            assert matches[there].all()
            assert len(there) == len(queries) * min(10, matches.sum())
            kept = np.full((len(queries), 10), np.iinfo(np.uint64).max)
            for row, ids in enumerate(unfiltered):
                some = ids[matches[ids.astype(np.int64)]][:10]
                kept[row, : len(some)] = some
            recall, after = recall_of(found, truth), recall_of(kept, truth)
            print(f"\n{asked}: recall {recall:.4f}, filtered afterwards {after:.4f}")
            assert recall >= 0.95
            assert recall > after
