"""Vectors in files: read, memory-mapped where the format allows it, and in chunks; written.

Convention, here and in every module of ours: a matrix is C-ordered, (n, d), one vector a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import need
from navis.formats._layout import Layout, locate
from navis.formats._write import write_chunks, write_vectors

Array = npt.NDArray[Any]
_BLOCK_BYTES = 32 << 20

__all__ = [
    "check_finite",
    "iter_chunks",
    "read_vectors",
    "shape_of",
    "write_chunks",
    "write_vectors",
]


def shape_of(
    path: Path | str, *, dtype: npt.DTypeLike | None = None
) -> tuple[int, int, np.dtype[Any]]:
    """Rows, dimension and value type of a vector file, from its header alone."""
    layout = locate(path, dtype)
    return layout.rows, layout.dim, layout.dtype


def read_vectors(
    path: Path | str,
    *,
    start: int = 0,
    count: int | None = None,
    mmap: bool = True,
    dtype: npt.DTypeLike | None = None,
) -> Array:
    """Read rows [start, start + count) of a vector file.

    Args:
        path: the suffix tells the format: .fbin .f16bin .u8bin .i8bin .ibin .bin .fvecs .bvecs
            .ivecs .npy .hdf5 .h5; an HDF5 dataset is chosen by ``path::name`` (default train;
            ``queries`` is test).
        start: first row.
        count: rows to read; None means all that follow.
        mmap: map the file instead of reading it, where its rows lie in one piece.
        dtype: value type, needed for .bin only.

    Returns:
        Shape (count, d), of the file's own dtype. A mapped array is read-only; that of a .fvecs,
        .bvecs or .ivecs file has gaps between its rows.

    Raises:
        UserError: The file is missing or is not what its header says, or lacks these rows.
    """
    layout = locate(path, dtype)
    return _rows(layout, *_range(layout, str(path), start, count), mmap)


def iter_chunks(
    path: Path | str,
    rows: int,
    *,
    start: int = 0,
    count: int | None = None,
    dtype: npt.DTypeLike | None = None,
) -> Iterator[Array]:
    """Read a vector file of any size, `rows` rows at a time.

    Yields:
        Arrays in memory of shape (rows, d), the last one perhaps shorter, of the file's dtype.
    """
    if rows < 1:
        raise UserError(f"chunks of {rows} rows; use 1 or more")
    layout = locate(path, dtype)
    start, count = _range(layout, str(path), start, count)

    def chunks() -> Iterator[Array]:
        for first in range(start, start + count, rows):
            yield _rows(layout, first, min(rows, start + count - first), mmap=False)

    return chunks()  # so that a damaged file is told of here, not at the first chunk


def _range(layout: Layout, path: str, start: int, count: int | None) -> tuple[int, int]:
    if not 0 <= start <= layout.rows:
        raise UserError(f"{path}: start {start}; use 0 to {layout.rows}, it has {layout.rows} rows")
    left = layout.rows - start
    if count is not None and not 0 <= count <= left:
        raise UserError(f"{path}: {count} rows from row {start}; it has {left} there, ask for less")
    return start, left if count is None else count


def _rows(layout: Layout, start: int, count: int, mmap: bool) -> Array:
    path, dim = layout.path, layout.dim
    if count == 0:
        return np.empty((0, dim), layout.dtype)
    if layout.dataset:
        h5py = need("h5py", "h5py", f"{path}: HDF5")
        with h5py.File(path, "r") as file:
            return np.asarray(file[layout.dataset][start : start + count])
    if layout.fortran:
        columns = np.memmap(path, layout.dtype, "r", layout.offset, (layout.rows, dim), "F")
        found = columns[start : start + count]
        return found if mmap else np.ascontiguousarray(found)
    offset = layout.offset + start * layout.row_bytes
    row = layout.dtype
    if layout.prefix:
        row = np.dtype([("dim", "<i4"), ("values", layout.dtype, (dim,))])
    items = count if layout.prefix else count * dim
    if mmap:
        flat: Array = np.memmap(path, row, "r", offset, (items,))
    else:
        flat = np.fromfile(path, row, items, offset=offset)
    if not layout.prefix:
        return flat.reshape(count, dim)
    _same_dim(flat["dim"], layout, start)
    return flat["values"] if mmap else np.ascontiguousarray(flat["values"])


def _same_dim(dims: Array, layout: Layout, start: int) -> None:
    other = np.flatnonzero(dims != layout.dim)
    if other.size:
        row = int(other[0])
        raise UserError(
            f"{layout.path}: row {start + row} has dimension {dims[row]}, row 0 has {layout.dim}; "
            "every row needs the same"
        )


LARGEST = 1e15
"""Of a value: squares of it, summed over any number of dimensions, are floats still."""


def check_finite(array: Array, what: str, *, first_row: int = 0) -> None:
    """Refuse NaN, infinity, and values whose squares would not be finite in float32.

    Args:
        array: shape (n, d) or (d,); integers always pass.
        what: names the array in the error.
        first_row: number of the array's first row in what it was cut from.
    """
    if array.dtype.kind != "f":
        return
    matrix = np.atleast_2d(array)
    step = max(1, _BLOCK_BYTES // max(1, matrix.shape[1] * matrix.itemsize))
    for first in range(0, len(matrix), step):
        block = matrix[first : first + step]
        # False of NaN as well. Rows of every insert and query come here: no copy of good ones.
        if not block.size or (float(block.max()) <= LARGEST and float(block.min()) >= -LARGEST):
            continue
        wrong = ~np.isfinite(block)
        finite = not wrong.any()
        if finite:
            wrong = np.abs(block) > LARGEST
        row, column = (int(v) for v in np.argwhere(wrong)[0])
        raise UserError(
            f"{what}: row {first_row + first + row} holds {block[row, column]} in column {column}; "
            + (
                f"distances need {LARGEST:.0e} or less: scale the vectors down"
                if finite
                else "remove the row or repair it"
            )
        )
