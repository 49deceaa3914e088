"""What users give, checked: one clear line for whatever cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis import building
from navis.formats import check_finite

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

METRICS = ("l2", "inner_product", "cosine")
DTYPES = ("float32", "float16", "uint8", "int8")
METHODS = ("automatic", "walk", "scan")


def known(what: str, value: Any, known: tuple[str, ...]) -> str:
    """Give a word back that is among those known."""
    if value not in known:
        raise UserError(f"{what} {value!r}: use {', '.join(known)}")
    return str(value)


def id_array(ids: npt.ArrayLike) -> Ids:
    """Ids as the engine takes them: (n,) uint64."""
    given = np.atleast_1d(np.asarray(ids))
    if given.dtype.kind not in "iu" and given.size:
        raise UserError(f"ids of type {given.dtype}: use whole numbers")
    if given.dtype.kind == "i" and given.size and given.min() < 0:
        raise UserError(f"id {given.min()}: use 0 or more")
    numbers = np.ascontiguousarray(given, dtype=np.uint64).reshape(-1)
    if numbers.size and numbers.max() == np.iinfo(np.uint64).max:
        raise UserError("id 2**64 - 1 stands for none; use a smaller one")
    return numbers


def unique_ids(ids: npt.ArrayLike, n: int) -> Ids:
    """The same of n ids without duplicates."""
    numbers = id_array(ids)
    if len(numbers) != n:
        raise UserError(f"{len(numbers)} ids for {n} vectors: give one each")
    values, counts = np.unique(numbers, return_counts=True)
    if len(values) < n:
        raise UserError(f"id {values[counts > 1][0]} occurs twice in this call")
    return numbers


def check_rows(vectors: Array, dim: int, what: str) -> None:
    """Refuse rows of another dimension, or with NaN or infinity in them."""
    if vectors.ndim != 2:
        raise UserError(f"{what} of shape {vectors.shape}: give (n, {dim})")
    if vectors.shape[1] != dim:
        raise UserError(
            f"{what} have {vectors.shape[1]} dimensions, the index has {dim}: they must be equal"
        )
    check_finite(vectors, what)


def check_lengths(vectors: Array, what: str, first: int = 0) -> None:
    """Refuse rows of no length, which have no cosine."""
    zero = ~np.any(vectors, axis=1)
    if zero.any():
        raise UserError(
            f"{what}: row {first + int(np.argmax(zero))} is zero, which has no cosine: leave it out"
        )


def checked_vectors(vectors: Array, dtype: str, metric: str, dim: int) -> Array:
    """Vectors as they are stored; what cannot be stored exactly is refused, with its row."""
    if vectors.ndim == 2 and vectors.shape[1] == 0:
        raise UserError("vectors have 0 dimensions: give at least 1")
    if vectors.dtype.kind not in "fiu":
        raise UserError(f"vectors of type {vectors.dtype}: use numbers")
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        check_rows(vectors, dim, "vectors")
    wanted = np.dtype(dtype)
    for first, rows in building.pieces(vectors):
        check_finite(rows, "vectors", first_row=first)
        if wanted.kind in "iu" and rows.dtype != wanted:
            bounds = np.iinfo(wanted)
            whole = rows.dtype.kind in "iu" or bool(np.all(rows == np.rint(rows)))
            if rows.min() < bounds.min or rows.max() > bounds.max or not whole:
                raise UserError(f"vectors do not fit in {dtype}: store them as float32")
        if rows.dtype != wanted:
            check_finite(rows.astype(wanted), f"vectors as {dtype}", first_row=first)
        if metric == "cosine":
            check_lengths(rows, "vectors", first)
    return np.ascontiguousarray(vectors, dtype=wanted)


def query_rows(queries: npt.ArrayLike, dim: int, metric: str) -> tuple[Floats, bool]:
    """Queries as the engine takes them, (n, d) float32, and whether there was one, (d,)."""
    given = np.asarray(queries, dtype=np.float32)
    single = given.ndim == 1
    rows = np.ascontiguousarray(given[None] if single else given)
    check_rows(rows, dim, "queries")
    if metric == "cosine":
        check_lengths(rows, "queries")
    return rows, single


def check_k(k: int, L: int | None) -> None:
    """Refuse a number of neighbours, or a search list, that is too small."""
    if k < 1:
        raise UserError(f"k {k}: use 1 or more")
    if L is not None and L < k:
        raise UserError(f"L {L}: use {k}, which is k, or more")


def default_list(k: int) -> int:
    """The search list where the user names none."""
    return max(2 * k, 40)


def changes(
    ids: npt.ArrayLike, vectors: npt.ArrayLike, dtype: str, metric: str, dim: int
) -> tuple[Ids, Array]:
    """What an insert is given, as it is stored: ids (n,) and vectors (n, d), which may be (d,)."""
    given = np.asarray(vectors)
    given = checked_vectors(given[None] if given.ndim == 1 else given, dtype, metric, dim)
    return unique_ids(ids, len(given)), given


def radius_of(vectors: Array, metric: str, radius: float | None) -> float:
    """The bound of vector lengths that inner products need; 0 for other metrics."""
    if metric != "inner_product":
        return 0.0
    if radius is None:
        if len(vectors) == 0:
            raise UserError("an empty inner_product index needs radius=, a bound of vector lengths")
        squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
        radius = 1.1 * float(np.sqrt(squares.max())) or 1.0
    if not radius > 0:
        raise UserError(f"radius {radius}: use more than 0")
    return radius


def fresh(path: Path) -> None:
    """Make the folder of a new index; one that holds something is a UserError."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty: name a new folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror})") from error
