"""Labels of vectors, for filtered search: .spmat of the big-ann benchmarks, .npy, .txt, .jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import expect_size, head, replacing, size_of

SUFFIXES = (".spmat", ".npy", ".txt", ".jsonl")
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Labels:
    """Which labels each vector has, as a sparse matrix of rows (CSR).

    Attributes:
        indptr: int64, shape (n + 1,); vector i has the labels ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int32, shape (nnz,), ascending and distinct within a vector.
        count: labels are 0 to count - 1.
        names: what label j is called in the file, or () where labels are numbers there.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    count: int
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def of(self, vector: int) -> npt.NDArray[np.int32]:
        """Labels of one vector, int32, ascending."""
        return self.indices[self.indptr[vector] : self.indptr[vector + 1]]

    def having(self, label: int | str) -> npt.NDArray[np.int64]:
        """Vectors that have a label, given by number or name; int64, ascending."""
        if isinstance(label, str):
            if label not in self.names:
                raise UserError(f"no vector has the label {label!r}; {len(self.names)} are known")
            label = self.names.index(label)
        if not 0 <= label < self.count:
            raise UserError(f"label {label} does not exist; they are 0 to {self.count - 1}")
        places = np.flatnonzero(self.indices == label)
        return np.searchsorted(self.indptr, places, side="right").astype(np.int64) - 1


def read_labels(path: Path | str, *, vectors: int | None = None) -> Labels:
    """Read the labels of a set of vectors.

    Args:
        path: .spmat: int64 rows, columns, nnz; int64 indptr; int32 indices; float32 data, where an
            entry other than 0 is a label. .npy: integers of shape (n,), one label a vector; a
            negative one is none. .txt: a line a vector, labels separated by commas. .jsonl: a line
            a vector, ``["a", "b"]``, ``"a"``, ``7`` or ``null``. Where every label of a .txt or
            .jsonl is a number, it is itself; otherwise labels are numbered in the order of their
            names.
        vectors: number of vectors there must be.

    Raises:
        UserError: The file is missing, damaged, or labels another number of vectors.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown suffix {suffix!r}; rename it to {' '.join(SUFFIXES)}")
    size_of(path)
    read = {".spmat": _spmat, ".npy": _npy}.get(suffix, _lines)
    labels = read(path)
    if vectors is not None and len(labels) != vectors:
        raise UserError(
            f"{path}: labels {len(labels)} vectors, there are {vectors}; pair the files"
        )
    return labels


def _spmat(path: Path) -> Labels:
    rows, columns, nnz = (int(v) for v in np.frombuffer(head(path, 24), "<i8"))
    if rows < 1 or columns < 1 or nnz < 0 or columns > _INT32_MAX:
        raise UserError(f"{path}: {rows} x {columns} with {nnz} entries; the header is damaged")
    expected = 24 + 8 * (rows + 1) + 8 * nnz
    expect_size(path, expected, f"{rows} rows with {nnz} entries")
    indptr = np.fromfile(path, "<i8", rows + 1, offset=24)
    indices = np.fromfile(path, "<i4", nnz, offset=32 + 8 * rows)
    data = np.fromfile(path, "<f4", nnz, offset=32 + 8 * rows + 4 * nnz)
    wrong = np.flatnonzero(np.diff(indptr) < 0)
    if indptr[0] != 0 or indptr[-1] != nnz or wrong.size:
        row = int(wrong[0]) if wrong.size else (0 if indptr[0] else rows - 1)
        raise UserError(
            f"{path}: indptr is not ascending from 0 to {nnz} at row {row}; it is damaged"
        )
    wrong = np.flatnonzero((indices < 0) | (indices >= columns))
    if wrong.size:
        row = int(np.searchsorted(indptr, wrong[0], side="right")) - 1
        label = int(indices[wrong[0]])
        raise UserError(
            f"{path}: row {row} has label {label}; {columns} columns allow 0 to {columns - 1}"
        )
    rows_of = np.repeat(np.arange(rows, dtype=np.int64), np.diff(indptr))
    return _csr(rows_of[data != 0], indices[data != 0], rows, columns)


def _csr(
    rows_of: npt.NDArray[np.int64],
    labels: npt.NDArray[Any],
    rows: int,
    count: int,
    names: tuple[str, ...] = (),
) -> Labels:
    order = np.lexsort((labels, rows_of))
    rows_of, labels = rows_of[order], labels[order].astype(np.int32)
    again = np.zeros(len(labels), bool)
    again[1:] = (rows_of[1:] == rows_of[:-1]) & (labels[1:] == labels[:-1])
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(rows_of[~again], minlength=rows), out=indptr[1:])
    return Labels(indptr, labels[~again], count, names)


def _npy(path: Path) -> Labels:
    try:
        labels = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a .npy file ({str(error).splitlines()[0]})") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(
            f"{path}: {labels.dtype} of shape {labels.shape}; one integer for each vector expected"
        )
    top = int(labels.max())
    if top > _INT32_MAX - 1:
        raise UserError(f"{path}: label {top} is too large; number the labels from 0")
    rows_of = np.flatnonzero(labels >= 0)
    return _csr(rows_of, labels[rows_of], len(labels), max(0, top) + 1)


def _lines(path: Path) -> Labels:
    rows_of: list[int] = []
    texts: list[str] = []
    rows = 0
    parse = _json if path.suffix.lower() == ".jsonl" else _commas
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                for label in parse(line.strip(), f"{path}: line {number}"):
                    rows_of.append(rows)
                    texts.append(label)
                rows += 1
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); store it as UTF-8") from error
    owners = np.array(rows_of, np.int64)
    distinct = set(texts)
    numeric = all(t.isascii() and t.isdigit() and str(int(t)) == t for t in distinct)
    if numeric and all(int(t) < _INT32_MAX for t in distinct):
        numbers = np.array([int(t) for t in texts], np.int64)
        return _csr(owners, numbers, rows, int(numbers.max(initial=-1)) + 1)
    names = tuple(sorted(distinct))
    place = {name: j for j, name in enumerate(names)}
    return _csr(owners, np.array([place[t] for t in texts]), rows, len(names), names)


def _commas(line: str, where: str) -> Iterable[str]:
    if not line:
        return []
    labels = [label.strip() for label in line.split(",")]
    if "" in labels:
        raise UserError(f"{where}: an empty label; write a,b without a comma too many")
    return labels


def _json(line: str, where: str) -> Iterator[str]:
    try:
        value = json.loads(line) if line else None
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    for label in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise UserError(f"{where}: label {label!r}; use a name, a number or a list of them")
        yield str(label)


def write_spmat(path: Path | str, labels: Labels) -> None:
    """Write labels as a .spmat whose data are ones; names are not kept."""
    path = Path(path)
    header = np.array([len(labels), labels.count, len(labels.indices)], "<i8")
    with replacing(path) as temporary, temporary.open("xb") as out:
        for array in (header, labels.indptr, labels.indices, np.ones(len(labels.indices), "<f4")):
            out.write(np.ascontiguousarray(array).data)
