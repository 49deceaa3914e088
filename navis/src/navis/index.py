"""`Index`: an index on disk from Python."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from shorthaul.errors import Fault, UserError

from navis import building, layouts, learning, quantizer, tuning
from navis.checks import (
    DTYPES,
    LAYOUTS,
    LONGEST_LIST,
    METHODS,
    METRICS,
    MOST_THREADS,
    Array,
    Ids,
    byte_count,
    changes,
    check_rows,
    check_search,
    check_there,
    checked_vectors,
    default_list,
    fresh,
    id_array,
    known,
    query_rows,
    radius_of,
    unique_ids,
    whole,
)
from navis.errors import Corrupt, Stale, translated
from navis.filters import Filter, LabelsLike, core_filters, label_rows, value_rows
from navis.session import Durability, Session

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
LabelSet = npt.NDArray[np.uint32]
Metric = Literal["l2", "inner_product", "cosine"]
Dtype = Literal["float32", "float16", "uint8", "int8"]
LayoutName = Literal["auto", "packed", "selective"]
FilterMethod = Literal["automatic", "walk", "scan"]
Progress = Callable[[int, int], bool]

_ATTEMPTS = 10  # to open readonly while another process writes


class Index:
    """A graph index on SSD: search, insert and delete at the same time, from any thread.

    Use `create`, `build` or `open`; it is a context manager. Distances are squared L2, 1 - cosine,
    or minus the inner product, so that smaller is nearer. Ids are yours, 64 bits unsigned.
    """

    def __init__(self, core: Any, path: Path, stamp: tuple[int, int] | None = None) -> None:
        self._core, self.path, self._stamp = core, path, stamp

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell damage from what another process has written since this one opened readonly."""
        try:
            with translated():
                yield
        except Fault:
            if self._stamp is None or self._stamp == _stamp(self.path):
                raise
            raise Stale(
                f"{self.path}: another process has changed the index since it was opened "
                "readonly: open it again"
            ) from None

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, path: Path | str, dim: int, **options: Any) -> Self:
        """Make an empty index and open it; options are those of `build` and `open`.

        Its quantizer is trained on what is inserted, at 256 vectors and then at each fourfold
        size up to 16,384.
        """
        whole("dim", dim, 1, 65535)
        dtype = options.get("dtype", "float32")
        return cls.build(path, np.empty((0, dim), known("dtype", dtype, DTYPES)), **options)

    @classmethod
    def build(
        cls,
        path: Path | str,
        vectors: Array,
        ids: npt.ArrayLike | None = None,
        *,
        metric: Metric = "l2",
        dtype: Dtype | None = None,
        layout: LayoutName = "auto",
        degree: int = 32,
        build_list: int = 64,
        insert_list: int = 128,
        alpha: float = 1.1,
        code_bytes: int | None = None,
        radius: float | None = None,
        entrance_share: float = 0.01,
        threads: int = 1,
        seed: int = 0,
        memory_budget: int | str | None = None,
        labels: LabelsLike | None = None,
        values: npt.ArrayLike | None = None,
        progress: Progress | None = None,
        **session: Any,
    ) -> Self:
        """Build an index of vectors and open it.

        Args:
            path: Folder to make; must not exist or be empty.
            vectors: (n, d) float32, float16, uint8 or int8; n may be 0.
            ids: (n,) unsigned 64 bits, without duplicates; 0 to n - 1 by default.
            metric: `l2`, `inner_product` or `cosine`.
            dtype: Type stored; that of `vectors` by default.
            layout: `packed`, `selective`, or by dimension and budget.
            degree: Edges per node, R, 1 to 255.
            build_list: Search list of the construction, L.
            insert_list: Search list of later inserts.
            alpha: Distance ratio of the pruning rule; 1.1 is the 1.2 on squared distances that
                DiskANN and its kin call 1.2.
            code_bytes: Bytes per vector held in memory (PQ).
            radius: Bound of vector lengths for inner product; 1.1 × the longest by default.
            entrance_share: Entrance nodes per vector.
            threads: Threads of the construction; 1 is deterministic by seed.
            seed: Of the insertion order and the quantizer.
            memory_budget: Bytes, or text like `64MiB`; of `open`, of the layout's choice and of the
                construction, which
                cuts a set that does not fit into overlapping clusters. Of a mapped file
                only what is needed is read.
            labels: Of the vectors, for filters: an integer each (negative: none), a list of
                integers each, or `formats.Labels`.
            values: A number each, for filters by range; NaN: none.
            progress: Called with done and total; returning False stops.
            session: Further options of `open`.

        Raises:
            UserError: Bad vectors or options, or the folder is not empty.
        """
        from navis import _core

        path = Path(path)
        memory_budget = byte_count(memory_budget, "memory_budget")
        Session.of(memory_budget=memory_budget, **session)  # or hours would be for nothing
        given = vectors if isinstance(vectors, np.memmap) else np.asarray(vectors)
        vectors = np.asarray(given)
        name = known("dtype", dtype or str(vectors.dtype), DTYPES)
        known("metric", metric, METRICS)
        width = vectors.shape[-1] if vectors.ndim == 2 else 0
        vectors = checked_vectors(given, name, metric, width)
        n, dim = vectors.shape
        numbers = unique_ids(np.arange(n) if ids is None else ids, n)
        attributes = (*label_rows(labels, n), value_rows(values, n))
        whole("degree", degree, 1, 255)
        whole("build_list", build_list, 1, LONGEST_LIST)
        whole("insert_list", insert_list, 1, LONGEST_LIST)
        whole("threads", threads, 1, MOST_THREADS)
        whole("seed", seed, 0, 2**63 - 1)
        if code_bytes is not None:
            whole("code_bytes", code_bytes, 1, 256)
        if insert_list < degree:
            raise UserError(f"insert_list {insert_list}: use {degree}, the degree, or more")
        if alpha < 1:
            raise UserError(f"alpha {alpha}: use 1 or more")
        if not 0 <= entrance_share <= 0.2:
            raise UserError(f"entrance_share {entrance_share}: use 0 to 0.2")
        radius = radius_of(vectors, metric, radius)

        options = _core.IndexOptions()
        options.dim, options.degree, options.insert_list = dim, degree, insert_list
        options.type = getattr(_core.DataType, name)
        options.metric = getattr(_core.Metric, metric)
        options.alpha, options.radius, options.entrance_share = alpha, radius, entrance_share
        item = np.dtype(name).itemsize
        known("layout", layout, LAYOUTS)
        if layout == "auto":
            layout = layouts.choose(dim * item, degree, n, memory_budget)
        options.layout = getattr(_core.Layout, layout)
        how = _core.BuildOptions()
        how.degree, how.search_list, how.alpha = degree, build_list, alpha
        how.threads, how.seed = threads, seed

        writing = building.Build(options, how, metric, radius, code_bytes, memory_budget)
        fresh(path)
        try:
            with translated():
                building.write(path, given, vectors, numbers, attributes, writing, progress)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        try:
            index = cls.open(path, memory_budget=memory_budget, **session)
        except UserError as error:
            raise UserError(f"{error}; {path} is built, and opens with that") from None
        index.calibrate_if_many(seed=seed)
        return index

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        readonly: bool = False,
        memory_budget: int | str | None = None,
        durability: Durability = "sync",
        window_s: float = 0.05,
        io: Literal["automatic", "uring", "posix"] = "automatic",
        direct: bool = True,
        cache: Literal["lfu", "lru", "none"] = "lfu",
        entrance: Literal["dynamic", "fixed", "none"] = "dynamic",
        beam: int = 4,
        in_flight: int = 4,
        share_pages: bool = True,
        rerank: bool = True,
        pending_bytes: int = 0,
        checkpoint_bytes: int = 0,
        write_rate: int = 256 << 20,
    ) -> Self:
        """Open an index; another process may have it open readonly, one for writing.

        Args:
            path: Its folder.
            readonly: Refuse changes; needs no lock and writes nothing. Shows the index as it was;
                when a writer has gone on so far that what was read is no more, calls raise `Stale`.
            memory_budget: Bytes for tables, codes, entrance graph, cache and buffers together, or
                text like `64MiB`.
            durability: When an insert is acknowledged: `sync` after fdatasync, `group` after the
                write with an fdatasync every `window_s`, `none` at once.
            window_s: Of `group`, seconds.
            io: `uring`, `posix`, or what the kernel grants.
            direct: Read and write past the page cache (O_DIRECT), where the file system can;
                otherwise the system caches pages as well, beyond the memory budget.
            cache: Policy of the edge-list cache.
            entrance: Entrance graph kept up, as built, or unused.
            beam: Edge lists expanded per step.
            in_flight: Traversals per thread, 1 to 8.
            share_pages: Use every list of a page once read.
            rerank: Read only the vectors that can still matter.
            pending_bytes: Memory of changed lists before they are written; 0: by the budget.
            checkpoint_bytes: Log size after which a checkpoint is taken; 0: by the index's size.
            write_rate: Bytes per second that writing pages and checkpoints, and compaction, may
                take of the disk, in small portions, so that searches' reads need not wait long;
                0: no limit.

        Raises:
            UserError: Not an index, locked, or the budget is too small (the message says enough).
            Corrupt: A file is damaged.
            EnvironmentLack: The format is newer than this navis.
        """
        from navis import _core

        session = Session(
            readonly=readonly,
            memory_budget=memory_budget,
            durability=durability,
            window_s=window_s,
            io=io,
            direct=direct,
            cache=cache,
            entrance=entrance,
            beam=beam,
            in_flight=in_flight,
            share_pages=share_pages,
            rerank=rerank,
            pending_bytes=pending_bytes,
            checkpoint_bytes=checkpoint_bytes,
            write_rate=write_rate,
        )
        options = session.core()
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder; navis build makes an index")
        for attempt in range(_ATTEMPTS):
            stamp, log = _stamp(path), _log_stamp(path)
            try:
                with translated():
                    return cls(_core.Index(path, options), path, stamp if readonly else None)
            except Fault as error:
                # A writer has put another state in place, cut a segment of its log, removed one,
                # or written to it while it was read.
                if not readonly or (stamp, log) == (_stamp(path), _log_stamp(path)):
                    if not isinstance(error, Corrupt):
                        raise
                    hint = "put a snapshot of the index in its place, or build it anew"
                    raise Corrupt(f"{error}; {hint}") from None
            time.sleep(0.01 * attempt)
        raise UserError(f"{path}: another process changes it too fast to be opened readonly")

    # ------------------------------------------------------------------ using

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self._core.options.dim)

    @property
    def metric(self) -> str:
        """Metric's name."""
        return str(self._core.options.metric.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored vectors."""
        return np.dtype(str(self._core.options.type.name))

    @property
    def layout(self) -> str:
        """`packed` or `selective`."""
        return str(self._core.options.layout.name)

    def __len__(self) -> int:
        """Live vectors."""
        with translated():
            return int(self._core.live)

    def __contains__(self, id: int) -> bool:
        with translated():
            return bool(self._core.contains(id))

    def search(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        L: int | None = None,
        target_recall: float | None = None,
        filter: Filter | Sequence[Filter] | None = None,
        filter_method: FilterMethod = "automatic",
        threads: int = 1,
        margin: float | None = None,
        group: int | None = None,
        latencies: bool = False,
    ) -> Any:
        """Find the k nearest of each query.

        Args:
            queries: (n, d) or (d,).
            k: How many, at most the live vectors.
            L: Search list, at least k; max(2k, 40) by default. Longer finds more and reads more.
            target_recall: Instead of L: the search list that `tune` found for this recall and k.
            filter: Only vectors that match are found; one for all queries, or one each.
            filter_method: Walk the graph, scan the codes of all that match, or as costs less.
            threads: Threads of this call.
            margin: Of re-ranking, 0 to 1: smaller reads more vectors.
            group: Vectors read together in re-ranking.
            latencies: Give a third array, microseconds per query.

        Returns:
            ids (n, k) uint64 and distances (n, k) float32, nearest first. Where fewer than k
            vectors match a filter, the rest are id 2**64 - 1 at distance infinity.

        Raises:
            UserError: Wrong dimension, NaN, k beyond what is there, a target_recall that has not
                been tuned.
        """
        from navis import _core

        given, single = query_rows(queries, self.dim, self.metric)
        check_search(k, L, threads)
        check_there(k, len(self), "index")
        if target_recall is not None:
            if L is not None:
                raise UserError(f"L {L} and target_recall {target_recall}: give one of them")
            tuned = tuning.look_up(self.path, k, target_recall)
            L = tuned.L
            margin = tuned.margin if margin is None else margin
        options = _core.SearchOptions()
        options.k, options.list, options.threads = k, L or default_list(k), threads
        filters = core_filters(filter, len(given))
        options.filter_method = getattr(
            _core.FilterMethod, known("filter_method", filter_method, METHODS)
        )
        if margin is not None:
            if not 0 <= margin <= 1:
                raise UserError(f"margin {margin}: use 0 to 1")
            options.rerank.margin = margin
        if group is not None:
            options.rerank.group = whole("group", group, 1, LONGEST_LIST)
        with self._reading():
            ids, distances, micros = self._core.search(given, options, filters)
        if single:
            ids, distances = ids[0], distances[0]
        return (ids, distances, micros) if latencies else (ids, distances)

    def insert(
        self,
        ids: npt.ArrayLike,
        vectors: npt.ArrayLike,
        *,
        labels: LabelsLike | None = None,
        values: npt.ArrayLike | None = None,
        threads: int = 1,
    ) -> int:
        """Insert vectors, or replace those whose id is known; acknowledged when it returns.

        A vector that is replaced loses the labels and the value it had.

        Args:
            ids: (n,) unsigned 64 bits, no duplicates.
            vectors: (n, d), or (d,) with one id.
            labels: For filters: an integer each (negative: none), a list of integers each, or
                `formats.Labels`.
            values: A number each, for filters by range; NaN: none.
            threads: Threads of this call.

        Returns:
            How many were replaced.

        Raises:
            UserError: Wrong dimension, NaN, a zero vector with cosine, duplicate ids.
            NoSpace: The disk is full.
        """
        numbers, given = changes(ids, vectors, self.dtype.name, self.metric, self.dim)
        whole("threads", threads, 1, MOST_THREADS)
        n = len(given)
        starts, flat = label_rows(labels, n)
        numeric = value_rows(values, n)
        with translated():
            before = int(self._core.rows)
        if before == 0 and n >= learning.RETRAIN_AT[0]:
            self._learn(given)  # or the first edges would be chosen by codes that say nothing
            cuts = []
        else:
            cuts = learning.cuts(before, before + n)
        replaced = 0
        for first, last in pairwise([0, *(size - before for size in cuts), n]):
            rows = slice(first, last)
            part = None if starts is None else (starts[first : last + 1] - starts[first])
            names = None if starts is None else flat[int(starts[first]) : int(starts[last])]
            worth = None if numeric is None else numeric[rows]
            with translated():
                replaced += int(
                    self._core.insert(numbers[rows], given[rows], threads, part, names, worth)
                )
            if last < n or before + n in learning.RETRAIN_AT:
                self.retrain()
        if not cuts and before < learning.CALIBRATE_FROM <= before + n:
            self.calibrate()
        return replaced

    def delete(self, ids: npt.ArrayLike) -> int:
        """Delete; gives how many were there. They are in no result from here on."""
        with translated():
            return int(self._core.remove(id_array(ids)))

    def get(self, ids: npt.ArrayLike) -> Array:
        """Give the stored vectors (n, d) of these ids; an unknown id is a UserError."""
        numbers = id_array(ids)
        out = np.empty((len(numbers), self.dim), self.dtype)
        with self._reading():
            self._core.get(numbers, out)
        return out

    def attributes(self, ids: npt.ArrayLike) -> tuple[list[LabelSet], Values]:
        """Give the labels and the values (NaN: none) of these ids; unknown is a UserError."""
        with translated():
            labels, counts, values = self._core.attributes(id_array(ids))
        return np.split(labels, np.cumsum(counts)[:-1]) if len(counts) else [], values

    def ids(self) -> Ids:
        """Give all live ids, in no order."""
        with translated():
            return np.asarray(self._core.ids())

    def flush(self) -> None:
        """Make everything acknowledged survive the loss of power."""
        with translated():
            self._core.flush()

    def checkpoint(self) -> None:
        """Write everything to its pages and empty the log."""
        with translated():
            self._core.checkpoint()

    def retrain(self, *, code_bytes: int | None = None, seed: int = 0, rows: int = 2**16) -> None:
        """Train the quantizer anew on what is in the index now, and encode every vector."""
        live = quantizer.some(self.ids(), rows, seed)
        self._learn(self._present(live), code_bytes, seed)
        if len(live) >= learning.CALIBRATE_FROM:
            self.calibrate(seed=seed)

    def _learn(
        self, vectors: Array, code_bytes: int | None = None, seed: int = 0, rows: int = 2**16
    ) -> None:
        """Train the quantizer on these vectors, or on `rows` of them."""
        sample = quantizer.some(vectors, rows, seed)
        radius = float(self._core.options.radius)
        books = learning.codebooks(sample, self.metric, radius, code_bytes, seed)
        with translated():
            self._core.retrain(books)

    def trace(self, queries: npt.ArrayLike, L: int, *, seek: bool = False) -> list[Ids]:
        """Give for each query the ids whose edge lists a search follows, in order.

        With `seek` it is the position seeking of an insert.
        """
        given = np.ascontiguousarray(queries, dtype=np.float32)
        check_rows(given, self.dim, "queries")
        with translated():
            paths = self._core.trace(given, L, seek)
        return [np.array(path, dtype=np.uint64) for path in paths]

    def neighbours(self, ids: npt.ArrayLike) -> list[Ids]:
        """Give the ids these ids have edges to; an unknown id is a UserError."""
        with translated():
            lists = self._core.neighbours(id_array(ids))
        return [np.array(found, dtype=np.uint64) for found in lists]

    def calibrate(
        self,
        queries: npt.ArrayLike | None = None,
        *,
        k: int = 10,
        loss: float = 0.0012,
        seed: int = 0,
    ) -> float:
        """Set how early re-ranking may stop, so that it costs at most `loss` of recall@k.

        Bisects margins against reading every candidate's vector, at search lists 4k and 8k.

        Args:
            queries: (n, d) as they will be asked; by default a twentieth of the stored vectors,
                200 to 1,000 of them, asked for their neighbours besides themselves.
            k: Neighbours compared.
            loss: Share of results that may differ from full re-ranking's, at each list length.
            seed: Of the choice of vectors.

        Returns:
            The margin, kept in the index; 0 where no margin is good enough (stop rule off).
        """
        if self.layout == "packed":
            return float(self._core.margin)
        held_out = int(queries is None)
        k = max(1, min(k, len(self) - held_out))
        if queries is None:
            ids = self.ids()
            count = max(200, min(1000, len(ids) // 20))
            queries = self._present(quantizer.some(ids, count, seed)).astype(np.float32)

        def search(L: int, margin: float) -> Ids:
            found = self.search(queries, k + held_out, L=L + held_out, margin=margin)[0]
            return np.asarray(found[:, held_out:])

        best = learning.margin(search, [4 * k, 8 * k], loss)
        with translated():
            self._core.margin = best
            self._core.checkpoint()
        return best

    def calibrate_if_many(self, **options: Any) -> None:
        """Calibrate a new index; with too few vectors to learn from, every candidate's is read."""
        if len(self) >= learning.CALIBRATE_FROM:
            self.calibrate(**options)
        else:
            with translated():
                self._core.margin = 0.0
                self._core.checkpoint()

    def tune(self, target_recall: float, **options: Any) -> tuning.Tuned:
        """Find the smallest search list that reaches a recall, for `search(target_recall=…)`.

        Options are those of `navis.tuning.tune`: k, queries, truth, threads, seed, say. It is kept
        in the index's folder; tune again when the index has grown much.
        """
        return tuning.tune(self, target_recall, **options)

    def compact(self, progress: Progress | None = None) -> None:
        """Give back the space of deletes and of moved lists, beside searches and changes.

        Edges to deleted vectors are replaced, their places freed, vectors and lists written anew
        in the order of the graph, and the files cut. Ended by `progress` or Ctrl-C, the index is
        whole and keeps what has been done; the next call goes on from there.

        Args:
            progress: Called with done and total; returning False stops.

        Raises:
            UserError: Readonly, being compacted already, or stopped by `progress`.
            NoSpace: The disk is full; nothing is lost.
        """
        with translated():
            self._core.compact(progress or _go_on)

    def snapshot(self, path: Path | str, progress: Progress | None = None) -> None:
        """Copy the index, as it is at one moment, to a new folder, beside searches and changes.

        Everything acknowledged before the call is in the copy. On file systems that can, it shares
        its blocks with the index. The folder appears when it is complete and synced.

        Args:
            path: Folder to make; must not exist, its parent must.
            progress: Called with done and total bytes; returning False stops. It must not call the
                index.

        Raises:
            UserError: Readonly, a bad path, or stopped; nothing is left of the copy.
            NoSpace: The disk is full; nothing is left of the copy.
        """
        with translated():
            self._core.snapshot(Path(path), progress or _go_on)

    def repair(self) -> dict[str, Any]:
        """Make edge lists on damaged pages anew, from the cache or by searching for their vectors.

        Returns:
            `lists`: how many were made anew; `lost`: ids whose vector is damaged: delete them,
            then insert them anew. In the packed layout a list is lost with its vector, and
            `compact` is needed in between.

        Raises:
            UserError: Readonly.
        """
        with translated():
            return dict(self._core.repair())

    def verify(self) -> dict[str, Any]:
        """Read everything and compare; `faults` is empty when all is well."""
        with self._reading():
            report = dict(self._core.verify())
            if report["faults"] and self._stamp not in (None, _stamp(self.path)):
                raise Fault(report["faults"][0])
        return report

    def stats(self) -> dict[str, Any]:
        """Give sizes, memory by part, and the state of the log."""
        with translated():
            return dict(self._core.stats())

    def counters(self) -> dict[str, int]:
        """Give monotone counts of requests, bytes and cache hits since opening."""
        with translated():
            return dict(self._core.counters())

    def close(self) -> None:
        """Make everything durable and give the lock back; further calls are errors."""
        with translated():
            self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _present(self, ids: Ids) -> Array:
        """Give the vectors of those of these ids that other threads do not delete meanwhile."""
        found = [np.empty((0, self.dim), self.dtype)]
        for first in range(0, len(ids), 256):
            part = ids[first : first + 256]
            while len(part):
                try:
                    found.append(self.get(part))
                    break
                except UserError:
                    part = part[[int(i) in self for i in part]]
        return np.concatenate(found)


def _go_on(done: int, total: int) -> bool:
    """Nobody watches, but the engine lets Ctrl-C through when it reports progress."""
    return True


def _stamp(path: Path) -> tuple[int, int]:
    """What tells one checkpoint of an index from the next."""
    try:
        stat = (path / "state.nav").stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def _log_stamp(path: Path) -> list[tuple[str, int, int]]:
    """What tells a log from the same after another write."""
    found = []
    for segment in sorted((path / "wal").glob("*")):
        with suppress(FileNotFoundError):
            stat = segment.stat()
            found.append((segment.name, stat.st_size, stat.st_mtime_ns))
    return found
