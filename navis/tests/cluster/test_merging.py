"""The merge is the k best of all, whatever the order of the shards."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from navis.cluster.merging import NONE, merge

# Few different distances, so that there are ties; each id on one shard.
found = st.dictionaries(
    st.integers(0, 2**64 - 2), st.sampled_from([-2.0, 0.0, 0.5, 3.0, np.inf]), max_size=30
)


@given(found, st.integers(1, 5), st.integers(1, 20), st.randoms())
def test_merged_is_sorted_and_cut(distances: Any, shards: int, k: int, random: Any) -> None:
    where = {number: random.randrange(shards) for number in distances}
    parts = []
    for shard in range(shards):
        mine = sorted((d, i) for i, d in distances.items() if where[i] == shard)
        columns = mine[:k]
        parts.append(
            (
                np.array([[i for _, i in columns]], np.uint64).reshape(1, -1),
                np.array([[d for d, _ in columns]], np.float32).reshape(1, -1),
            )
        )
    random.shuffle(parts)
    best = sorted((d, i) for i, d in distances.items())[:k]
    best += [(np.inf, NONE)] * (k - len(best))
    ids, measured = merge(parts, 1, k)
    assert ids.shape == measured.shape == (1, k)
    assert (ids.dtype, measured.dtype) == (np.uint64, np.float32)
    assert [*zip(measured[0].tolist(), ids[0].tolist(), strict=True)] == best


def test_of_nothing_comes_nothing() -> None:
    ids, distances = merge([], 2, 3)
    assert np.all(ids == NONE)
    assert np.all(np.isinf(distances))
    assert merge([], 0, 3)[0].shape == (0, 3)
