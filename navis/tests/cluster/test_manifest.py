"""A manifest is read back as written, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shorthaul.errors import UserError

from navis.cluster import Cluster, manifest
from navis.cluster.manifest import FILE, Manifest

ABOUT = Manifest("c" * 32, (None, "10.0.0.7"), 8, "l2", "float32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    manifest.write(tmp_path, ABOUT)
    return tmp_path


def changed(path: Path, **fields: Any) -> None:
    body = json.loads((path / FILE).read_text())
    (path / FILE).write_text(json.dumps({**body, **fields}))


def test_what_is_written_is_read(path: Path) -> None:
    assert manifest.read(path) == ABOUT
    assert ABOUT.shards == 2


def test_a_cut_manifest_is_refused_wherever_it_is_cut(path: Path) -> None:
    whole = (path / FILE).read_bytes()
    for size in range(len(whole) - 2):  # the last two: a brace and a line's end
        (path / FILE).write_bytes(whole[:size])
        with pytest.raises(UserError, match=FILE):
            manifest.read(path)


def test_a_changed_byte_is_refused(path: Path) -> None:
    whole = (path / FILE).read_bytes()
    for place in range(0, len(whole), 3):
        (path / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(UserError, match=FILE):
            assert manifest.read(path) != ABOUT


def test_faults_are_told_apart(path: Path, tmp_path: Path) -> None:
    changed(path, version=2)
    with pytest.raises(UserError, match=r"version 2, this navis reads up to 1; install a newer"):
        Cluster.open(path)
    manifest.write(path, ABOUT)
    changed(path, nodes=[None])
    with pytest.raises(UserError, match="damaged"):
        Cluster.open(path)
    changed(path, format="another")
    with pytest.raises(UserError, match="no manifest of a cluster"):
        Cluster.open(path)
    (path / FILE).unlink()
    with pytest.raises(UserError, match="it is no cluster"):
        Cluster.open(path)
    with pytest.raises(UserError, match="there is no such folder"):
        Cluster.open(tmp_path / "nowhere")


def test_a_shard_in_anothers_place_is_refused(tmp_path: Path) -> None:
    folder = manifest.folder_of(tmp_path, 1)
    with pytest.raises(UserError, match="shard-0001 is missing"):
        manifest.check_shard(folder, ABOUT.cluster, 1)
    folder.mkdir()
    with pytest.raises(UserError, match=r"shard.json: cannot be read"):
        manifest.check_shard(folder, ABOUT.cluster, 1)
    manifest.write_shard(folder, ABOUT.cluster, 1, 2)
    manifest.check_shard(folder, ABOUT.cluster, 1)
    with pytest.raises(UserError, match="is shard 1 of this cluster, not 0"):
        manifest.check_shard(folder, ABOUT.cluster, 0)
    with pytest.raises(UserError, match="of another cluster"):
        manifest.check_shard(folder, "d" * 32, 1)
