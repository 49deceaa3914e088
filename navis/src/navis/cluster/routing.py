"""Which shard an id lives on: a hash of the id, so that nobody need look it up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from navis.formats import Labels

HASH = "splitmix64"
MAX_SHARDS = 4096

Ids = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def splitmix64(ids: npt.ArrayLike) -> Ids:
    """Mix the bits of 64-bit numbers, one to one (Steele, Lea and Flood, OOPSLA 2014)."""
    z = np.atleast_1d(np.asarray(ids, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def shard_of(ids: npt.ArrayLike, shards: int) -> Rows:
    """Give the shard, 0 to shards - 1, of each id."""
    return np.asarray((splitmix64(ids) % np.uint64(shards)).astype(np.int64))


def rows_by_shard(ids: npt.ArrayLike, shards: int) -> dict[int, Rows]:
    """Give for each shard that has any the rows of its ids, ascending."""
    where = shard_of(ids, shards)
    order = np.argsort(where, kind="stable")
    ends = np.cumsum(np.bincount(where, minlength=shards))
    parts = np.split(order, ends[:-1])
    return {number: part for number, part in enumerate(parts) if len(part)}


def labels_of(rows: Rows, starts: Any, flat: Any) -> Labels | None:
    """Give the labels of some rows, of what `filters.label_rows` made."""
    if starts is None:
        return None
    starts = starts.astype(np.int64)
    counts = np.diff(starts)[rows]
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places = np.repeat(starts[rows] - indptr[:-1], counts) + np.arange(indptr[-1])
    return Labels(indptr, flat[places], 0)
