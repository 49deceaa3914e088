"""Building within a memory budget: whole, in overlapping clusters, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis import quantizer

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_SMALLEST = 256  # vectors of a cluster below which its graph says little


@dataclass(frozen=True)
class Plan:
    """How to build.

    Attributes:
        sample: Rows to train the quantizer on.
        columns: Dimensions of them held at once.
        largest: Vectors of a cluster at most; 0 builds the whole set at once.
    """

    sample: int
    columns: int
    largest: int = 0


def plan(n: int, dim: int, degree: int, code_bytes: int, budget: int | None) -> Plan:
    """Plan the construction of n vectors of `dim` floats in working space.

    Raises:
        UserError: The budget is too small for codes and graphs; names one that is enough.
    """
    row = 4 * dim
    whole = n * (row + code_bytes + 4 * degree * 4 + 64)
    if budget is None or whole < 0.8 * budget:
        return Plan(2**15, dim)
    # Held all the while: codes, the clusters' graphs (every vector is in two), who is where.
    held = n * (code_bytes + 2 * 4 * degree + 24)
    per_row = row + 4 * degree * 2 + 64
    largest = int((0.75 * budget - held) / per_row)
    # Merging holds the merged graph as well, but no vectors.
    if largest < _SMALLEST or held + n * 4 * degree > 0.9 * budget:
        needed = max((held + _SMALLEST * per_row) / 0.75, (held + n * 4 * degree) / 0.9)
        raise UserError(
            f"a memory budget of {budget >> 20} MiB is too small to build {n} vectors of {dim} "
            f"dimensions with degree {degree}: give {int(needed) // 2**20 + 1} MiB or more"
        )
    sample = min(n, 2**14)  # fewer leave the quantizer's 256 centroids too few rows each
    columns = max(1, int(0.15 * budget / (4 * sample)))
    return Plan(sample, columns, largest)


def centres(sample: Floats, n: int, largest: int, seed: int) -> Floats:
    """Find cluster centres (count, d) such that n vectors, each in two clusters, find room.

    Splits by faiss k-means whatever is too large by its share of the sample, so that no cluster of
    the data is cut because one of ours is full.
    """
    import faiss

    share = n / len(sample)
    queue, found = [np.arange(len(sample))], []
    while queue:
        rows = queue.pop()
        if 2 * share * len(rows) <= 0.6 * largest or len(rows) < 8:
            found.append(sample[rows].mean(axis=0))
            continue
        count = min(len(rows) // 2, max(2, int(2 * share * len(rows) / (0.5 * largest))))
        means = faiss.Kmeans(
            sample.shape[1], count, niter=8, seed=seed + 1, min_points_per_centroid=1
        )
        means.train(sample[rows])
        nearest = means.index.search(sample[rows], 1)[1][:, 0]
        parts = [rows[nearest == c] for c in range(count)]
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:  # all alike: any cut will do
            parts = list(np.array_split(rows, 2))
        queue += parts
    return np.ascontiguousarray(found, dtype=np.float32)


def place(array: Array) -> tuple[str, int]:
    """Give file and byte offset of a read-only mapped array's rows, or an empty name."""
    root: Any = array
    while isinstance(root, np.memmap) and isinstance(root.base, np.memmap):
        root = root.base
    plain = isinstance(array, np.memmap) and array.mode == "r" and array.flags.c_contiguous
    if not plain or root.filename is None:
        return "", 0
    start = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return str(root.filename), int(root.offset) + int(start)


def gather(array: Array, rows: npt.NDArray[np.int64]) -> Array:
    """Copy some rows of an array; those of a mapped file are read, which leaves no pages behind."""
    name, offset = place(array)
    if not name:
        return np.asarray(array[rows])
    out = np.empty((len(rows), array.shape[1]), array.dtype)
    size = array.shape[1] * array.itemsize
    with open(name, "rb", buffering=0) as file:
        for row, into in zip(rows.tolist(), out, strict=True):
            file.seek(offset + row * size)
            file.readinto(into.view(np.uint8).data)
    return out


def pieces(array: Array, rows: int = 2048) -> Iterator[tuple[int, Array]]:
    """Give the array in pieces with their first rows."""
    for first in range(0, len(array), rows):
        count = min(rows, len(array) - first)
        yield first, gather(array, np.arange(first, first + count))


@dataclass(frozen=True)
class Build:
    """What `Index.build` was asked for, in the engine's terms.

    Attributes:
        options: `_core.IndexOptions`.
        how: `_core.BuildOptions`.
        metric: Its name.
        radius: Bound of vector lengths for inner product.
        code_bytes: Of the quantizer; by the dimension if None.
        memory_budget: Bytes.
    """

    options: Any
    how: Any
    metric: str
    radius: float
    code_bytes: int | None
    memory_budget: int | None


def write(
    path: Path,
    given: Array,
    vectors: Array,
    ids: npt.NDArray[np.uint64],
    attributes: tuple[Any, ...],
    build: Build,
    progress: Callable[[int, int], bool] | None,
) -> None:
    """Train, link and write an index's files into an empty folder.

    `vectors` are `given`, a mapped file perhaps, as they are stored.

    Raises:
        UserError: The memory budget is too small.
    """
    from navis import _core

    (n, dim), seed, threads = vectors.shape, build.how.seed, build.how.threads
    space = dim + (build.metric == "inner_product")
    size = build.code_bytes or quantizer.fitting_bytes(space, n, build.memory_budget)
    planned = plan(n, space, build.how.degree, size, build.memory_budget)
    rows = quantizer.some(np.arange(n), planned.sample, seed)

    def columns(low: int, high: int) -> Floats:
        """Some dimensions of the sample, in working space."""
        out = np.empty((len(rows), high - low), np.float32)
        for first in range(0, len(rows), 1024):
            part = gather(given, rows[first : first + 1024])
            working = quantizer.working_space(part, build.metric, build.radius)
            out[first : first + 1024] = working[:, low:high]
        return out

    books = quantizer.train_in_parts(columns, space, size, planned.columns, seed, threads)
    means = None
    if planned.largest:
        some = rows[:: -(-space // planned.columns)]  # as much memory as the columns had
        part = quantizer.working_space(gather(given, some), build.metric, build.radius)
        means = centres(part, n, planned.largest, seed)
        del part
    file, offset = place(given) if vectors.dtype == given.dtype else ("", 0)
    _core.build(
        path,
        build.options,
        vectors,
        ids,
        books,
        build.how,
        progress,
        means,
        planned.largest,
        file,
        offset,
        *attributes,
    )
