"""A cluster answers as one index would, and as the merge of its shards does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, UserError

import navis
from navis.cluster import Cluster, manifest
from navis.cluster.merging import NONE
from navis.cluster.routing import shard_of
from navis.errors import Closed
from navis.formats import recall
from navis.groundtruth import exact

SHARDS = 3


@pytest.fixture(scope="module")
def cluster(
    ray_here: Any, base: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """2000 vectors built, 1000 inserted; labels and values are remainders of the ids."""
    numbers = np.arange(3000)
    path = tmp_path_factory.mktemp("client") / "cluster"
    made = Cluster.build(
        path, base[:2000], shards=SHARDS, labels=numbers[:2000] % 7, values=numbers[:2000] % 100
    )
    with made:
        rest = numbers[2000:]
        assert made.insert(rest, base[rest], labels=rest % 7, values=rest % 100) == 0
        yield made


def alone(cluster: Cluster, tmp_path: Path) -> list[navis.Index]:
    """The shards' indexes as they are now, opened one by one in this process."""
    cluster.snapshot(tmp_path / "alone")
    return [
        navis.Index.open(
            manifest.folder_of(tmp_path / "alone", number) / manifest.INDEX, readonly=True
        )
        for number in range(SHARDS)
    ]


def brute_force(vectors: Any, numbers: Any, query: Any, k: int) -> list[int]:
    squared = ((vectors - query) ** 2).sum(axis=1)
    return [int(numbers[i]) for i in np.argsort(squared, kind="stable")[:k]]


def test_it_finds_what_brute_force_finds(cluster: Cluster, base: Any, queries: Any) -> None:
    truth = exact(base, queries, 10, "l2")
    ids, distances = cluster.search(queries, 10, L=80)
    assert (ids.dtype, distances.dtype) == (np.uint64, np.float32)
    assert recall(ids.astype(np.int64), truth.ids, 10, truth.distances) >= 0.98
    assert np.all(np.diff(distances, axis=1) >= 0)
    same = ids.astype(np.int64) == truth.ids
    assert truth.distances is not None
    np.testing.assert_allclose(distances[same], truth.distances[same], rtol=1e-4)
    one_ids, one_distances = cluster.search(queries[0], 10, L=80)
    assert np.array_equal(one_ids, ids[0])
    assert np.array_equal(one_distances, distances[0])


def test_it_gives_exactly_the_merge_of_its_shards(
    cluster: Cluster, queries: Any, tmp_path: Path
) -> None:
    indexes = alone(cluster, tmp_path)
    for k, few in ((10, None), (25, navis.Filter(any_of=(1, 2), between=(10, 60)))):
        ids, distances = cluster.search(queries, k, L=50, filter=few)
        parts = [index.search(queries, k, L=50, filter=few) for index in indexes]
        for row in range(len(queries)):
            pairs = sorted((d, i) for p in parts for d, i in zip(p[1][row], p[0][row], strict=True))
            assert [*zip(distances[row], ids[row], strict=True)] == pairs[:k]
    for index in indexes:
        index.close()


def test_every_id_is_on_the_shard_of_its_hash(cluster: Cluster, tmp_path: Path) -> None:
    where = [set(index.ids().tolist()) for index in alone(cluster, tmp_path)]
    for number, here in enumerate(where):
        assert set(shard_of(sorted(here), SHARDS).tolist()) == {number}
    assert sorted(i for here in where for i in here) == list(range(3000))
    assert cluster.verify()["faults"] == []


def test_filters_and_vectors_go_with_their_ids(cluster: Cluster, base: Any, queries: Any) -> None:
    numbers = np.arange(3000)
    match = (numbers % 7 == 3) & (numbers % 100 < 20)
    few = navis.Filter(any_of=(3,), between=(0, 19))
    ids, distances = cluster.search(queries, 100, L=200, filter=few)
    found = ids[ids != NONE]
    assert np.all(match[found])
    assert len(found) == len(queries) * min(100, match.sum())
    assert np.all(np.isinf(distances[ids == NONE]))
    best = [brute_force(base[match], numbers[match], q, 10) for q in queries]
    assert recall(ids[:, :10].astype(np.int64), np.array(best), 10) >= 0.98
    some = [2999, 0, 1500, 7]
    assert np.array_equal(cluster.get(some), base[some])


def test_its_figures_are_sums(cluster: Cluster) -> None:
    stats = cluster.stats()
    assert stats["shards"] == len(stats["each"]) == SHARDS
    assert stats["live"] == len(cluster) == 3000 == sum(one["live"] for one in stats["each"])
    assert len({one["pid"] for one in stats["each"]} | {os.getpid()}) == SHARDS + 1
    assert (cluster.dim, cluster.metric, cluster.dtype.name) == (48, "l2", "float32")
    assert cluster.lost == ()


