"""What users give, checked: one clear line for whatever cannot be used."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
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
LAYOUTS = ("auto", "packed", "selective")
METHODS = ("automatic", "walk", "scan")
MOST_THREADS = 256
LONGEST_LIST = 2**24


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def byte_count(given: int | str | None, what: str) -> int | None:
    """Read `64MiB`, `2GB` or a number as bytes; None stays None."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", str(given).strip().lower())
    if not found or float(found[1]) <= 0:
        raise UserError(f"{what} {given!r}: write it like 64MiB or 2GB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def whole(what: str, given: Any, low: int, high: int) -> int:
    """Give a whole number back that is within bounds."""
    try:
        number = operator.index(given)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise UserError(f"{what} {given!r}: use a whole number from {low} to {high}")
    return number


def known(what: str, value: Any, known: tuple[str, ...]) -> str:
    """Give a word back that is among those known."""
    if value not in known:
        raise UserError(f"{what} {value!r}: use {', '.join(known)}")
    return str(value)


def known_options(options: Iterable[str], names: Iterable[str]) -> None:
    """Refuse the first option that has none of these names."""
    there = sorted(names)
    for name in options:
        if name not in there:
            raise UserError(f"option {name!r} is unknown; there are {', '.join(there)}")


def id_array(ids: npt.ArrayLike) -> Ids:
    """Ids as the engine takes them: (n,) uint64."""
    given = np.atleast_1d(np.asarray(ids))
    if given.dtype.kind not in "iu" and given.size:
        raise UserError(f"ids of type {given.dtype}: use whole numbers, 0 to 2**64 - 2")
    if given.ndim != 1:
        raise UserError(f"ids of shape {given.shape}: give (n,)")
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


SHORTEST = 1e-15  # length of a vector whose cosine is asked for: its square is a float still


def check_lengths(vectors: Array, what: str, first: int = 0) -> None:
    """Refuse rows of no length, or next to none, which have no cosine."""
    zero = ~np.any(vectors, axis=1)
    if zero.any():
        raise UserError(
            f"{what}: row {first + int(np.argmax(zero))} is zero, which has no cosine: leave it out"
        )
    if vectors.dtype.kind != "f":
        return
    short = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64) < SHORTEST**2
    if short.any():
        raise UserError(
            f"{what}: row {first + int(np.argmax(short))} is shorter than {SHORTEST:.0e}, too "
            "short for a cosine: scale the vectors up"
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
            with np.errstate(over="ignore"):  # which is what is looked for
                rows = rows.astype(wanted)
            check_finite(rows, f"vectors as {dtype}", first_row=first)
        if metric == "cosine":
            check_lengths(rows, "vectors", first)
    return np.ascontiguousarray(vectors, dtype=wanted)


def query_rows(queries: npt.ArrayLike, dim: int, metric: str) -> tuple[Floats, bool]:
    """Queries as the engine takes them, (n, d) float32, and whether there was one, (d,)."""
    given = _numbers(queries, "queries", np.float32)
    single = given.ndim == 1
    rows = np.ascontiguousarray(given[None] if single else given)
    check_rows(rows, dim, "queries")
    if metric == "cosine":
        check_lengths(rows, "queries")
    return rows, single


def check_search(k: int, L: int | None, threads: int) -> None:
    """Refuse a number of neighbours, a search list or threads that cannot be used."""
    whole("k", k, 1, LONGEST_LIST)
    whole("threads", threads, 1, MOST_THREADS)
    if L is not None and whole("L", L, 1, LONGEST_LIST) < k:
        raise UserError(f"L {L}: use {k}, which is k, or more")


def check_there(k: int, there: int, where: str) -> None:
    """Refuse more neighbours than there are vectors."""
    if there == 0:
        raise UserError(f"k {k}: the {where} is empty; insert vectors first")
    if k > there:
        raise UserError(f"k {k}: the {where} holds {there} vectors; use {there} or less")


def _numbers(given: npt.ArrayLike, what: str, dtype: Any = None) -> Array:
    try:
        if np.iscomplexobj(given):
            raise UserError(f"{what} of complex numbers: use real ones")
        return np.asarray(given, dtype=dtype)
    except (TypeError, ValueError):
        raise UserError(f"{what}: give rows of numbers, all of one length") from None


def default_list(k: int) -> int:
    """The search list where the user names none."""
    return max(2 * k, 40)


def changes(
    ids: npt.ArrayLike, vectors: npt.ArrayLike, dtype: str, metric: str, dim: int
) -> tuple[Ids, Array]:
    """What an insert is given, as it is stored: ids (n,) and vectors (n, d), which may be (d,)."""
    given = _numbers(vectors, "vectors")
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
