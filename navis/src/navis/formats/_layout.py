"""Where the rows of a vector file lie: every header is parsed and checked here.

| suffix | header | row |
|---|---|---|
| .fbin .f16bin .u8bin .i8bin .ibin .bin | int32 n, int32 d | d values |
| .fvecs .bvecs .ivecs | none | int32 d, d values |
| .npy | numpy's own | d values |
| .hdf5 .h5 | HDF5; the dataset is named by `path::name` | d values |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import expect_size, head, need, part, size_of

BIN = {".fbin": "f4", ".f16bin": "f2", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "i4"}
VECS = {".fvecs": "f4", ".bvecs": "u1", ".ivecs": "i4"}
HDF5 = (".hdf5", ".h5")
SUFFIXES = (*BIN, ".bin", *VECS, ".npy", *HDF5)
# Vectors are the first four; the others are ids, which share the formats.
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "uint32", "int64")
HDF5_NAMES = {"": "train", "base": "train", "queries": "test"}


@dataclass(frozen=True)
class Layout:
    """One matrix in a file: `rows` rows of `dim` values of `dtype`.

    Attributes:
        offset: bytes before the first row.
        prefix: bytes before the values of each row.
        fortran: the values lie column by column (a .npy may say so).
        dataset: of an HDF5 file whose rows do not lie in one piece; "" when they do.
    """

    path: Path
    rows: int
    dim: int
    dtype: np.dtype[Any]
    offset: int = 0
    prefix: int = 0
    fortran: bool = False
    dataset: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.prefix + self.dim * self.dtype.itemsize


def split(path: Path | str) -> tuple[Path, str]:
    """File and dataset of `path::name`; the dataset is "" where none is named."""
    file, mark, name = str(path).rpartition("::")
    return (Path(file), name) if mark else (Path(path), "")


def suffix_of(path: Path | str) -> str:
    """The suffix that tells the format; an unknown one is a UserError that lists them all."""
    file, name = split(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        known = " ".join(SUFFIXES)
        raise UserError(f"{file}: unknown suffix {suffix!r}; rename it to one of {known}")
    if name and suffix not in HDF5:
        raise UserError(f"{path}: only .hdf5 and .h5 hold datasets; leave out '::{name}'")
    return suffix


def dtype_of(suffix: str, path: Path | str, dtype: npt.DTypeLike | None) -> np.dtype[Any] | None:
    """The value type that suffix and argument agree on; None where the file itself tells."""
    given = None if dtype is None else known_dtype(np.dtype(dtype), str(path))
    told = (
        np.dtype(BIN[suffix] if suffix in BIN else VECS[suffix]) if suffix in BIN | VECS else None
    )
    if suffix == ".bin" and given is None:
        raise UserError(f"{path}: .bin does not tell the value type; give dtype= or use .fbin")
    if told is not None and given is not None and told != given:
        raise UserError(f"{path}: {suffix} holds {told}, not {given}; leave out dtype=")
    return told if told is not None else given


def known_dtype(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """The type itself, native; one that is not among ours is a UserError."""
    if dtype.name not in DTYPES:
        fix = "astype(np.float32)" if dtype.kind == "f" else f"use one of {', '.join(DTYPES)}"
        raise UserError(f"{what}: values are {dtype}, which no vector may be; {fix}")
    if not dtype.isnative:
        raise UserError(f"{what}: values are big-endian ({dtype}); store them little-endian")
    return dtype


def locate(path: Path | str, dtype: npt.DTypeLike | None = None) -> Layout:
    """Parse the header of a vector file and check it against the file's size.

    Raises:
        UserError: No such file, an unknown suffix, or content that is not what it says.
        EnvironmentLack: HDF5 without h5py.
    """
    suffix = suffix_of(path)
    wanted = dtype_of(suffix, path, dtype)
    file, name = split(path)
    if suffix in HDF5:
        layout = _hdf5(file, name)
    elif suffix == ".npy":
        layout = _npy(file)
    elif suffix in VECS:
        assert wanted is not None
        layout = _vecs(file, wanted)
    else:
        assert wanted is not None
        layout = _bin(file, wanted)
    if wanted is not None and layout.dtype != wanted:
        raise UserError(f"{path}: holds {layout.dtype}, not {wanted}; leave out dtype=")
    return layout


def _positive(path: Path, rows: int, dim: int) -> None:
    if dim <= 0:
        raise UserError(f"{path}: dimension {dim} is not positive; the header is damaged")
    if rows < 0:
        raise UserError(f"{path}: {rows} rows; the header is damaged")
    if rows == 0:
        raise UserError(f"{path}: empty (0 rows of {dim}); write at least one")


def _bin(path: Path, dtype: np.dtype[Any]) -> Layout:
    rows, dim = (int(v) for v in np.frombuffer(head(path, 8), "<i4"))
    _positive(path, rows, dim)
    layout = Layout(path, rows, dim, dtype, offset=8)
    expect_size(path, 8 + rows * layout.row_bytes, f"{rows} rows of {dim} {dtype}")
    return layout


def _vecs(path: Path, dtype: np.dtype[Any]) -> Layout:
    dim = int(np.frombuffer(head(path, 4), "<i4")[0])
    _positive(path, 1, dim)
    layout = Layout(path, 0, dim, dtype, prefix=4)
    rows, rest = divmod(size_of(path), layout.row_bytes)
    if rest:
        expected = (rows + 1) * layout.row_bytes
        raise UserError(
            f"{path}: truncated, or rows of several dimensions: {size_of(path)} bytes, {expected} "
            f"expected for {rows + 1} rows of {dim} {dtype}; copy it again"
        )
    return replace(layout, rows=rows)


def _npy(path: Path) -> Layout:
    size_of(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a .npy file ({reason}); save it by numpy.save") from error
    if len(shape) != 2:
        raise UserError(f"{path}: shape {shape}; two dimensions (rows, d) expected")
    rows, dim = shape
    _positive(path, rows, dim)
    known_dtype(dtype, str(path))
    layout = Layout(path, rows, dim, dtype, offset=offset, fortran=fortran)
    expect_size(path, offset + rows * layout.row_bytes, f"{rows} rows of {dim} {dtype}")
    return layout


def _hdf5(path: Path, name: str) -> Layout:
    h5py = need("h5py", "h5py", f"{path}: HDF5")
    size_of(path)
    if part(path, 0, 8) != b"\x89HDF\r\n\x1a\n":
        raise UserError(f"{path}: not an HDF5 file; check the suffix")
    try:
        with h5py.File(path, "r") as file:
            chosen = name if name in file and name else HDF5_NAMES.get(name, name)
            found = file.get(chosen)
            if not isinstance(found, h5py.Dataset):
                names = " ".join(k for k in file if isinstance(file[k], h5py.Dataset)) or "none"
                raise UserError(
                    f"{path}: no dataset {chosen!r}; choose one by path::name, of: {names}"
                )
            shape, dtype = found.shape, found.dtype
            offset = None if file.userblock_size else found.id.get_offset()
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: damaged HDF5 ({error}); copy it again") from error
    if shape is None or len(shape) != 2:
        raise UserError(f"{path}::{chosen}: shape {shape}; two dimensions (rows, d) expected")
    _positive(path, *shape)
    known_dtype(dtype, f"{path}::{chosen}")
    layout = Layout(path, int(shape[0]), int(shape[1]), dtype)
    if offset is None:  # compressed, in chunks, or in another file
        return replace(layout, dataset=chosen)
    return replace(layout, offset=offset)
