"""Exact nearest neighbours in bounded memory, whatever the BLAS, its threads or the chunk.

A first pass ranks by float32 matrix products and keeps a few more than k candidates; float64 sums
then tell their distances. Where the bound of the first pass's rounding error does not prove that
no other vector can be among the k, a second pass looks at all that could be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError
from shorthaul.progress import bar

from navis.formats.truth import NO_ID, Ids, Truth
from navis.formats.vectors import check_finite

Array = npt.NDArray[Any]
METRICS = ("l2", "inner_product", "cosine")
_DTYPES = ("float32", "float16", "uint8", "int8")
_UNIT = 2.0**-24  # of float32's rounding
_GEMM_CELLS, _BLOCK_BYTES = 1 << 23, 64 << 20  # of scores, and of vectors in float64
_SHORTEST, _LONGEST = 1e-30, 1e17  # squares of longer vectors come near float32's end


def exact(
    base: Array,
    queries: Array,
    k: int,
    metric: str = "l2",
    *,
    exclude: npt.ArrayLike | None = None,
    chunk: int = 8192,
) -> Truth:
    """Find the k exact nearest neighbours of every query, nearest first.

    Args:
        base: shape (n, d); float32, float16, uint8 or int8; may be memory-mapped.
        queries: shape (nq, d), of one of these types.
        k: neighbours a query.
        metric: ``l2``: squared Euclidean distance. ``inner_product``: its negative. ``cosine``:
            1 - cosine; a vector of zeros has distance 1 to all. The smaller, the nearer.
        exclude: ids to leave out, or bool of shape (n,), True for those.
        chunk: rows of `base` looked at together; no effect on the result.

    Returns:
        ids int64 and distances float32, both (nq, k); -1 and infinity where fewer than k are left.
        Of equal distances (to 12 digits) the lower id comes first.
    """
    _check(base, queries, k, metric, chunk)
    keep = _kept(exclude, len(base))
    if keep.any():
        return _Search(base, np.asarray(queries, np.float32), k, metric, keep, chunk).run()
    return Truth(np.full((len(queries), k), NO_ID), np.full((len(queries), k), np.float32(np.inf)))


def _check(base: Array, queries: Array, k: int, metric: str, chunk: int) -> None:
    if metric not in METRICS:
        raise UserError(f"metric {metric!r} is unknown; use {', '.join(METRICS)}")
    for what, array in (("base", base), ("queries", queries)):
        if array.ndim != 2 or 0 in array.shape or array.dtype.name not in _DTYPES:
            found, types = f"{array.dtype} {array.shape}", ", ".join(_DTYPES)
            raise UserError(f"{what} are {found}; give (rows, d), 1 or more, of {types}")
    if base.shape[1] != queries.shape[1]:
        raise UserError(f"queries have d {queries.shape[1]}, the base {base.shape[1]}; pair them")
    if min(k, chunk) < 1:
        raise UserError(f"k is {k}, chunk {chunk}; use 1 or more")
    check_finite(queries, "queries")


def _kept(exclude: npt.ArrayLike | None, rows: int) -> npt.NDArray[np.bool_]:
    keep = np.ones(rows, bool)
    out = np.asarray([] if exclude is None else exclude)
    if out.dtype == bool and out.shape != (rows,):
        raise UserError(f"exclude has shape {out.shape}; a mask of {rows} rows is ({rows},)")
    if out.dtype.kind in "iu" and out.size and not 0 <= out.min() <= out.max() < rows:
        raise UserError(f"exclude holds {out.min()} to {out.max()}; ids are 0 to {rows - 1}")
    if out.size and out.dtype.kind not in "biu":
        raise UserError(f"exclude is {out.dtype}; give ids or a mask")
    keep[out if out.size else slice(0)] = False
    return keep


class _Search:
    def __init__(self, base: Array, queries: Array, k: int, metric: str, keep: Array, chunk: int):
        self.base, self.k, self.metric, self.keep, self.chunk = base, k, metric, keep, chunk
        self.lengths = _lengths(queries, "queries")
        self.exact_queries = queries.astype(np.float64)
        if metric == "cosine":
            self.exact_queries /= np.where(self.lengths > 0, self.lengths, 1)[:, None]
            self.lengths = np.sign(self.lengths)
        self.queries = self.exact_queries.astype(np.float32)
        self.longest = 0.0  # vector of the base, so far
        self.step = max(1, _GEMM_CELLS // chunk)  # queries looked at together

    def run(self) -> Truth:
        ids, rough = self._candidates()
        ids, distances = self._refine(ids)
        rough = rough + self._shift()[:, None]
        kth = distances[:, min(self.k, ids.shape[1]) - 1]
        # Whatever was dropped ranked behind the last that was kept.
        dropped = ids.shape[1] < self.keep.sum()
        unsure = dropped & (kth + self._error() >= rough.max(axis=1))
        ids, distances = self._pad(ids), self._pad(distances, np.inf)
        again = np.flatnonzero(unsure)
        if again.size:
            ids[again], distances[again] = self._rescan(again, kth[again])
        return Truth(ids, distances.astype(np.float32))

    def _pad(self, found: Array, fill: float = NO_ID) -> Array:
        short = max(0, self.k - found.shape[1])
        return np.pad(found[:, : self.k], [(0, 0), (0, short)], constant_values=fill)

    def _chunks(self, what: str) -> Iterator[tuple[Ids, npt.NDArray[np.float32], Array]]:
        """The ids that count, their vectors, and the first pass's row terms."""
        with bar(len(self.base), what) as progress:
            for start in range(0, len(self.base), self.chunk):
                yield self._chunk(start)
                progress.update(min(self.chunk, len(self.base) - start))

    def _chunk(self, start: int) -> tuple[Ids, npt.NDArray[np.float32], Array]:
        keep = self.keep[start : start + self.chunk]
        vectors = np.asarray(self.base[start : start + self.chunk])
        check_finite(vectors, "base", first_row=start)
        vectors = vectors[keep].astype(np.float32)
        lengths = _lengths(vectors, "base")
        if self.metric == "cosine":
            vectors /= np.where(lengths > 0, lengths, 1)[:, None].astype(np.float32)
            lengths = np.sign(lengths)
        self.longest = max(self.longest, float(lengths.max(initial=0)))
        terms = lengths**2 if self.metric == "l2" else np.zeros(len(vectors))
        return start + np.flatnonzero(keep), vectors, terms.astype(np.float32)

    def _scores(self, queries: Array, vectors: Array, terms: Array) -> npt.NDArray[np.float32]:
        """First pass: the distance less what depends on the query alone; shape (queries, rows)."""
        scores = queries @ vectors.T
        scores *= -2 if self.metric == "l2" else -1
        return np.add(scores, terms, out=scores)

    def _shift(self) -> Array:
        """What `_scores` leaves out."""
        ones = np.ones(len(self.queries))
        return {"l2": self.lengths**2, "cosine": ones, "inner_product": 0 * ones}[self.metric]

    def _error(self) -> Array:
        """Bound of what rounding does to the scores of each query, float64, shape (nq,)."""
        product = 2 * self.lengths * self.longest
        terms = (self.lengths + self.longest) ** 2 if self.metric == "l2" else product
        return 1.5 * _UNIT * ((self.queries.shape[1] + 8) * product + 8 * terms) + 1e-37

    def _candidates(self) -> tuple[Ids, Array]:
        width = min(int(self.keep.sum()), self.k + max(16, self.k // 2))
        ids = np.empty((len(self.queries), 0), np.int64)
        rough = np.empty((len(self.queries), 0), np.float32)
        for names, vectors, terms in self._chunks("exact neighbours"):
            kept_ids, kept = [], []
            for first in range(0, len(self.queries), self.step):
                rows = slice(first, first + self.step)
                scores = self._scores(self.queries[rows], vectors, terms)
                if rough.shape[1] < width:
                    best = _smallest(scores, width)
                    new, new_ids = np.take_along_axis(scores, best, 1), names[best]
                else:
                    new, new_ids = _below(scores, names, rough[rows].max(axis=1))
                new, new_ids = np.hstack([rough[rows], new]), np.hstack([ids[rows], new_ids])
                best = _smallest(new, width)
                kept.append(np.take_along_axis(new, best, 1))
                kept_ids.append(np.take_along_axis(new_ids, best, 1))
            ids, rough = np.vstack(kept_ids), np.vstack(kept)
        return ids, rough

    def _refine(self, ids: Ids) -> tuple[Ids, Array]:
        """Compute the candidates' distances in float64 and sort them."""
        owners = np.repeat(np.arange(len(ids)), ids.shape[1])
        distances = self._distances(ids.ravel(), owners).reshape(ids.shape)
        order = np.lexsort((ids, distances))
        return np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)

    def _distances(self, ids: Ids, queries: Array) -> Array:
        """Distances of pairs (row of the base, row of the queries), float64."""
        out = np.empty(len(ids))
        step = max(1, _BLOCK_BYTES // (16 * self.queries.shape[1]))
        for first in range(0, len(ids), step):
            some = slice(first, first + step)
            vectors = np.asarray(self.base[ids[some]]).astype(np.float64)
            out[some] = self._exact(vectors, self.exact_queries[queries[some]])
        return out

    def _exact(self, vectors: Array, queries: Array) -> Array:
        """Distances of pairs of rows, cut to 40 bits: float64's rounding must break no tie."""
        if self.metric == "l2":
            vectors -= queries
            return _cut(np.einsum("ij,ij->i", vectors, vectors))
        products = np.einsum("ij,ij->i", vectors, queries)
        if self.metric == "inner_product":
            return _cut(-products)
        lengths = _lengths(vectors, "base")
        return 1 - np.round(products / np.where(lengths > 0, lengths, 1) * 2.0**40) / 2.0**40

    def _rescan(self, again: Ids, kth: Array) -> tuple[Ids, Array]:
        limits = (kth + self._error()[again] - self._shift()[again])[:, None]
        found = [(np.empty(0, np.int64), np.empty(0))] * len(again)
        for names, vectors, terms in self._chunks("near ties"):
            for first in range(0, len(again), self.step):
                group = again[first : first + self.step]
                scores = self._scores(self.queries[group], vectors, terms)
                near = scores <= limits[first : first + self.step]
                for place, query in enumerate(group, first):
                    found[place] = self._merge(found[place], names[near[place - first]], query)
        return np.stack([ids for ids, _ in found]), np.stack([far for _, far in found])

    def _merge(self, old: tuple[Ids, Array], ids: Ids, query: int) -> tuple[Ids, Array]:
        new = self._distances(ids, np.full(len(ids), query))
        ids, distances = np.concatenate([old[0], ids]), np.concatenate([old[1], new])
        order = np.lexsort((ids, distances))[: self.k]
        return ids[order], distances[order]


def _lengths(vectors: Array, what: str) -> npt.NDArray[np.float64]:
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = lengths[(lengths > _LONGEST) | ((lengths < _SHORTEST) & (lengths > 0))]
    if wrong.size:
        raise UserError(f"{what} hold a vector {wrong[0]:.3g} long; scale all to 1e-30 to 1e17")
    return lengths


def _smallest(scores: Array, width: int) -> npt.NDArray[np.intp]:
    """Columns of the `width` smallest of each row, in no order."""
    if scores.shape[1] <= width:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, width - 1, axis=1)[:, :width]


def _below(scores: Array, names: Ids, worst: Array) -> tuple[Array, Ids]:
    """Scores under each row's worst and their ids; rows are filled up by infinity."""
    rows, columns = np.nonzero(scores < worst[:, None])  # in the order of rows
    counts = np.bincount(rows, minlength=len(scores))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    new = np.full((len(scores), counts.max()), np.inf, np.float32)
    ids = np.full(new.shape, NO_ID)
    new[rows, place], ids[rows, place] = scores[rows, columns], names[columns]
    return new, ids


def _cut(distances: Array) -> Array:
    mantissa, exponent = np.frexp(distances)
    return np.ldexp(np.round(mantissa * 2.0**40), exponent - 40)
