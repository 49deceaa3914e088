"""Ray is started and joined, and whatever ends the program ends what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from navis.cluster import Cluster

pytestmark = pytest.mark.system

# Opened by a thread that ends, which is no reason for Ray to end.
STARTED_HERE = """
import signal, sys, threading
import numpy as np
from navis.cluster import Cluster

def make():
    global cluster
    cluster = Cluster.create(sys.argv[1], 8, shards=2)
    cluster.insert(np.arange(50), np.eye(50, 8))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
maker = threading.Thread(target=make)
maker.start()
maker.join()
with cluster:
    print(len(cluster), flush=True)
    signal.pause()
"""

JOINED = """
import sys
from navis.cluster import Cluster
with Cluster.open(sys.argv[1], address=sys.argv[2]) as cluster:
    print(sorted(cluster.ids()) == list(range(30)), cluster.insert([99], [[1] * 8]))
"""


def command(code: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a path short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="nv", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_nothing_is_left_when_a_program_ends(tmp_path: Path, temporary: Path) -> None:
    ended = [signal.SIGINT, signal.SIGKILL]
    programs, children = [], []
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("RAY_ADDRESS", None)
    for how in ended:
        programs.append(
            subprocess.Popen(
                command(STARTED_HERE, tmp_path / how.name),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    for program, how in zip(programs, ended, strict=True):
        assert program.stdout is not None
        assert program.stdout.readline() == "50\n"
        family = psutil.Process(program.pid).children(recursive=True)
        names = {process.name() for process in family}
        assert {"raylet", "gcs_server", "ray::Shard"} <= names
        if how is signal.SIGKILL:  # Ray's agents notice a minute later, and hold nothing
            family = [process for process in family if not process.name().endswith("Agent")]
        children += family
        program.send_signal(how)
    for program in programs:
        _, said = program.communicate(timeout=120)
        assert program.returncode in (-signal.SIGINT, 1, -signal.SIGKILL), said
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == []
    # Ray's own files are gone too, but those of the program that was killed.
    assert len([*temporary.glob("navis-*")]) == 1


def test_one_is_joined_and_left_as_it_was(small: Any, ray_here: Any) -> None:
    cluster = small(30)
    path = cluster.path
    cluster.close()
    address = ray_here.get_runtime_context().gcs_address
    joined = subprocess.run(command(JOINED, path, address), capture_output=True, text=True)
    assert (joined.stdout, joined.returncode) == ("True 0\n", 0), joined.stderr
    with Cluster.open(path) as cluster:  # the lock is free, and Ray is still here
        assert sorted(cluster.ids()) == [*range(30), 99]
        assert np.array_equal(cluster.get([99]), np.ones((1, 8)))


def test_an_address_where_no_ray_is_is_one_line(tmp_path: Path) -> None:
    code = """
import sys
from shorthaul.errors import UserError
from navis.cluster import Cluster
for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"):
    try:
        Cluster.create(sys.argv[1], 8, shards=2, address=address)
    except UserError as error:
        print(error)
"""
    path = tmp_path / "new"
    done = subprocess.run(command(code, path), capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all("no Ray could be joined at" in line for line in lines)
    assert not path.exists()


@pytest.mark.slow
def test_a_lost_node_is_reported_and_waited_for(tmp_path: Path) -> None:
    # Two nodes of one Ray, by two addresses of this machine.
    code = """
import sys
import time
import numpy as np
from ray.cluster_utils import Cluster as Nodes
from shorthaul.errors import Fault
from navis.cluster import Cluster, ShardLost

nodes = Nodes(True, head_node_args={"node_ip_address": "127.0.0.2", "include_dashboard": False})
second = nodes.add_node(node_ip_address="127.0.0.3")
vectors = np.eye(50, 8, dtype=np.float32)
with Cluster.build(sys.argv[1], vectors, shards=3, address=nodes.address) as cluster:
    print('>', [one["node"] for one in cluster.stats()["each"]])
    nodes.remove_node(second, allow_graceful=False)
    while True:
        try:
            cluster.search(vectors, 3)
            time.sleep(0.2)
        except ShardLost as lost:
            print('>', lost.shards, cluster.search(vectors, 3, partial=True)[2])
            break
    while True:  # Ray takes a while to believe it
        try:
            cluster.recover()
        except Fault as error:
            if "is not there" in str(error):
                print('>', error)
                break
        time.sleep(0.2)
    nodes.add_node(node_ip_address="127.0.0.3")
    print('>', cluster.recover(), len(cluster), cluster.verify()["faults"])
nodes.shutdown()
"""
    path = tmp_path / "new"
    done = subprocess.run(command(code, path), capture_output=True, text=True, timeout=200)
    ours = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
    assert ours == [
        "['127.0.0.2', '127.0.0.3', '127.0.0.2']",
        "(1,) (1,)",
        "shard 1: its node 127.0.0.3 is not there; there are 127.0.0.2",
        "(1,) 50 []",
    ], done.stderr
