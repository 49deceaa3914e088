"""``navis bench``: inserts and searches at the same time, or the steps of a runbook."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags

if TYPE_CHECKING:
    import numpy.typing as npt

    from navis.index import Index


@dataclass(kw_only=True)
class Bench(SessionFlags, Common):
    """Insert rows of a file while queries are asked; or do what a runbook says.

    Works on a copy beside the index, which is removed at the end, unless told to --keep.
    """

    index: tyro.conf.Positional[Path]
    """Index folder; with --runbook a new one, or an empty index."""
    data: tyro.conf.Positional[str]
    """File of vectors; ids are its rows."""
    queries: tyro.conf.Positional[str]
    """File of queries, asked round and round."""
    start: int = 0
    """First row to insert."""
    count: int | None = None
    """Rows to insert; all that follow by default."""
    insert_threads: int = 1
    """Threads that insert; 0: searches only."""
    search_threads: int = 1
    """Threads that search."""
    batch: int = 16
    """Vectors, or queries, of one call."""
    k: int = 10
    """Neighbours per query."""
    L: int = 40
    """Search list."""
    seconds: float | None = None
    """Stop after so long; without inserts 10 by default."""
    truth: str | None = None
    """Truth set of the queries when all is inserted: recall is measured at the end."""
    keep: bool = False
    """Work on the index itself, not on a copy."""
    runbook: Path | None = None
    """A big-ann streaming runbook (YAML), with exact recall at each of its searches."""
    dataset: str | None = None
    """Which one of the runbook's data sets, where it has several."""
    metric: Literal["l2", "inner_product", "cosine"] = "l2"
    """Of an index the runbook makes."""

    def run(self) -> None:
        """Run and print a table."""
        self._check()
        if self.runbook is not None:
            found = self._runbook(self.runbook)
            emit(found, self.json, runbook_table(found["steps"]))
            return
        found = self._workload()
        emit(found, self.json, workload_table(found))

    def _check(self) -> None:
        for flag in ("insert_threads", "search_threads", "start"):
            if getattr(self, flag) < 0:
                raise UserError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: use 0 or more")
        if self.insert_threads + self.search_threads == 0:
            raise UserError("--insert-threads 0 and --search-threads 0: nothing to do")
        if self.batch < 1 or self.k < 1 or self.k > self.L:
            raise UserError(f"--batch {self.batch}, --k {self.k}, --L {self.L}: use k from 1 to L")
        if self.seconds is not None and self.seconds <= 0:
            raise UserError(f"--seconds {self.seconds}: use more than 0")

    # ------------------------------------------------------------------ workload

    def _workload(self) -> dict[str, Any]:
        import numpy as np

        from navis import workload
        from navis.formats import read_truth, read_vectors, recall

        queries = np.asarray(read_vectors(self.queries), dtype=np.float32)
        vectors = read_vectors(self.data, start=self.start, count=self.count)
        if self.insert_threads and not len(vectors):
            raise UserError(f"{self.data}: no rows from {self.start}; nothing to insert")
        truth = None if self.truth is None else read_truth(self.truth)
        if truth is not None and len(truth.ids) != len(queries):
            raise UserError(
                f"{self.truth} is of {len(truth.ids)} queries, {self.queries} holds {len(queries)}"
            )
        vectors = np.array(vectors)  # what the disk gives is to be the index's alone
        seconds = self.seconds
        if not self.insert_threads and seconds is None:
            seconds = 10.0
        with self._copy() as folder, self.open(folder) as index:
            result = workload.run(
                index,
                np.arange(self.start, self.start + len(vectors), dtype=np.uint64),
                vectors,
                queries,
                k=self.k,
                L=self.L,
                insert_threads=self.insert_threads,
                search_threads=self.search_threads,
                batch=self.batch,
                seconds=seconds,
            )
            found = {
                "insert_threads": self.insert_threads,
                "search_threads": self.search_threads,
                "inserted": result.inserted,
                "searched": result.searched,
                **result.summary(),
            }
            if truth is not None:
                ids, _ = index.search(queries, self.k, L=self.L, threads=self.threads)
                found["recall"] = recall(ids.astype(np.int64), truth.ids, self.k, truth.distances)
        return found

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Path]:
        """Give the folder to work in: a copy on the same disk, or the index itself."""
        if self.keep or not self.index.is_dir():
            yield self.index
            return
        place = Path(tempfile.mkdtemp(prefix=f".{self.index.name}-bench-", dir=self.index.parent))
        try:
            shutil.copytree(self.index, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
            _let_write(place)  # whatever the index itself is protected against
            yield place
        finally:
            _let_write(place)
            shutil.rmtree(place, ignore_errors=True)

    # ------------------------------------------------------------------ runbook

    def _runbook(self, file: Path) -> dict[str, Any]:
        import numpy as np

        from navis.formats import load_runbook, read_vectors

        book = load_runbook(file, self.dataset)
        data = read_vectors(self.data)
        if len(data) < book.rows:
            raise UserError(f"{self.data} holds {len(data)} rows, {file} asks for {book.rows}")
        queries = np.asarray(read_vectors(self.queries), dtype=np.float32)
        new = not self.index.exists()
        steps: list[dict[str, Any]] = []
        try:
            with self._empty(data) as index:
                live: dict[int, int] = {}  # tag to row
                for step in book.steps:
                    done = {"step": step.number, "operation": step.does.operation}
                    steps.append({**done, **self._step(index, step.does, data, queries, live)})
        finally:
            if new and not self.keep:
                shutil.rmtree(self.index, ignore_errors=True)
        return {"dataset": book.dataset, "k": self.k, "L": self.L, "steps": steps}

    @contextlib.contextmanager
    def _empty(self, data: npt.NDArray[Any]) -> Iterator[Index]:
        from navis.index import Index

        if not self.index.exists():
            options: dict[str, Any] = {"metric": self.metric, "dtype": str(data.dtype)}
            if self.metric == "inner_product":
                options["radius"] = 1.1 * _longest(data)
            Index.create(self.index, data.shape[1], **options).close()
            with self.open(self.index) as index:
                yield index
            return
        with self._copy() as folder, self.open(folder) as index:
            if len(index):
                raise UserError(f"{self.index} holds vectors; a runbook starts from nothing")
            yield index

    def _step(
        self,
        index: Index,
        does: Any,
        data: npt.NDArray[Any],
        queries: npt.NDArray[Any],
        live: dict[int, int],
    ) -> dict[str, Any]:
        import numpy as np

        from navis.measure import Meter

        kind = does.operation
        if kind == "search":
            return self._search(index, data, queries, live)
        with Meter(index) as meter:
            if kind == "delete":
                index.delete(np.arange(does.start, does.end))
                count = does.end - does.start
                for tag in range(does.start, does.end):
                    del live[tag]
            else:
                start = does.start if kind == "insert" else does.tags_start
                first = does.start if kind == "insert" else does.ids_start
                count = does.end - does.start if kind == "insert" else does.ids_end - first
                for at in range(0, count, 256):
                    rows = data[first + at : first + min(at + 256, count)]
                    tags = np.arange(start + at, start + at + len(rows))
                    index.insert(tags, rows, threads=self.threads)
                live.update(zip(range(start, start + count), range(first, first + count),
                                strict=True))  # fmt: skip
        return {
            "rows": count,
            "live": len(live),
            "seconds": meter.wall_s,
            "per_s": count / meter.wall_s,
            "requests": (meter.reads + meter.writes) / count,
        }

    def _search(
        self,
        index: Index,
        data: npt.NDArray[Any],
        queries: npt.NDArray[Any],
        live: dict[int, int],
    ) -> dict[str, Any]:
        import numpy as np

        from navis.formats import recall
        from navis.groundtruth import exact
        from navis.measure import Meter

        with Meter(index) as meter:
            ids, _, micros = index.search(
                queries, self.k, L=self.L, threads=self.threads, latencies=True
            )
        tags = np.fromiter(live.keys(), np.int64, len(live))
        rows = np.fromiter(live.values(), np.int64, len(live))
        # Some neighbours more than asked for: which of several equally near is found is chance.
        k = min(self.k + 10, len(live))
        if np.array_equal(tags, rows):
            gone = np.ones(len(data), bool)
            gone[rows] = False
            truth = exact(data, queries, k, index.metric, exclude=gone)
            nearest = truth.ids
        else:
            truth = exact(data[rows], queries, k, index.metric)
            nearest = np.where(truth.ids >= 0, tags[truth.ids], -1)
        return {
            "rows": len(queries),
            "live": len(live),
            "seconds": meter.wall_s,
            "recall": recall(ids.astype(np.int64), nearest, self.k, truth.distances),
            **meter.result(len(queries), micros),
        }


def _longest(data: npt.NDArray[Any]) -> float:
    """Length of the longest row, some rows at a time."""
    import numpy as np

    longest = 0.0
    for at in range(0, len(data), 8192):
        rows = data[at : at + 8192].astype(np.float64)
        longest = max(longest, float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max())))
    return longest


