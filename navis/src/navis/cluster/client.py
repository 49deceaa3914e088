"""`Cluster`: the face of an index that is spread over shards."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis import checks
from navis import index as single
from navis.checks import Array, Ids
from navis.cluster import manifest, routing, runtime
from navis.cluster.manifest import Manifest
from navis.cluster.merging import merge
from navis.cluster.scatter import Shards
from navis.filters import Filter, LabelsLike, core_filters, label_rows, value_rows
from navis.index import Index

_OPEN_OPTIONS = frozenset(inspect.signature(Index.open).parameters) - {"path"}
_OWN = "path vectors ids labels values dtype metric radius progress session".split()
_BUILD_OPTIONS = frozenset(inspect.signature(Index.build).parameters) - frozenset(_OWN)


class Cluster:
    """An index sharded over Ray actors: one process, one folder and one `navis.Index` a shard.

    Use `create`, `build` or `open`; it is a context manager, and safe to use from many threads. An
    id lives on the shard that its hash names, so it is in the cluster once, and a change of it goes
    to one shard. What a call acknowledges is in the logs of all shards that it concerns.

    A shard whose process or machine dies is reported by `ShardLost` from that call on, until
    `recover` starts it again on its files; nothing is restarted behind your back. Its log gives
    back every acknowledged change. A change that ended in `ShardLost` may be done in part: repeat
    the whole call, which replaces what is there already.
    """

    def __init__(
        self, path: Path, about: Manifest, options: dict[str, Any], lock_wait_s: float
    ) -> None:
        self.path, self._about, self._shards = path, about, Shards(path, about)
        expected = (about.dim, about.metric, about.dtype)
        self._opening = (expected, options, lock_wait_s)
        self._closed = False

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, path: Path | str, dim: int, *, shards: int, **options: Any) -> Self:
        """Make an empty cluster and open it; options are those of `build`."""
        checks.whole("dim", dim, 1, 65535)
        dtype = checks.known("dtype", options.get("dtype", "float32"), checks.DTYPES)
        return cls.build(path, np.empty((0, dim), dtype), shards=shards, **options)

    @classmethod
    def build(
        cls,
        path: Path | str,
        vectors: Array,
        ids: npt.ArrayLike | None = None,
        *,
        shards: int,
        metric: single.Metric = "l2",
        dtype: single.Dtype | None = None,
        radius: float | None = None,
        labels: LabelsLike | None = None,
        values: npt.ArrayLike | None = None,
        nodes: Sequence[str] | None = None,
        address: str | None = None,
        lock_wait_s: float = 10.0,
        **options: Any,
    ) -> Self:
        """Build the shards' indexes, all at once, and open the cluster.

        The vectors pass through Ray's object store, which spills to disk what it has no room for.

        Args:
            path: Folder to make, on every node that has a shard; must not exist or be empty.
            vectors: (n, d), as for `Index.build`; n may be 0.
            ids: (n,) unsigned 64 bits, without duplicates; 0 to n - 1 by default.
            shards: How many; it stays.
            metric: `l2`, `inner_product` or `cosine`.
            dtype: Type stored; that of `vectors` by default.
            radius: As for `Index.build`; one for all shards.
            labels: As for `Index.build`.
            values: As for `Index.build`.
            nodes: Addresses of the Ray nodes that keep the shards, in turn, each in its own files
                at `path`; all that Ray has by default. On one node nothing is noted, and the folder
                may move.
            address: Of the Ray to join: that of this process or of RAY_ADDRESS by default; where
                there is none, one is started here, and ends with the last cluster closed.
            lock_wait_s: Of `open`.
            options: Of `Index.build` and `Index.open`, for each shard: a `memory_budget` is a
                shard's, not the cluster's.

        Raises:
            UserError: Bad vectors or options, or the folder is not empty; nothing is left.
            EnvironmentLack: Ray is not installed.
        """
        checks.known_options(options, _OPEN_OPTIONS | _BUILD_OPTIONS)
        if not 1 <= shards <= routing.MAX_SHARDS:
            raise UserError(f"shards {shards}: use 1 to {routing.MAX_SHARDS}")
        checks.known("metric", metric, checks.METRICS)
        given = np.asarray(vectors)
        name = checks.known("dtype", dtype or str(given.dtype), checks.DTYPES)
        width = given.shape[-1] if given.ndim == 2 else 0
        given = checks.checked_vectors(given, name, metric, width)
        n, dim = given.shape
        numbers = checks.unique_ids(np.arange(n) if ids is None else ids, n)
        starts, flat = label_rows(labels, n)
        numeric = value_rows(values, n)
        common = {
            **options,
            "metric": metric,
            "dtype": name,
            "radius": checks.radius_of(given, metric, radius) or None,
        }
        session = {key: value for key, value in options.items() if key in _OPEN_OPTIONS}

        parts = routing.rows_by_shard(numbers, shards)
        none = np.empty(0, np.int64)

        def part(number: int) -> tuple[Any, ...]:
            rows = parts.get(number, none)
            some = None if numeric is None else numeric[rows]
            tags = routing.labels_of(rows, starts, flat)
            return given[rows], numbers[rows], tags, some, common

        path = Path(path).absolute()
        runtime.imported()
        with contextlib.ExitStack() as undo:
            checks.fresh(path)
            undo.callback(_remove, path)
            runtime.acquire(address, shards)
            undo.callback(runtime.release)
            chosen = runtime.place(shards, None if nodes is None else list(nodes))
            about = Manifest(manifest.new_name(), chosen, dim, metric, name)
            made = cls(path, about, session, lock_wait_s)
            undo.callback(made._shards.end)
            undo.callback(made._shards.tell, "discard")
            made._shards.start(range(shards), "build", part)
            manifest.write(path, about)
            undo.pop_all()
        return made

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        address: str | None = None,
        lock_wait_s: float = 10.0,
        **options: Any,
    ) -> Self:
        """Open a cluster, every shard in a process of its own.

        Args:
            path: Its folder.
            address: Of the Ray to join, as for `build`.
            lock_wait_s: How long to wait for the lock of a shard whose last process is dying.
            options: Of `Index.open`, for each shard.

        Raises:
            UserError: No cluster, a newer or damaged manifest, a shard missing, or one open for
                writing elsewhere.
            EnvironmentLack: Ray is not installed.
        """
        checks.known_options(options, _OPEN_OPTIONS)
        path = Path(path).absolute()
        about = manifest.read(path)
        with contextlib.ExitStack() as undo:
            runtime.acquire(address, about.shards)
            undo.callback(runtime.release)
            found = cls(path, about, options, lock_wait_s)
            undo.callback(found._shards.end)
            found._shards.start(range(about.shards), "open", found._how_to_open)
            undo.pop_all()
        return found

    # ------------------------------------------------------------------ using

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._about.dim

    @property
    def metric(self) -> str:
        """Metric's name."""
        return self._about.metric

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored vectors."""
        return np.dtype(self._about.dtype)

    @property
    def shards(self) -> int:
        """How many."""
        return self._about.shards

    @property
    def lost(self) -> tuple[int, ...]:
        """The shards that calls have found lost, and `recover` has not brought back."""
        return self._shards.lost

    def __len__(self) -> int:
        """Live vectors."""
        return int(self.stats()["live"])

    def search(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        L: int | None = None,
        filter: Filter | Sequence[Filter] | None = None,
        threads: int = 1,
        partial: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Find the k nearest of each query: every shard's k nearest, merged exactly.

        Args:
            queries: (n, d) or (d,).
            k: How many, at most the live vectors; may be more than a shard has.
            L: Search list of every shard, at least k; max(2k, 40) by default.
            filter: Only vectors that match are found; one for all queries, or one each.
            threads: Threads of this call in every shard.
            partial: Give what the other shards find when some are lost, and which are.
            timeout_s: A shard that has not answered by then counts as lost for this call.

        Returns:
            ids (n, k) uint64 and distances (n, k) float32, nearest first; equal distances by id.
            Where there are fewer than k, the rest are id 2**64 - 1 at distance infinity. With
            `partial` a third: the numbers of the shards that are missing from this result.

        Raises:
            ShardLost: Without `partial`; it names them.
            UserError: Wrong dimension, NaN, k beyond what is there.
        """
        given, alone = checks.query_rows(queries, self.dim, self.metric)
        checks.check_search(k, L, threads)
        core_filters(filter, len(given))
        options = {"filter": filter, "threads": threads}
        answers = self._shards.ask(
            "search",
            lambda number: (given, k, L or checks.default_list(k), options),
            partial=partial,
            timeout_s=timeout_s,
        )
        there = sum(count for _, _, count in answers.values())
        if len(answers) == self.shards:
            checks.check_there(k, there, "cluster")
        ids, distances = merge([(i, d) for i, d, _ in answers.values()], len(given), k)
        if alone:
            ids, distances = ids[0], distances[0]
        missing = tuple(number for number in range(self.shards) if number not in answers)
        return (ids, distances, missing) if partial else (ids, distances)

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

        Arguments are those of `Index.insert`; all are checked before any shard is asked, and
        nothing is changed where a shard it concerns is known to be lost.

        Returns:
            How many were replaced.

        Raises:
            ShardLost: Repeat the whole call after `recover`.
            UserError: Wrong dimension, NaN, a zero vector with cosine, duplicate ids.
            NoSpace: A shard's disk is full; the other shards' vectors are in.
        """
        numbers, given = checks.changes(ids, vectors, self.dtype.name, self.metric, self.dim)
        starts, flat = label_rows(labels, len(given))
        numeric = value_rows(values, len(given))
        parts = routing.rows_by_shard(numbers, self.shards)

        def part(number: int) -> tuple[Any, ...]:
            rows = parts[number]
            some = None if numeric is None else numeric[rows]
            return numbers[rows], given[rows], routing.labels_of(rows, starts, flat), some, threads

        return sum(self._shards.ask("insert", part, parts).values())

    def delete(self, ids: npt.ArrayLike) -> int:
        """Delete; gives how many were there. They are in no result from here on."""
        numbers = np.unique(checks.id_array(ids))
        parts = routing.rows_by_shard(numbers, self.shards)
        return sum(
            self._shards.ask("delete", lambda number: (numbers[parts[number]],), parts).values()
        )

    def get(self, ids: npt.ArrayLike) -> Array:
        """Give the stored vectors (n, d) of these ids; an unknown id is a UserError."""
        numbers = checks.id_array(ids)
        parts = routing.rows_by_shard(numbers, self.shards)
        out = np.empty((len(numbers), self.dim), self.dtype)
        for number, rows in self._shards.ask("get", lambda n: (numbers[parts[n]],), parts).items():
            out[parts[number]] = rows
        return out

    def ids(self) -> Ids:
        """Give all live ids, in no order."""
        return np.concatenate(list(self._shards.ask("ids").values()))

    def flush(self) -> None:
        """Make everything acknowledged survive the loss of power."""
        self._shards.ask("flush")

    def compact(self) -> None:
        """Give back the space of deletes and of moved lists, in all shards at once."""
        self._shards.ask("compact")

    def stats(self) -> dict[str, Any]:
        """Give sums over the shards, and `each`: a shard's process, node, folder and own stats."""
        answers = self._shards.ask("stats")
        each = [
            {
                "shard": number,
                "folder": str(manifest.folder_of(self.path, number)),
                "node": self._about.nodes[number],
                **answers[number],
            }
            for number in sorted(answers)
        ]
        summed = ("live", "deleted", "rows", "files_bytes", "wal_bytes")
        totals = {key: sum(one[key] for one in each) for key in summed}
        return {"shards": self.shards, **totals, "each": each}

    def verify(self) -> dict[str, Any]:
        """Read everything and compare; `faults` is empty when all is well, `each` has the shards'.

        An id on a shard that its hash does not name is a fault.
        """
        answers = self._shards.ask("verify")
        each = [answers[number] for number in sorted(answers)]
        faults = [f"shard {i}: {fault}" for i, one in enumerate(each) for fault in one["faults"]]
        return {"faults": faults, "each": each}

    def snapshot(self, path: Path | str) -> None:
        """Copy the cluster to a new folder, beside searches and changes; `open` opens the copy.

        Each shard is copied as it is at one moment, but not all at the same one: what is
        acknowledged before the call is in the copy; of a call of `insert` that runs beside it, the
        part of one shard may be in and that of another not.

        Args:
            path: Folder to make; must not exist or be empty. A shard's copy is on its own node.

        Raises:
            UserError: A bad path; nothing is left of the copy.
            NoSpace: A shard's disk is full; nothing is left of the copy.
        """
        target = Path(path).absolute()
        self._shards.ask("ping")  # a lost shard is told before a folder is made
        checks.fresh(target)
        try:
            self._shards.ask("snapshot", lambda number: (target,))
            manifest.write(target, self._about)
        except BaseException:
            self._shards.tell("discard_snapshot", lambda number: (target,))
            _remove(target)
            raise

    # ------------------------------------------------------------------ losing and recovering

    def recover(self) -> tuple[int, ...]:
        """Look which shards are lost and start them again on their files; gives which they were.

        Every change they acknowledged is there again. A process that only became unreachable is
        ended first; its lock is waited for, `lock_wait_s` at most.

        Raises:
            ShardLost: A shard's node is gone, or its process died again.
            UserError: Its folder is missing, or open in another process.
        """
        return self._shards.recover("open", self._how_to_open)

    def close(self) -> None:
        """Close every shard and end its process; further calls are errors."""
        if self._closed:
            return
        self._closed = True
        try:
            self._shards.ask("close", partial=True)
        finally:
            self._shards.end()
            runtime.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _how_to_open(self, number: int) -> tuple[Any, ...]:
        return self._opening


def _remove(path: Path) -> None:
    """Remove a folder in which processes that are being ended may still write."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
