"""One shard: an index in a process of its own. Knows nothing of Ray."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import ShorthaulError, UserError

from navis.cluster import manifest
from navis.cluster.merging import Floats, Ids
from navis.cluster.routing import shard_of
from navis.index import Index

_LOCKED = "is open for writing already"
_RETRY_S = 0.05


class Shard:
    """What an actor runs; every call goes by `call`, from any thread."""

    def __init__(self, path: Path, cluster: str, number: int, of: int) -> None:
        self._path, self._folder = path, manifest.folder_of(path, number)
        self._cluster, self._number, self._of = cluster, number, of
        self._index: Index | None = None
        self._copies: set[Path] = set()

    def call(self, method: str, *args: Any) -> tuple[type[ShorthaulError] | None, Any]:
        """Give None and the answer, or the kind of an error and its line.

        An exception would arrive wrapped, with a traceback for its message.
        """
        try:
            return None, getattr(self, method)(*args)
        except ShorthaulError as error:
            return type(error), str(error)

    def ping(self) -> int:
        """Give the process's id."""
        return os.getpid()

    # ------------------------------------------------------------------ from birth to death

    def build(self, vectors: Any, ids: Any, labels: Any, values: Any, options: Any) -> None:
        """Make the shard's folder and build its index there."""
        try:
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be made ({error.strerror})") from error
        try:
            manifest.write_shard(self._folder, self._cluster, self._number, self._of)
            self._index = Index.build(
                self._folder / manifest.INDEX, vectors, ids, labels=labels, values=values, **options
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def open(
        self, expected: tuple[int, str, str], options: dict[str, Any], lock_wait_s: float
    ) -> None:
        """Open the index, which is of the dimension, metric and type that are expected.

        A process that has just been killed may hold the lock a little longer: it is waited for.
        """
        manifest.check_shard(self._folder, self._cluster, self._number)
        until = time.monotonic() + lock_wait_s
        while self._index is None:
            try:
                self._index = Index.open(self._folder / manifest.INDEX, **options)
            except UserError as error:
                if _LOCKED not in str(error):
                    raise
                if time.monotonic() >= until:
                    raise UserError(f"{error}; waited {lock_wait_s:g} s for it") from None
                time.sleep(_RETRY_S)
        index = self._index
        found = index.dim, index.metric, index.dtype.name
        if found != tuple(expected):
            raise UserError(f"{self._folder} holds {found}, its cluster {tuple(expected)}")

    def close(self) -> None:
        """Close the index, if it is open."""
        if self._index is not None:
            self._index.close()

    def discard(self) -> None:
        """Remove what `build` has made."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------------ the index's calls

    @property
    def index(self) -> Index:
        """The open index."""
        assert self._index is not None, "opened before it is used"
        return self._index

    def search(
        self, queries: Floats, k: int, L: int, options: dict[str, Any]
    ) -> tuple[Ids, Floats, int]:
        """Give the k nearest here, fewer where there are fewer, and how many vectors there are."""
        while True:
            there = len(self.index)
            few = min(k, there)
            if few == 0:
                shape = (len(queries), 0)
                return np.empty(shape, np.uint64), np.empty(shape, np.float32), there
            try:
                ids, distances = self.index.search(queries, few, L=L, **options)
            except UserError:
                if len(self.index) >= few:
                    raise
                continue  # deletes came between the count and the search
            return ids, distances, there

    def insert(self, ids: Any, vectors: Any, labels: Any, values: Any, threads: int) -> int:
        """Insert; acknowledged when it returns."""
        return self.index.insert(ids, vectors, labels=labels, values=values, threads=threads)

    def delete(self, ids: Any) -> int:
        """Delete; give how many were there."""
        return self.index.delete(ids)

    def ids(self) -> Ids:
        """Give all live ids."""
        return self.index.ids()

    def get(self, ids: Any) -> Any:
        """Give stored vectors."""
        return self.index.get(ids)

    def flush(self) -> None:
        """Make everything acknowledged survive the loss of power."""
        self.index.flush()

    def compact(self) -> None:
        """Give back space."""
        self.index.compact()

    def stats(self) -> dict[str, Any]:
        """Give the index's, with the process's id."""
        return {"pid": os.getpid(), **self.index.stats()}

    def verify(self) -> dict[str, Any]:
        """Read everything and compare; an id that is routed elsewhere is a fault too."""
        found = self.index.verify()
        live = self.index.ids()
        astray = live[shard_of(live, self._of) != self._number] if len(live) else live
        faults = list(found["faults"])
        if len(astray):
            faults.append(f"{len(astray)} ids belong on other shards, {astray[0]} for one")
        return {**found, "faults": faults}

    def snapshot(self, path: Path) -> None:
        """Copy the shard to its folder in another cluster's."""
        folder = manifest.folder_of(path, self._number)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
        self._copies.add(folder)
        try:
            manifest.write_shard(folder, self._cluster, self._number, self._of)
            self.index.snapshot(folder / manifest.INDEX)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def discard_snapshot(self, path: Path) -> None:
        """Remove what `snapshot` has made there, because another shard's failed."""
        folder = manifest.folder_of(path, self._number)
        if folder in self._copies:
            shutil.rmtree(folder, ignore_errors=True)
