"""Product quantization: how many bytes, and training (by faiss)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

Floats = npt.NDArray[np.float32]

_TRAIN_ROWS = 50 * 256  # faiss asks for 39 or more rows per centroid


def default_bytes(dim: int) -> int:
    """Give the bytes of a code: a quarter of a low dimension, a fifth of a middle one, at most 256.

    With fewer, PQ orders candidates so poorly that re-ranking has to read nearly all of them.
    """
    return _even(dim, dim // 4 if dim <= 256 else min(256, max(64, dim // 5)))


def _even(dim: int, wanted: int) -> int:
    """Give about so many that every byte stands for some dimensions, and at most 256.

    Of 32 bytes for 129 dimensions, each part 5 wide, 6 would stand for none.
    """
    wanted = max(1, min(wanted, dim))
    width = max(1, round(dim / wanted))
    if -(-dim // width) > 256:
        width += 1
    return -(-dim // width)


def fitting_bytes(dim: int, n: int, memory_budget: int | None) -> int:
    """Give the default bytes of a code for n vectors in a memory budget.

    Where codes would take nearly half of it, a sixth of the dimension has to do: the cache of edge
    lists is worth more then than better codes.
    """
    bytes_ = default_bytes(dim)
    if memory_budget is None or n * bytes_ <= 0.45 * memory_budget:
        return bytes_
    return _even(dim, min(bytes_, max(64, dim // 6)))


def working_space(vectors: npt.NDArray[np.generic], metric: str, radius: float) -> Floats:
    """Map vectors (n, d) into the engine's working space, float32 (n, d).

    For inner product the result is (n, d + 1).

    The same map as `cpp/working_space.hpp`: cosine scales to length 1; inner product appends the
    coordinate that gives every vector the length `radius`.
    """
    out: Floats = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric == "cosine":
        length = np.linalg.norm(out, axis=1, keepdims=True)
        out = (out / np.where(length > 0, length, 1)).astype(np.float32)
    elif metric == "inner_product":
        rest = np.maximum(radius * radius - np.einsum("nd,nd->n", out, out), 0)
        out = np.concatenate([out, np.sqrt(rest)[:, None]], axis=1)
    return out.astype(np.float32, copy=False)


def some(rows: npt.NDArray[Any], most: int, seed: int) -> npt.NDArray[Any]:
    """Give all rows, or `most` of them, drawn, in their order."""
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return np.asarray(rows[np.sort(chosen)])


def train_in_parts(
    columns: Callable[[int, int], Floats],
    dim: int,
    subspaces: int,
    at_once: int,
    seed: int = 0,
    threads: int = 1,
) -> Floats:
    """Train as `train` does, holding only some dimensions of the sample at a time.

    `columns(low, high)` gives those dimensions of all rows; about `at_once` are asked for.
    """
    _check(subspaces, dim)
    width = -(-dim // subspaces)
    used = -(-dim // width)  # the others stand for no dimension
    step = max(1, at_once // width)
    books = []
    for first in range(0, used, step):
        last = min(first + step, used)
        part = columns(first * width, min(last * width, dim))
        books.append(train(part, last - first, seed, threads, width))
    books.append(np.zeros((subspaces - used, 256, width), np.float32))
    return np.concatenate(books)


def train(
    sample: Floats, subspaces: int, seed: int = 0, threads: int = 1, width: int = 0
) -> Floats:
    """Train codebooks (subspaces, 256, width) on rows of working space.

    The width is d / subspaces, rounded up.

    With fewer than 256 rows the rows themselves, repeated, are the centroids.

    Raises:
        UserError: There are more subspaces than dimensions, or none.
    """
    import faiss

    rows, dim = sample.shape
    _check(subspaces, dim)
    width = width or -(-dim // subspaces)
    padded = sample
    if subspaces * width != dim or rows == 0:
        padded = np.zeros((max(rows, 1), subspaces * width), dtype=np.float32)
        padded[:rows, :dim] = sample
    if rows <= 256:
        repeated = padded[np.arange(256) % len(padded)]
        return np.ascontiguousarray(
            repeated.reshape(256, subspaces, width).transpose(1, 0, 2), dtype=np.float32
        )
    padded = some(padded, _TRAIN_ROWS, seed)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        pq = faiss.ProductQuantizer(subspaces * width, subspaces, 8)
        pq.cp.niter, pq.cp.seed, pq.cp.verbose = 12, seed + 1, False
        pq.cp.min_points_per_centroid = 1
        pq.train(padded)
    finally:
        faiss.omp_set_num_threads(before)
    centroids = faiss.vector_to_array(pq.centroids).reshape(subspaces, 256, width)
    # The padding of the last subspace must be zero, as the engine's is.
    real = dim - (subspaces - 1) * width
    centroids[-1, :, real:] = 0
    return np.ascontiguousarray(centroids, dtype=np.float32)


def _check(subspaces: int, dim: int) -> None:
    if not 1 <= subspaces <= dim:
        raise UserError(f"{subspaces} bytes per code: use 1 to {dim}, the dimension")
