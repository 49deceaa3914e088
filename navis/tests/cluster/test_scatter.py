"""A shard that dies is reported; what it had acknowledged is there when it is back."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from shorthaul.errors import UserError

from navis.cluster import Cluster, ShardLost, manifest, runtime
from navis.cluster.routing import shard_of

pytestmark = pytest.mark.system


def points(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


def pids(cluster: Cluster) -> list[int]:
    return [one["pid"] for one in cluster.stats()["each"]]


def on(shard: int, numbers: Any) -> Any:
    return numbers[shard_of(numbers, 3) == shard]


def test_a_killed_shard_is_reported_missed_and_recovered(small: Any) -> None:
    cluster = small(300)
    vectors, numbers = points(600), np.arange(600)
    cluster.insert(numbers[300:], vectors[300:])
    everything = cluster.search(vectors[:20], 600)
    os.kill(pids(cluster)[1], signal.SIGKILL)

    with pytest.raises(ShardLost, match=r"shard 1 of 3: its process died .*recover\(\)") as lost:
        cluster.search(vectors[:20], 5)
    assert (lost.value.shards, lost.value.exit_code, cluster.lost) == ((1,), 1, (1,))
    for call in (cluster.stats, cluster.verify, cluster.flush, cluster.compact, cluster.ids):
        with pytest.raises(ShardLost, match="shard 1 of 3"):
            call()

    # Searches of the rest: what the whole had found, less the lost shard's.
    ids, distances, missing = cluster.search(vectors[:20], 600, partial=True)
    assert missing == (1,)
    kept = shard_of(everything[0].reshape(-1), 3).reshape(everything[0].shape) != 1
    for row in range(20):
        here = kept[row].sum()
        assert ids[row, :here].tolist() == everything[0][row][kept[row]].tolist()
        assert np.array_equal(distances[row, :here], everything[1][row][kept[row]])
        assert np.all(np.isinf(distances[row, here:]))

    # A change that concerns it is refused before anything is changed; one that does not, is made.
    with pytest.raises(ShardLost):
        cluster.insert(np.arange(1000, 1100), points(100))
    with pytest.raises(ShardLost):
        cluster.delete(numbers)
    others = on(0, np.arange(1000, 1100))
    assert cluster.insert(others, points(len(others), 1)) == 0

    assert cluster.recover() == (1,)
    assert cluster.lost == ()
    assert cluster.recover() == ()
    assert sorted(cluster.ids()) == [*range(600), *others]
    assert np.array_equal(cluster.get(numbers), vectors)
    ids, distances = cluster.search(vectors, 1, L=100)
    assert ids[:, 0].tolist() == numbers.tolist()
    assert np.all(distances == 0)
    assert cluster.verify()["faults"] == []
    cluster.insert(np.arange(1000, 1100), points(100))
    assert len(cluster) == 700


def test_inserts_go_on_over_deaths(small: Any) -> None:
    cluster = small(0)
    deaths = 0
    for batch in range(12):
        numbers, vectors = np.arange(batch * 40, batch * 40 + 40), points(40, batch)
        if batch in (3, 8):  # in mid-call, as it falls
            victim = pids(cluster)[batch % 3]
            killer = threading.Timer(0.002 * batch, os.kill, (victim, signal.SIGKILL))
            killer.start()
        while True:
            try:
                cluster.insert(numbers, vectors)
                break
            except ShardLost as lost:
                deaths += len(lost.shards)
                cluster.recover()
        if batch in (3, 8):
            killer.join()
    deaths += len(cluster.recover())  # one that died after its last answer
    assert deaths == 2
    assert sorted(cluster.ids()) == list(range(480))
    wanted = np.concatenate([points(40, batch) for batch in range(12)])
    assert np.array_equal(cluster.get(np.arange(480)), wanted)
    assert cluster.verify()["faults"] == []


def test_what_cannot_be_recovered_stays_lost_and_the_rest_is_back(
    small: Any, tmp_path: Path
) -> None:
    cluster = small(60)
    vectors = cluster.get(np.arange(60))
    folder = manifest.folder_of(cluster.path, 2)
    for actor in (cluster._shards._actors[0], cluster._shards._actors[2]):
        runtime.kill(actor)
    with pytest.raises(ShardLost) as lost:
        cluster.search(vectors, 1)
    assert lost.value.shards == (0, 2)
    folder.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"shard 2: .*shard-0002 is missing; put it back"):
        cluster.recover()
    assert cluster.lost == (2,)
    assert cluster.search(vectors, 1, partial=True)[2] == (2,)
    (tmp_path / "away").rename(folder)
    assert cluster.recover() == (2,)
    assert np.array_equal(cluster.get(np.arange(60)), vectors)

    # One that does not answer is missing from a result, not lost.
    stopped = psutil.Process(pids(cluster)[0])
    stopped.suspend()
    with pytest.raises(ShardLost, match=r"shard 0 of 3: no answer within 3 s"):
        cluster.search(vectors, 1, timeout_s=3.0)
    ids, _, missing = cluster.search(vectors, 1, partial=True, timeout_s=3.0)
    assert missing == (0,)
    assert np.all(shard_of(ids[:, 0], 3) != 0)
    stopped.resume()
    assert cluster.lost == ()
    assert cluster.search(vectors, 1)[0][:, 0].tolist() == list(range(60))
