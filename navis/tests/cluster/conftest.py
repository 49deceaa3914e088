"""One Ray for all these tests, and clusters in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navis.cluster import Cluster, runtime

SHARDS = 3

Small = Callable[..., Cluster]


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    runtime.acquire(None, SHARDS)
    yield runtime.imported()
    runtime.release()


@pytest.fixture
def small(ray_here: Any, tmp_path: Path) -> Iterator[Small]:
    """``small(n)`` builds a cluster of n vectors, ids from 0, and closes it in the end."""
    made = []

    def make(n: int, shards: int = SHARDS, **options: Any) -> Cluster:
        vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
        made.append(Cluster.build(tmp_path / "cluster", vectors, shards=shards, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
