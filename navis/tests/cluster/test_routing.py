"""Every id has one shard, always the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navis.cluster.routing import labels_of, rows_by_shard, shard_of, splitmix64
from navis.filters import label_rows

ids = st.lists(st.integers(0, 2**64 - 2), unique=True, max_size=50)


def mixed(number: int) -> int:
    """The same in Python's own numbers."""
    mask = 2**64 - 1
    z = (number + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_the_published_one() -> None:
    assert splitmix64([0, 1234567]).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


@given(ids)
def test_the_hash_is_the_same_in_whole_numbers(numbers: Any) -> None:
    assert splitmix64(np.array(numbers, np.uint64)).tolist() == [mixed(i) for i in numbers]


@given(ids, st.integers(1, 40))
def test_every_row_goes_to_one_shard_the_one_of_its_id(numbers: Any, shards: int) -> None:
    given_ids = np.array(numbers, np.uint64)
    parts = rows_by_shard(given_ids, shards)
    assert sorted(np.concatenate([[], *parts.values()])) == list(range(len(numbers)))
    for number, rows in parts.items():
        assert len(rows)
        assert np.all(np.diff(rows) > 0)
        assert [mixed(numbers[row]) % shards for row in rows] == [number] * len(rows)
        alone = given_ids[rows[:1]]  # whatever else is in the call
        assert shard_of(alone, shards).tolist() == [number]


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_numbers_in_a_row_are_spread_evenly(shards: int) -> None:
    counts = np.bincount(shard_of(np.arange(20_000), shards), minlength=shards)
    assert counts.min() > 0.9 * 20_000 / shards


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=4), max_size=12), st.data())
def test_labels_go_with_their_rows(labels: Any, data: Any) -> None:
    some = data.draw(st.lists(st.integers(0, max(0, len(labels) - 1)), unique=True))
    rows = np.array(sorted(some) if labels else [], np.int64)
    part = labels_of(rows, *label_rows([*labels, []], len(labels) + 1))
    assert part is not None
    assert [part.of(i).tolist() for i in range(len(rows))] == [labels[row] for row in rows]
    assert labels_of(rows, None, None) is None
