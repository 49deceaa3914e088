"""Synthetic vectors with structure: clusters of low intrinsic dimension, and drift.

Every row is a function of the seed and its number: however a set is cut into chunks, its bits are
the same. Matrix products are spelt out as sums in a fixed order, so they do not depend on a BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats.vectors import write_chunks

Matrix = npt.NDArray[np.float32]
BLOCK = 2048  # rows that share a random stream
# What a stream of random numbers is for; part of its seed.
_SIZES, _CENTRES, _AXES, _BASE, _QUERIES, _DIRECTION = range(6)


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@dataclass(frozen=True)
class Mixture:
    """Gaussian clusters: centre + `intrinsic` axes of its own + noise in all dimensions.

    Args:
        dim: d.
        clusters: number of clusters; their sizes are drawn from a flat Dirichlet distribution.
        intrinsic: axes of a cluster.
        noise: length of the noise relative to the spread along the axes.
        spread: length of the spread within a cluster relative to that of the centres.
        seed: of all random numbers.
        part: tells mixtures of one seed apart.
        shift: how far the whole mixture lies from the origin, in lengths of a centre.
    """

    dim: int
    clusters: int = 200
    intrinsic: int = 24
    noise: float = 0.3
    spread: float = 1.0
    seed: int = 0
    part: int = 0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("dim", "clusters", "intrinsic"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use 1 or more")
        for name in ("noise", "spread", "shift", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; use 0 or more")

    def _draw(self, what: int, *key: int) -> np.random.Generator:
        return _stream(self.seed, self.part, what, *key)

    @cached_property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each cluster, shape (clusters,)."""
        return self._draw(_SIZES).dirichlet(np.ones(self.clusters))

    @cached_property
    def centres(self) -> Matrix:
        """Centres of the clusters, shape (clusters, d), about 1 long but for the shift."""
        centres = self._draw(_CENTRES).standard_normal((self.clusters, self.dim), np.float32)
        direction = self._draw(_DIRECTION).standard_normal(self.dim)
        direction /= np.sqrt((direction**2).sum())  # linalg.norm would ask the BLAS
        centres /= np.float32(np.sqrt(self.dim))
        return centres + (self.shift * direction).astype(np.float32)

    @cached_property
    def axes(self) -> Matrix:
        """Axes of the clusters, shape (clusters, intrinsic, d)."""
        shape = self.clusters, self.intrinsic, self.dim
        axes = self._draw(_AXES).standard_normal(shape, np.float32)
        axes *= np.float32(self.spread / np.sqrt(self.intrinsic * self.dim))
        return axes

    def rows(self, start: int, stop: int, *, queries: bool = False) -> Matrix:
        """Rows [start, stop) of the endless sequence of vectors, or of that of queries."""
        out = np.empty((stop - start, self.dim), np.float32)
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first, last = max(start, number * BLOCK), min(stop, (number + 1) * BLOCK)
            block = self._block(number, queries)
            out[first - start : last - start] = block[first % BLOCK : (last - 1) % BLOCK + 1]
        return out

    @cached_property
    def _held(self) -> dict[tuple[int, bool], Matrix]:
        return {}

    def _block(self, number: int, queries: bool) -> Matrix:
        """Block `number`; the last one is held, for chunks that are smaller than a block."""
        block = self._held.get((number, queries))
        if block is None:
            block = self._make(number, queries)
            self._held.clear()
            self._held[number, queries] = block
        return block

    def _make(self, number: int, queries: bool) -> Matrix:
        draw = self._draw(_QUERIES if queries else _BASE, number)
        cluster = draw.choice(self.clusters, BLOCK, p=self.shares)
        along = draw.standard_normal((BLOCK, self.intrinsic), np.float32)
        order = np.argsort(cluster, kind="stable")
        edges = np.searchsorted(cluster[order], np.arange(self.clusters + 1))
        block = draw.standard_normal((BLOCK, self.dim), np.float32)
        block *= np.float32(self.noise * self.spread / np.sqrt(self.dim))
        for c in np.flatnonzero(np.diff(edges)):
            members = order[edges[c] : edges[c + 1]]
            rows = block[members] + self.centres[c]
            for axis in range(self.intrinsic):
                rows += along[members, axis, None] * self.axes[c, axis]
            block[members] = rows
        return block


