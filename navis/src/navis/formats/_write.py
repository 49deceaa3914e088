"""Writes vector files, whole or not at all; see `navis.formats.vectors` for the formats."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import need, replacing
from navis.formats._layout import (
    BIN,
    HDF5,
    HDF5_NAMES,
    VECS,
    known_dtype,
    split,
    suffix_of,
)

Array = npt.NDArray[Any]
_BLOCK_BYTES = 32 << 20
_INT32_MAX = 2**31 - 1


def write_vectors(path: Path | str, array: npt.ArrayLike) -> None:
    """Write a matrix, whole or not at all, in the format that the suffix tells.

    Args:
        path: see `read_vectors`; ``path::name`` adds a dataset to an HDF5 file or replaces it.
        array: shape (n, d), n and d at least 1; its dtype must be the one the suffix tells.
    """
    matrix = np.asanyarray(array)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UserError(f"{path}: cannot write shape {matrix.shape}; give (rows, d), 1 or more")
    step = max(1, _BLOCK_BYTES // (matrix.shape[1] * matrix.itemsize))
    blocks = (matrix[first : first + step] for first in range(0, len(matrix), step))
    write_chunks(path, blocks, len(matrix))


def write_chunks(path: Path | str, chunks: Iterable[Array], rows: int) -> None:
    """Write a matrix that arrives in chunks; see `write_vectors`.

    Args:
        path: where to.
        chunks: arrays of shape (any, d), all of one d and one dtype.
        rows: how many rows they have together.
    """
    suffix = suffix_of(path)
    file, name = split(path)
    later = iter(chunks)
    first = next(later, None)
    if first is None or first.ndim != 2 or first.shape[1] == 0 or rows < 1:
        raise UserError(f"{path}: no rows to write; give at least one")
    dtype, dim = known_dtype(first.dtype, str(path)), first.shape[1]
    told = np.dtype((BIN | VECS).get(suffix, dtype))
    if told != dtype:
        raise UserError(f"{path}: {suffix} holds {told}, not {dtype}; use astype(np.{told})")
    if suffix in (*BIN, ".bin") and rows > _INT32_MAX:
        raise UserError(f"{path}: {rows} rows do not fit its 32-bit header; use .npy")
    checked = _checked(itertools.chain([first], later), str(path), rows, dim, dtype)
    with replacing(file) as temporary:
        if suffix in HDF5:
            _write_hdf5(file, temporary, HDF5_NAMES.get(name, name), checked, (rows, dim), dtype)
            return
        with temporary.open("xb") as out:
            _write_header(out, suffix, (rows, dim), dtype)
            for chunk in checked:
                if suffix in VECS:
                    record = np.empty(len(chunk), [("dim", "<i4"), ("values", dtype, (dim,))])
                    record["dim"], record["values"] = dim, chunk
                    chunk = record
                out.write(np.ascontiguousarray(chunk).data)


def _checked(
    chunks: Iterator[Array], path: str, rows: int, dim: int, dtype: np.dtype[Any]
) -> Iterator[Array]:
    seen = 0
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != dim or chunk.dtype != dtype:
            shape, other = chunk.shape, chunk.dtype
            raise UserError(f"{path}: a chunk is {other} {shape}; the first is {dtype}, d {dim}")
        seen += len(chunk)
        yield chunk
    if seen != rows:
        raise UserError(f"{path}: the chunks have {seen} rows; {rows} were announced")


def _write_header(out: BinaryIO, suffix: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    if suffix == ".npy":
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
    elif suffix not in VECS:
        out.write(np.array(shape, "<i4").tobytes())


def _write_hdf5(
    file: Path,
    temporary: Path,
    name: str,
    chunks: Iterator[Array],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
) -> None:
    h5py = need("h5py", "h5py", f"{file}: HDF5")
    if file.exists():
        shutil.copyfile(file, temporary)
    with h5py.File(temporary, "a") as out:
        if name in out:
            del out[name]
        dataset = out.create_dataset(name, shape, dtype)  # in one piece, so that it can be mapped
        start = 0
        for chunk in chunks:
            dataset[start : start + len(chunk)] = chunk
            start += len(chunk)
