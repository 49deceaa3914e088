"""`cluster.json`: how many shards there are, where, and how ids are routed to them.

Beside it lie the shards' folders. Each holds `index`, which `navis.Index` opens, and `shard.json`,
which says whose shard it is: a folder put in another's place would hold ids that nobody finds.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shorthaul import atomic
from shorthaul.errors import UserError

from navis.cluster import routing

FILE, SHARD_FILE, INDEX = "cluster.json", "shard.json", "index"
_FORMAT, _VERSION = "navis-cluster", 1


@dataclass(frozen=True)
class Manifest:
    """A cluster, as its manifest has it.

    Attributes:
        cluster: Random name, the same in every shard's `shard.json` and in snapshots.
        nodes: Of each shard the address of the Ray node that has its files; None: any node.
        dim: Dimension of the vectors.
        metric: As `navis.Index` has it.
        dtype: Type of the stored vectors.
    """

    cluster: str
    nodes: tuple[str | None, ...]
    dim: int
    metric: str
    dtype: str

    @property
    def shards(self) -> int:
        """How many."""
        return len(self.nodes)


def new_name() -> str:
    """Give a random name of a cluster."""
    return secrets.token_hex(16)


def folder_of(path: Path, number: int) -> Path:
    """Give a shard's folder."""
    return path / f"shard-{number:04}"


def write(path: Path, manifest: Manifest) -> None:
    """Write it, whole or not at all; a cluster without one does not exist."""
    body = {
        "format": _FORMAT,
        "version": _VERSION,
        "hash": routing.HASH,
        "shards": manifest.shards,
        **dataclasses.asdict(manifest),
    }
    atomic.write_json(path / FILE, {**body, "crc32": _crc(atomic.plain(body))})


def read(path: Path) -> Manifest:
    """Read and check it; whatever is wrong is a UserError of one line."""
    file = path / FILE
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; Cluster.build makes a cluster")
    if not file.exists():
        raise UserError(
            f"{path}: there is no {FILE}; it is no cluster (navis.Index opens a single index), or "
            "its making was cut short: remove it and make it anew"
        )
    body = atomic.read_json(file)
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise UserError(f"{file}: no manifest of a cluster")
    version = body.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise UserError(
            f"{file}: version {version}, this navis reads up to {_VERSION}; install a newer one"
        )
    if body.pop("crc32", None) != _crc(body):
        raise UserError(f"{file}: damaged (its checksum differs); put back a copy of this file")
    if body["hash"] != routing.HASH:
        raise UserError(f"{file}: ids routed by {body['hash']!r}, this navis knows {routing.HASH}")
    fields = {field.name: body[field.name] for field in dataclasses.fields(Manifest)}
    return Manifest(**{**fields, "nodes": tuple(fields["nodes"])})


def write_shard(folder: Path, cluster: str, number: int, of: int) -> None:
    """Write whose shard a folder is."""
    about = {"format": _FORMAT, "version": _VERSION, "cluster": cluster, "shard": number, "of": of}
    atomic.write_json(folder / SHARD_FILE, about)


def check_shard(folder: Path, cluster: str, number: int) -> None:
    """Check that a folder is there and is this shard's; otherwise a UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; put it back, from a snapshot if need be")
    about = atomic.read_json(folder / SHARD_FILE)
    if not isinstance(about, dict) or about.get("cluster") != cluster:
        raise UserError(f"{folder} is of another cluster; put back the one that belongs here")
    if about.get("shard") != number:
        raise UserError(f"{folder} is shard {about.get('shard')} of this cluster, not {number}")


def _crc(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