@dataclass(frozen=True)
class Synthetic:
    """A base of vectors and queries to it; nothing is kept but the mixtures' parameters.

    Attributes:
        n: vectors of the base.
        mixture: where rows [0, boundary) come from.
        late: where the others come from; None where there are no others.
        boundary: first row of the late region; n where there is none.
        queries: float32, shape (nq, d), from the mixture.
        late_queries: float32, shape (nq or 0, d), from the late region.
    """

    n: int
    mixture: Mixture
    boundary: int
    queries: Matrix
    late_queries: Matrix
    late: Mixture | None = None

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.mixture.dim

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop) of the base, float32."""
        if not 0 <= start <= stop <= self.n:
            raise UserError(f"rows {start} to {stop}; the base has 0 to {self.n}")
        if self.late is None or stop <= self.boundary:
            return self.mixture.rows(start, stop)
        late = self.late.rows(max(start, self.boundary) - self.boundary, stop - self.boundary)
        if start >= self.boundary:
            return late
        return np.concatenate([self.mixture.rows(start, self.boundary), late])

    def chunks(self, rows: int = BLOCK) -> Iterator[Matrix]:
        """The base in chunks of `rows` rows, the last perhaps shorter."""
        if rows < 1:
            raise UserError(f"chunks of {rows} rows; use 1 or more")
        for start in range(0, self.n, rows):
            yield self.rows(start, min(self.n, start + rows))

    def base(self) -> Matrix:
        """The whole base, shape (n, d)."""
        out = np.empty((self.n, self.dim), np.float32)
        for start in range(0, self.n, BLOCK):
            stop = min(self.n, start + BLOCK)
            out[start:stop] = self.rows(start, stop)
        return out

    def write(self, path: Path | str) -> None:
        """Write the base to a vector file without holding it in memory."""
        write_chunks(path, self.chunks(), self.n)


def clustered(
    n: int,
    dim: int,
    *,
    clusters: int = 200,
    intrinsic: int = 24,
    noise: float = 0.3,
    spread: float = 1.0,
    seed: int = 0,
    queries: int = 1000,
) -> Synthetic:
    """Make `n` vectors of clusters in random order, and queries from the same mixture.

    The defaults are about as hard for a graph as the sets of the papers: with 20,000 x 128, a
    Vamana graph (R 24, L 48, 16 code bytes) finds 0.60, 0.83, 0.97 of the nearest ten at list
    lengths 10, 20, 40. The other arguments are those of `Mixture`.
    """
    _counts(n, queries)
    mixture = Mixture(dim, clusters, intrinsic, noise, spread, seed)
    none = np.empty((0, dim), np.float32)
    return Synthetic(n, mixture, n, mixture.rows(0, queries, queries=True), none)


def drift(
    n: int,
    dim: int,
    *,
    share: float = 0.08,
    distance: float = 4.0,
    clusters: int = 200,
    intrinsic: int = 24,
    noise: float = 0.3,
    spread: float = 1.0,
    seed: int = 0,
    queries: int = 1000,
) -> Synthetic:
    """Make a set whose last rows are a region of their own, far from all others.

    Args:
        n: vectors of the base.
        dim: their dimension.
        share: of the rows that lie in the late region.
        distance: of the late region, in lengths of a cluster's centre.
        clusters: of the early region; the late one has as many in proportion to its rows.
        intrinsic: see `Mixture`, as for noise, spread and seed.
        noise: see `Mixture`.
        spread: see `Mixture`.
        seed: see `Mixture`.
        queries: number of queries to the early region, and of those to the late one.
    """
    _counts(n, queries)
    late_rows = round(n * share) if 0 < share < 1 else 0
    if not 0 < late_rows < n:
        raise UserError(f"a share of {share} of {n} rows; both regions need a row")
    early = Mixture(dim, clusters, intrinsic, noise, spread, seed)
    fewer = max(1, round(clusters * share))
    late = Mixture(dim, fewer, intrinsic, noise, spread, seed, part=1, shift=distance)
    asked = [m.rows(0, queries, queries=True) for m in (early, late)]
    return Synthetic(n, early, n - late_rows, asked[0], asked[1], late)


def _counts(n: int, queries: int) -> None:
    if n < 1 or queries < 0:
        raise UserError(f"{n} vectors, {queries} queries; use 1 vector or more")