def test_bad_input_is_one_line_and_changes_nothing(cluster: Cluster, queries: Any) -> None:
    row = np.zeros(48)
    for line, call in {
        r"queries have 7 dimensions, the index has 48": lambda: cluster.search(np.zeros((1, 7))),
        r"k 0: use a whole number": lambda: cluster.search(queries, 0),
        r"L 5: use 10": lambda: cluster.search(queries, 10, L=5),
        r"k 3001: the cluster holds 3000": lambda: cluster.search(queries[:1], 3001),
        r"2 filters for 50 queries": lambda: cluster.search(queries, filter=[navis.Filter()] * 2),
        r"id 8 occurs twice": lambda: cluster.insert([8, 8], [row, row]),
        r"2 ids for 1 vectors": lambda: cluster.insert([8, 9], [row]),
        r"row 1": lambda: cluster.insert([8, 9], [row, np.full(48, np.nan)]),
        r"labels of 1 vectors for 2": lambda: cluster.insert([8, 9], [row, row], labels=[1]),
        r"values of shape": lambda: cluster.insert([8, 9], [row, row], values=[1]),
        r"id -1: use 0 or more": lambda: cluster.delete([-1]),
        r"shard \d: .*9999": lambda: cluster.get([9999]),
        r"exists and is not empty": lambda: cluster.snapshot(cluster.path),
    }.items():
        with pytest.raises(UserError, match=line) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert sorted(cluster.ids()) == list(range(3000))


def test_a_second_writer_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"shard \d: .* open for writing already"):
        Cluster.open(cluster.path, lock_wait_s=0.0)
    assert len(cluster) == 3000


def test_it_follows_inserts_replacements_and_deletes(small: Any) -> None:
    cluster, rng = small(0), np.random.default_rng(1)
    model: dict[int, Any] = {}
    for _ in range(12):
        numbers = rng.choice(2**63, 3).tolist() + rng.choice(40, 12, replace=False).tolist()
        vectors = rng.normal(size=(15, 8)).astype(np.float32)
        assert cluster.insert(numbers, vectors) == len(model.keys() & set(numbers))
        model |= dict(zip(numbers, vectors, strict=True))
        gone = rng.choice(60, 6).tolist()  # some twice, some unknown
        assert cluster.delete(gone) == len(model.keys() & set(gone))
        model = {number: row for number, row in model.items() if number not in gone}
        assert sorted(cluster.ids()) == sorted(model)
        numbers, vectors = list(model), np.array(list(model.values()))
        assert np.array_equal(cluster.get(numbers), vectors)
        # All of it: k is more than a shard has, and nothing is left to approximation.
        ids, distances = cluster.search(vectors[:5], len(model))
        assert np.all(distances[:, 0] == 0)
        for row in range(5):
            assert ids[row].tolist() == brute_force(vectors, numbers, vectors[row], len(model))
    cluster.flush()
    cluster.compact()
    assert cluster.verify()["faults"] == []
    assert sorted(cluster.ids()) == sorted(model)


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_shards_measure_alike(small: Any, metric: Any) -> None:
    cluster = small(300, shards=2, metric=metric)
    vectors = cluster.get(np.arange(300))
    truth = exact(vectors, vectors[:20], 10, metric)
    ids, _ = cluster.search(vectors[:20], 10, L=100)
    assert recall(ids.astype(np.int64), truth.ids, 10, truth.distances) >= 0.98
    # As long as the longest of the whole set: within the radius of whichever shard gets it.
    longest = vectors[np.argmax((vectors**2).sum(axis=1))]
    cluster.insert(np.arange(1000, 1020), np.tile(longest, (20, 1)))


def test_it_is_copied_closed_moved_and_opened_again(small: Any, tmp_path: Path) -> None:
    cluster = small(100, shards=2)
    vectors = cluster.get(np.arange(100))
    cluster.snapshot(tmp_path / "copy")
    cluster.close()
    cluster.close()
    for call in (lambda: cluster.search(vectors), lambda: cluster.insert([1], vectors[:1])):
        with pytest.raises(Closed, match="has been closed"):
            call()
    moved = (tmp_path / "copy").rename(tmp_path / "moved")
    with Cluster.open(moved, readonly=True) as again:
        assert np.array_equal(again.get(np.arange(100)), vectors)
        with pytest.raises(UserError, match="readonly"):
            again.insert([1], vectors[:1])
    manifest.folder_of(moved, 1).rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"shard 1: .*shard-0001 is missing; put it back"):
        Cluster.open(moved)


def test_a_cluster_that_cannot_be_made_leaves_nothing(ray_here: Any, tmp_path: Path) -> None:
    path, rows = tmp_path / "new", np.zeros((4, 8), np.float32)
    for line, options in {
        r"shards 0: use 1 to": {"shards": 0},
        r"option 'degre' is unknown; there are .*degree": {"shards": 2, "degre": 5},
        r"metric 'l3': use l2": {"shards": 2, "metric": "l3"},
        r"node '10.9.8.7' is not in the Ray cluster": {"shards": 2, "nodes": ["10.9.8.7"]},
        r"shard 0: degree 0: use a whole number": {"shards": 2, "degree": 0},
    }.items():
        with pytest.raises(UserError, match=line):
            Cluster.build(path, rows, **options)
        assert not path.exists()
    path.mkdir()
    (path / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        Cluster.create(path, 8, shards=2)
    assert [*path.iterdir()] == [path / "file"]


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentLack, match=r"pip install 'shorthaul-navis\[cluster\]'"):
        Cluster.create(tmp_path / "new", 8, shards=2)
    assert not (tmp_path / "new").exists()


def test_only_a_cluster_in_use_imports_ray() -> None:
    code = "import sys, navis.cluster, navis.cli; navis.Index; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
