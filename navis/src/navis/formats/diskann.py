"""Reads disk indexes as DiskANN's Python packages write them: graph and vectors.

``<prefix>_disk.index`` is a sequence of 4096-byte sectors. Sector 0: int32 rows, int32 columns,
then uint64 points, dimension, medoid, node bytes, nodes a sector, and more that is not needed. A
node: its vector, uint32 degree, neighbours (uint32) up to the maximal degree. Nodes follow each
other in the order of their ids; none straddles a sector unless it is larger than one, and then
each takes whole sectors (nodes a sector is 0).

``<prefix>_metadata.bin``: uint64 value type, metric, points, dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import expect_size, head, size_of

SECTOR = 4096
NO_NODE = 2**32 - 1
_DTYPES = ("float32", "int8", "uint8")
# The two generations number their metrics differently; the size of sector 0's table tells which.
_RUST_ROWS = 96
_METRICS_RUST = ("l2", "cosine", "cosine", "inner_product")
_METRICS_CPP = ("l2", "inner_product", "cosine")
_INDEX = "_disk.index"


@dataclass(frozen=True)
class Nodes:
    """A run of nodes.

    Attributes:
        start: id of the first.
        vectors: shape (c, d), as stored.
        degrees: uint32, shape (c,).
        neighbours: uint32, shape (c, R); beyond a node's degree 2^32 - 1.
    """

    start: int
    vectors: npt.NDArray[Any]
    degrees: npt.NDArray[np.uint32]
    neighbours: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class DiskIndex:
    """A disk index, its header read and checked.

    Attributes:
        points: number of nodes; ids are 0 to points - 1.
        dim: values of a stored vector. With inner product, the older package stores one more than
            the data has: vectors divided by `max_norm`, and what fills them up to length 1.
        medoid: node where a search starts. The newer package puts it for a start point of its own,
            so that it can be its own neighbour, and another node's neighbour twice.
        max_degree: room for neighbours, R.
        metric: l2, inner_product or cosine; "" where no metadata file tells.
        max_norm: 0 where vectors are stored as they were given.
    """

    path: Path
    points: int
    dim: int
    dtype: np.dtype[Any]
    medoid: int
    max_degree: int
    node_bytes: int
    nodes_per_sector: int
    metric: str = ""
    max_norm: float = 0.0

    def nodes(self, rows: int = 8192) -> Iterator[Nodes]:
        """Give all nodes in the order of their ids, `rows` or a few more at a time."""
        per = self.nodes_per_sector or 1
        sectors = 1 if self.nodes_per_sector else -(-self.node_bytes // SECTOR)
        groups = max(1, rows // per)  # a group: one sector of nodes, or the sectors of one node
        for start in range(0, self.points, groups * per):
            count = min(groups * per, self.points - start)
            wanted = -(-count // per)
            offset = SECTOR * (1 + start // per * sectors)
            size = wanted * sectors * SECTOR
            raw = np.fromfile(self.path, np.uint8, size, offset=offset)
            packed = raw.reshape(wanted, -1)[:, : per * self.node_bytes]
            yield self._nodes(start, packed.reshape(-1, self.node_bytes)[:count])

    def _nodes(self, start: int, records: npt.NDArray[np.uint8]) -> Nodes:
        tail = self.dim * self.dtype.itemsize
        vectors = np.ascontiguousarray(records[:, :tail]).view(self.dtype)
        counts = np.ascontiguousarray(records[:, tail : tail + 4]).view("<u4")[:, 0]
        ids = records[:, tail + 4 : tail + 4 + 4 * self.max_degree]
        neighbours = np.ascontiguousarray(ids).view("<u4")
        wrong = np.flatnonzero(counts > self.max_degree)
        if wrong.size:
            raise UserError(
                f"{self.path}: node {start + wrong[0]} has {counts[wrong[0]]} neighbours, at most "
                f"{self.max_degree} fit; the file is damaged or dtype= is wrong"
            )
        used = np.arange(self.max_degree) < counts[:, None]
        beyond = np.flatnonzero((used & (neighbours >= self.points)).any(axis=1))
        if beyond.size:
            raise UserError(
                f"{self.path}: node {start + beyond[0]} points at a node beyond the last, "
                f"{self.points - 1}; the file is damaged or dtype= is wrong"
            )
        neighbours[~used] = NO_NODE
        return Nodes(start, vectors, counts, neighbours)

    def original(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo what inner product did to stored vectors: shape (c, dim) to (c, dim - 1)."""
        return vectors[:, :-1] * np.float32(self.max_norm) if self.max_norm else vectors