def workload_table(found: dict[str, Any]) -> str:
    """Give the workload's figures as aligned text."""
    lines = ["          threads     count     per s  requests   mean ms     p50     p99      max"]
    if found["insert_threads"]:
        lines.append(
            f"insert    {found['insert_threads']:>7}  {found['inserted']:>8}  "
            f"{found['inserts_per_s']:>8.1f}  {found['requests_per_insert']:>8.1f}"
        )
    if found["search_threads"]:
        took = found.get("search_ms", dict.fromkeys(("mean", "p50", "p99", "max"), float("nan")))
        lines.append(
            f"search    {found['search_threads']:>7}  {found['searched']:>8}  "
            f"{found['searches_per_s']:>8.1f}  {found['requests_per_search']:>8.1f}  "
            f"{took['mean']:>8.2f}  {took['p50']:>6.2f}  {took['p99']:>6.2f}  {took['max']:>7.2f}"
        )
    if "recall" in found:
        lines.append(f"recall    {found['recall']:.4f} when all was inserted")
    if found["short"]:
        lines.append(f"{found['short']} answers with fewer than k ids, or one id twice")
    return "\n".join(lines)


def runbook_table(steps: list[dict[str, Any]]) -> str:
    """Give the runbook's steps as aligned text."""
    lines = ["step  operation      rows      live   seconds     per s  requests  recall"]
    for s in steps:
        rate = s["per_s"] if "per_s" in s else s["qps"]
        share = f"{s['recall']:.4f}" if "recall" in s else "     -"
        lines.append(
            f"{s['step']:>4}  {s['operation']:<9}  {s['rows']:>8}  {s['live']:>8}  "
            f"{s['seconds']:>8.2f}  {rate:>8.1f}  {s['requests']:>8.1f}  {share}"
        )
    return "\n".join(lines)


def _let_write(folder: Path) -> None:
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        inside.chmod(0o700)
