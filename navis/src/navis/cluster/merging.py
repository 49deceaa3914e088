"""The k best of what the shards found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

NONE = np.iinfo(np.uint64).max  # the id of a place that nothing was found for


def merge(parts: Sequence[tuple[Ids, Floats]], queries: int, k: int) -> tuple[Ids, Floats]:
    """Merge results of shards, which share no id, into the k nearest of each query.

    Equal distances are ordered by id, so that the order of the shards does not matter.

    Args:
        parts: Of each shard ids and distances, (queries, any number of columns).
        queries: How many.
        k: Columns to give; where less was found, the rest is `NONE` at distance infinity.
    """
    ids = np.concatenate([np.full((queries, k), NONE), *(found for found, _ in parts)], axis=1)
    far = np.full((queries, k), np.inf, np.float32)
    distances = np.concatenate([far, *(found for _, found in parts)], axis=1)
    order = np.lexsort((ids, distances), axis=-1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