def open_disk_index(path: Path | str, *, dtype: npt.DTypeLike | None = None) -> DiskIndex:
    """Read the header of a disk index.

    Args:
        path: ``…_disk.index``, its prefix, or a folder that holds one.
        dtype: value type; needed where ``…_metadata.bin`` is not beside it.

    Raises:
        UserError: It is missing, damaged, or stores no full vectors with its nodes.
    """
    file = find(Path(path))
    page = head(file, SECTOR, "sector 0")
    rows, columns = (int(v) for v in np.frombuffer(page, "<i4", 2))
    fields = [int(v) for v in np.frombuffer(page, "<u8", 10, offset=8)]
    points, dim, medoid, node_bytes, per, _, _, reordered, _, attached = fields
    if rows < 5 or columns != 1 or not (points and dim and node_bytes) or medoid >= points:
        raise UserError(f"{file}: not a disk index (its sector 0 starts with {page[:16].hex()})")
    if per > SECTOR // node_bytes or (per == 0) != (node_bytes > SECTOR):
        raise UserError(f"{file}: {per} nodes of {node_bytes} bytes a sector; it is damaged")
    if beside(file, "_disk.index_pq_pivots.bin").exists() or (rows != 7 and reordered):
        raise UserError(f"{file}: its nodes hold compressed vectors; build it without disk PQ")
    if rows == _RUST_ROWS and attached:
        raise UserError(f"{file}: its nodes carry {attached} bytes of other data; build it without")
    told, metric = _metadata(file, points, rows)
    kind = np.dtype(dtype) if dtype is not None else told
    if kind is None or kind.name not in _DTYPES:
        raise UserError(f"{file}: dtype is {kind}; give dtype=, one of {', '.join(_DTYPES)}")
    room = node_bytes - dim * kind.itemsize - 4
    if room < 0 or room % 4:
        raise UserError(
            f"{file}: nodes of {node_bytes} bytes do not hold {dim} {kind}; give dtype="
        )
    sectors = -(-points // per) if per else points * -(-node_bytes // SECTOR)
    expected = SECTOR * (1 + sectors)
    if size_of(file) < expected:
        expect_size(file, expected, f"{points} nodes of {node_bytes} bytes")
    norm = beside(file, "_disk.index_max_base_norm.bin")
    max_norm = float(np.frombuffer(head(norm, 12), "<f4", 1, offset=8)[0]) if norm.exists() else 0.0
    return DiskIndex(file, points, dim, kind, medoid, room // 4, node_bytes, per, metric, max_norm)


def find(path: Path) -> Path:
    """The index file that a path, a prefix or a folder names."""
    if path.is_dir():
        found = sorted(path.glob(f"*{_INDEX}"))
        if len(found) != 1:
            names = " ".join(f.name for f in found) or "none"
            raise UserError(f"{path}: holds {len(found)} disk indexes ({names}); name one")
        return found[0]
    if not path.name.endswith(_INDEX):
        path = path.with_name(path.name + _INDEX)
    size_of(path)
    return path


def beside(file: Path, ending: str) -> Path:
    """Another file of the same index."""
    return file.with_name(file.name.removesuffix(_INDEX) + ending)


def _metadata(file: Path, points: int, rows: int) -> tuple[np.dtype[Any] | None, str]:
    path = beside(file, "_metadata.bin")
    if not path.exists():
        return None, ""
    kind, metric, count, _ = (int(v) for v in np.frombuffer(head(path, 32), "<u8", 4))
    metrics = _METRICS_RUST if rows == _RUST_ROWS else _METRICS_CPP
    if kind >= len(_DTYPES) or metric >= len(metrics) or count != points:
        raise UserError(
            f"{path}: type {kind}, metric {metric}, {count} points; it is not of {file.name}, "
            f"which has {points}"
        )
    return np.dtype(_DTYPES[kind]), metrics[metric]
