"""Traces of edge-list accesses: recorded, kept in files (docs/format.md), replayed by caches."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from shorthaul import atomic
from shorthaul.errors import EnvironmentLack, UserError

from navis.errors import Corrupt, translated

if TYPE_CHECKING:
    from navis.index import Index

Array = npt.NDArray[Any]

POLICIES = ("lfu", "lru", "none")
_MAGIC, _VERSION = b"NAVISTRC", 1
# Magic, version, L, lists, traversals, accesses, purpose, CRC of the body, zeros, CRC of all that.
_HEADER = struct.Struct("<8sIIQQQII12sI")
_TOGETHER = 256  # queries traced between two steps of the bar


@dataclass(frozen=True)
class Trace:
    """Which edge lists were followed, in order.

    Attributes:
        ids: uint64, shape (accesses,): whose lists.
        counts: uint32, shape (traversals,): accesses of each traversal; the n-th of them is at
            depth n.
        lists: edge lists of the index then.
        L: search list.
        seek: whether it was the position seeking of inserts.
    """

    ids: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint32]
    lists: int
    L: int
    seek: bool = False

    def depths(self) -> npt.NDArray[np.uint32]:
        """Depth of every access within its traversal."""
        ends = np.cumsum(self.counts, dtype=np.int64)
        first = np.repeat(ends - self.counts, self.counts)
        return (np.arange(len(self.ids)) - first).astype(np.uint32)


def record(index: Index, queries: Array, L: int, *, seek: bool = False) -> Trace:
    """Trace the traversals of these queries, one after the other."""
    from shorthaul.progress import bar

    if L < 1:
        raise UserError(f"L {L}: use 1 or more")
    paths: list[Array] = []
    with bar(len(queries), "trace") as shown:
        for first in range(0, len(queries), _TOGETHER):
            some = np.asarray(queries[first : first + _TOGETHER], np.float32)
            paths += index.trace(some, L, seek=seek)
            shown.update(len(some))
    counts = np.array([len(path) for path in paths], np.uint32)
    ids = np.concatenate([np.empty(0, np.uint64), *paths])
    return Trace(ids, counts, len(index), L, seek)


def write(path: Path, trace: Trace) -> None:
    """Write a trace file, whole or not at all."""
    body = trace.counts.astype("<u4").tobytes() + trace.ids.astype("<u8").tobytes()
    fields = (_MAGIC, _VERSION, trace.L, trace.lists, len(trace.counts), len(trace.ids))
    head = _HEADER.pack(*fields, int(trace.seek), zlib.crc32(body), bytes(12), 0)[:-4]
    try:
        atomic.write_bytes(path, head + struct.pack("<I", zlib.crc32(head)) + body)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def read(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        UserError: There is none, or it is no trace.
        Corrupt: It is damaged.
        EnvironmentLack: It was written by a newer navis.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if data[:8] != _MAGIC:
        raise UserError(f"{path}: not a trace; navis cachesim INDEX --queries Q --record makes one")
    if len(data) < _HEADER.size or zlib.crc32(data[: _HEADER.size - 4]) != _crc(data):
        raise Corrupt(f"{path}: its header is damaged; record it again")
    _, version, L, lists, traversals, accesses, purpose, crc, _, _ = _HEADER.unpack_from(data)
    if version > _VERSION:
        raise EnvironmentLack(
            f"{path}: version {version}, this navis reads {_VERSION}: install a newer navis"
        )
    body = data[_HEADER.size :]
    if len(body) != 4 * traversals + 8 * accesses or zlib.crc32(body) != crc:
        raise Corrupt(f"{path}: damaged or truncated; record it again")
    counts = np.frombuffer(body, "<u4", traversals)
    ids = np.frombuffer(body, "<u8", accesses, offset=4 * traversals)
    if int(counts.sum(dtype=np.uint64)) != accesses:
        raise Corrupt(f"{path}: its counts are not those of its accesses; record it again")
    return Trace(ids, counts, lists, L, bool(purpose))


def _crc(data: bytes) -> int:
    return int.from_bytes(data[_HEADER.size - 4 : _HEADER.size], "little")


@dataclass(frozen=True)
class Replay:
    """What a cache of so many lists would have held.

    Attributes:
        entries: lists it has room for.
        hit_ratio: by policy, over the second half of the traversals, the first having filled it.
        cold: by policy, over all of them, beginning with an empty cache.
    """

    entries: int
    hit_ratio: dict[str, float]
    cold: dict[str, float]


def replay(trace: Trace, entries: Sequence[int], policies: Sequence[str]) -> list[Replay]:
    """Replay a trace through caches of these sizes under each policy.

    The engine also holds the lists of entrance nodes, under every policy; here they compete.
    """
    from navis import _core

    if not len(trace.ids):
        raise UserError("the trace holds no access: record one with queries")
    names, dense = np.unique(trace.ids, return_inverse=True)
    ids, depths = dense.astype(np.uint32), trace.depths()
    half = int(trace.counts[: len(trace.counts) // 2].sum(dtype=np.int64))

    def hits(until: int, room: int, policy: str) -> int:
        if not until or policy == "none":
            return 0
        how = getattr(_core.CachePolicy, policy)
        with translated():
            found = _core.simulate_cache(ids[:until], depths[:until], room, how, [], 0)
        return int(found[0])

    found = []
    for wanted in entries:
        room = min(wanted, len(names))  # more than is asked for is of no use
        warm, cold = {}, {}
        for policy in policies:
            every = hits(len(ids), room, policy)
            warm[policy] = (every - hits(half, room, policy)) / (len(ids) - half)
            cold[policy] = every / len(ids)
        found.append(Replay(wanted, warm, cold))
    return found
