"""Binary bodies: a header of 16 bytes, then whole arrays, all little-endian.

| bytes | what |
|---|---|
| 0-3 | `NVS1` |
| 4-7 | uint32: 1 queries, 2 rows to insert, 3 results |
| 8-11 | uint32: rows, n |
| 12-15 | uint32: columns: dimension d, or k of results |
| of 1 | float32 vectors (n, d) |
| of 2 | uint64 ids (n,), float32 vectors (n, d) |
| of 3 | uint64 ids (n, k), float32 distances (n, k) |

A result with fewer than k neighbours is filled with id `2**64 - 1` at distance infinity.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

MEDIA_TYPE = "application/octet-stream"
_MAGIC = b"NVS1"
_HEADER = struct.Struct("<4sIII")
_QUERIES, _ROWS, _RESULTS = 1, 2, 3
_KINDS = {_QUERIES: "queries", _ROWS: "rows to insert", _RESULTS: "results"}


def pack_queries(vectors: npt.ArrayLike) -> bytes:
    """Give the body of a search for vectors (n, d)."""
    rows = _rows(vectors)
    return _HEADER.pack(_MAGIC, _QUERIES, *rows.shape) + rows.tobytes()


def pack_rows(ids: npt.ArrayLike, vectors: npt.ArrayLike) -> bytes:
    """Give the body of an insert of vectors (n, d) as ids (n,)."""
    rows, numbers = _rows(vectors), np.asarray(ids, dtype="<u8")
    if numbers.shape != rows.shape[:1]:
        raise UserError(f"{numbers.size} ids for {len(rows)} vectors: give one each")
    return _HEADER.pack(_MAGIC, _ROWS, *rows.shape) + numbers.tobytes() + rows.tobytes()


def pack_results(ids: Ids, distances: Floats) -> bytes:
    """Give the answer to a search, ids and distances (n, k)."""
    parts = ids.astype("<u8", copy=False).tobytes(), distances.astype("<f4", copy=False).tobytes()
    return _HEADER.pack(_MAGIC, _RESULTS, *ids.shape) + b"".join(parts)


def unpack_queries(body: bytes | bytearray) -> Floats:
    """Read vectors (n, d); a body of another size or kind is a UserError."""
    n, dim = _shape(body, _QUERIES, 0, 4)
    return np.frombuffer(body, "<f4", n * dim, _HEADER.size).reshape(n, dim)


def unpack_rows(body: bytes | bytearray) -> tuple[Ids, Floats]:
    """Read ids (n,) and vectors (n, d)."""
    n, dim = _shape(body, _ROWS, 8, 4)
    ids = np.frombuffer(body, "<u8", n, _HEADER.size)
    return ids, np.frombuffer(body, "<f4", n * dim, _HEADER.size + 8 * n).reshape(n, dim)


def unpack_results(body: bytes | bytearray) -> tuple[Ids, Floats]:
    """Read ids (n, k) and distances (n, k)."""
    n, k = _shape(body, _RESULTS, 0, 12)
    ids = np.frombuffer(body, "<u8", n * k, _HEADER.size).reshape(n, k)
    return ids, np.frombuffer(body, "<f4", n * k, _HEADER.size + 8 * n * k).reshape(n, k)


def _rows(vectors: npt.ArrayLike) -> Floats:
    rows = np.asarray(vectors, dtype="<f4")
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2:
        raise UserError(f"vectors of shape {rows.shape}: give (n, d)")
    return rows


def _shape(body: bytes | bytearray, kind: int, per_row: int, per_cell: int) -> tuple[int, int]:
    """Check the header against the body's size and give rows and columns."""
    if len(body) < _HEADER.size:
        raise UserError(f"a binary body of {len(body)} bytes: its header alone has {_HEADER.size}")
    magic, given, n, columns = _HEADER.unpack_from(body)
    if magic != _MAGIC:
        raise UserError(f"a binary body begins with {_MAGIC.decode()}, this one does not")
    if given != kind:
        raise UserError(f"a binary body of {_KINDS.get(given, given)}: send {_KINDS[kind]}")
    wanted = _HEADER.size + n * (per_row + columns * per_cell)
    if len(body) != wanted:
        raise UserError(
            f"a binary body of {len(body)} bytes: {n} rows of {columns} columns have {wanted}"
        )
    return n, columns
