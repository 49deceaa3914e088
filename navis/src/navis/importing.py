"""Indexes from disk indexes of DiskANN: their graph, their vectors, and their codes where they fit.

What is kept: every edge, except those of a node to itself and second ones to the same node, which
the newer package's start point gives. What is ours: files, entrance graph, stop rule.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis import building, layouts, quantizer
from navis.errors import translated
from navis.formats import check_finite, open_disk_index, read_pq
from navis.formats.diskann import DiskIndex, Nodes, beside

if TYPE_CHECKING:
    from navis.index import Index, LayoutName, Metric, Progress

Array = npt.NDArray[Any]
Codes = Literal["theirs", "ours"]

_LOSS = 0.0005  # of results by stopping early: an import is to answer as its source does
_SAMPLE = 2**15  # vectors a quantizer of ours is trained on


@dataclass(frozen=True)
class Imported:
    """What came over.

    Attributes:
        edges: in the graph.
        dropped: edges left out, to the node itself or second ones.
        codes: whose codebooks they are encoded with.
        code_bytes: bytes per vector held in memory.
    """

    edges: int
    dropped: int
    codes: Codes
    code_bytes: int


def from_diskann(
    prefix: Path | str,
    path: Path | str,
    *,
    dtype: npt.DTypeLike | None = None,
    metric: Metric | None = None,
    layout: LayoutName = "auto",
    insert_list: int = 128,
    alpha: float = 1.1,
    code_bytes: int | None = None,
    entrance_share: float = 0.01,
    seed: int = 0,
    threads: int = 1,
    memory_budget: int | None = None,
    progress: Progress | None = None,
    **session: Any,
) -> tuple[Index, Imported]:
    """Make an index of a DiskANN disk index, and open it. Ids are its rows.

    The vectors lie in a file in `path` while it is made, so that only graph and codes are held.

    Args:
        prefix: Of its files, or their folder, or `…_disk.index`.
        path: Folder to make; must not exist or be empty.
        dtype: Value type, where no `…_metadata.bin` tells.
        metric: Where no metadata tells.
        layout: `packed`, `selective`, or by dimension and budget.
        insert_list: Search list of later inserts.
        alpha: Of later inserts' pruning, see `Index.build`.
        code_bytes: Train codes of so many bytes; theirs are taken by default if ours can be.
        entrance_share: Entrance nodes per vector.
        seed: Of entrance graph and quantizer.
        threads: Of the quantizer's training.
        memory_budget: Bytes, of `open` and of the layout's choice.
        progress: Called with done and total; returning False stops.
        session: Further options of `Index.open`.

    Raises:
        UserError: Bad input, or `path` is not empty; nothing is left in it.
    """
    from navis.checks import fresh
    from navis.index import Index

    source = open_disk_index(prefix, dtype=dtype)
    name = metric or source.metric
    if not name:
        raise UserError(f"{source.path}: no metadata file tells the metric: give metric")
    if source.metric and name != source.metric:
        raise UserError(f"{source.path}: made for {source.metric}, not {name}: leave metric out")
    if source.max_degree > 255:
        raise UserError(f"{source.path}: {source.max_degree} edges per node; 255 is the most")
    path = Path(path)
    fresh(path)
    try:
        done = _make(
            source,
            path,
            _Wanted(
                name,
                layout,
                insert_list,
                alpha,
                code_bytes,
                entrance_share,
                seed,
                threads,
                memory_budget,
            ),
            progress or (lambda done, total: True),
        )
        index = Index.open(path, memory_budget=memory_budget, **session)
        try:
            index.calibrate_if_many(seed=seed, loss=_LOSS)
        except BaseException:
            index.close()
            raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return index, done


@dataclass(frozen=True)
class _Wanted:
    metric: str
    layout: LayoutName
    insert_list: int
    alpha: float
    code_bytes: int | None
    entrance_share: float
    seed: int
    threads: int
    memory_budget: int | None


def _make(source: DiskIndex, path: Path, wanted: _Wanted, progress: Progress) -> Imported:
    from navis import _core

    n, dim = source.points, source.dim - bool(source.max_norm)
    kind = np.dtype(np.float32) if source.max_norm else source.dtype
    rows = path / "rows.partial"
    counts = np.zeros(n, np.uint8)
    edges = np.full((n, source.max_degree), source.medoid, np.uint32)
    longest, dropped = 0.0, 0
    with rows.open("wb") as file:
        for nodes in source.nodes():
            here = slice(nodes.start, nodes.start + len(nodes.degrees))
            vectors = np.ascontiguousarray(source.original(nodes.vectors), kind)
            _check(vectors, nodes.start, wanted.metric)
            longest = max(longest, _longest(vectors))
            edges[here], counts[here], lost = simple_lists(nodes)
            dropped += lost
            file.write(vectors.tobytes())
            if not progress(here.stop, 2 * n):
                raise UserError("the import was stopped")
    stored = np.memmap(rows, kind, "r", shape=(n, dim))
    radius = 1.1 * longest or 1.0 if wanted.metric == "inner_product" else 0.0
    codebooks, whose = _codebooks(source, stored, wanted, radius)

    options = _core.IndexOptions()
    options.dim, options.degree = dim, source.max_degree
    options.insert_list = max(wanted.insert_list, source.max_degree)
    options.type = getattr(_core.DataType, kind.name)
    options.metric = getattr(_core.Metric, wanted.metric)
    options.alpha, options.radius = wanted.alpha, radius
    options.entrance_share = wanted.entrance_share
    layout: str = wanted.layout
    if layout == "auto":
        layout = layouts.choose(dim * kind.itemsize, source.max_degree, n, wanted.memory_budget)
    options.layout = getattr(_core.Layout, layout)
    with translated():
        _core.build_from_graph(
            path,
            options,
            stored,
            np.arange(n, dtype=np.uint64),
            codebooks,
            counts,
            edges,
            source.medoid,
            wanted.seed,
            lambda done, total: progress(total // 2 + done // 2, total),
            *building.place(stored),
        )
    del stored
    rows.unlink()
    return Imported(int(counts.sum(dtype=np.int64)), dropped, whose, codebooks.shape[0])


def simple_lists(nodes: Nodes) -> tuple[Array, Array, int]:
    """Give neighbours and degrees without loops and second edges, and how many went.

    The others keep their order.
    """
    given, width = nodes.neighbours, nodes.neighbours.shape[1]
    keep = np.arange(width) < nodes.degrees[:, None]
    keep &= given != np.arange(nodes.start, nodes.start + len(given))[:, None]
    order = np.argsort(given, axis=1, kind="stable")
    sorted_ = np.take_along_axis(given, order, 1)
    second = np.zeros_like(keep)
    np.put_along_axis(second, order[:, 1:], sorted_[:, 1:] == sorted_[:, :-1], 1)
    keep &= ~second
    first = np.argsort(~keep, axis=1, kind="stable")
    counts = keep.sum(axis=1)
    lost = int(nodes.degrees.sum(dtype=np.int64) - counts.sum())
    return np.take_along_axis(given, first, 1), counts.astype(np.uint8), lost


def _check(vectors: Array, start: int, metric: str) -> None:
    check_finite(vectors, "vectors", first_row=start)
    if metric == "cosine":
        zero = ~vectors.any(axis=1)
        if zero.any():
            row = start + int(np.argmax(zero))
            raise UserError(f"vectors: row {row} is zero, which has no cosine: build without it")


def _longest(vectors: Array) -> float:
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return float(np.sqrt(squares.max(initial=0.0)))


def _codebooks(
    source: DiskIndex, stored: Array, wanted: _Wanted, radius: float
) -> tuple[Array, Codes]:
    if wanted.code_bytes is None and wanted.metric == "l2":
        theirs = their_codebooks(source)
        if theirs is not None:
            return theirs, "theirs"
    n = len(stored)
    some = np.random.default_rng(wanted.seed).choice(n, min(n, _SAMPLE), replace=False)
    sample = building.gather(stored, np.sort(some))
    working = quantizer.working_space(sample, wanted.metric, radius)
    size = wanted.code_bytes or quantizer.default_bytes(working.shape[1])
    return quantizer.train(working, size, wanted.seed, wanted.threads), "ours"


def their_codebooks(source: DiskIndex) -> Array | None:
    """Codebooks (subspaces, 256, width) like ours, where theirs are cut as ours would be.

    Ours cut a vector into parts of one width, the last one shorter; their centre goes into the
    centroids. None where they are cut otherwise, or absent.
    """
    if not beside(source.path, "_pq_pivots.bin").exists():
        return None
    pq = read_pq(source.path)
    parts, dim = len(pq.offsets) - 1, source.dim
    width = -(-dim // parts)
    cuts = np.minimum(np.arange(parts + 1) * width, dim)
    if pq.pivots.shape != (256, dim) or not np.array_equal(pq.offsets, cuts):
        return None
    padded = np.zeros((256, parts * width), np.float32)
    padded[:, :dim] = pq.pivots + pq.centre
    if not np.isfinite(padded).all():
        return None
    return np.ascontiguousarray(padded.reshape(256, parts, width).transpose(1, 0, 2))
