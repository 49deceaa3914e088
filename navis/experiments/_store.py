"""What experiments share: sets of vectors, exact truths and built indexes, made once.

Everything lies in `runs/cache/navis`, named by all that determines it (for an index the engine
itself included), and is copied before it is changed. What was not used for hours goes when the
folder grows beyond its bound.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.atomic import write_json
from shorthaul.errors import UserError
from shorthaul.experiments import Context

from navis import Index, quantizer
from navis.datasets.synthetic import clustered, drift
from navis.datasets.wordnet import wordnet
from navis.formats import Truth, recall
from navis.groundtruth import exact

Array = npt.NDArray[Any]
_BOUND, _FRESH_S = 16 << 30, 6 * 3600


@dataclass(frozen=True)
class Set:
    """Vectors to build from, vectors to insert after them, queries; `key` is how they were made.

    Ids are rows: the base is 0 to len(base) - 1, the vectors to insert follow. `base` and `more`
    are memory-mapped, from `file`. `parts` are named ranges of rows, in order.
    """

    name: str
    base: Array
    more: Array
    queries: Array
    key: Mapping[str, Any]
    parts: Mapping[str, tuple[int, int]]
    file: Path

    @property
    def dim(self) -> int:
        """Dimension."""
        return int(self.base.shape[1])

    def rows(self, start: int, stop: int) -> Array:
        """Give rows [start, stop) of base and inserts together, in memory of their own."""
        n = len(self.base)
        cut = [self.base[start:stop], self.more[max(0, start - n) : max(0, stop - n)]]
        return np.concatenate(cut)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the base's vectors: what memory budgets are shares of."""
        return int(self.base.nbytes)


class Store:
    """The folder of an experiment's run; see the module."""

    def __init__(self, context: Context) -> None:
        root = context.run.path.parents[2]
        self.folder = root / "cache" / "navis"
        self.data = Path(context.settings.get("data") or root / "data")
        self.seed, self.workdir = context.seed, context.workdir

    # ------------------------------------------------------------------ sets

    def set(self, name: str, base: int, more: int = 0, queries: int = 1000) -> Set:
        """Give a set by its name: S768 and the like, D128 (drift), W384 (WordNet).

        Args:
            name: Letter and dimension. S: clusters. D: clusters whose last rows are a far region of
                their own. W: WordNet's glosses, in the order of their parts of speech.
            base: Rows to build from; of WordNet 0 is all that are not inserts or queries.
            more: Rows to insert.
            queries: How many; of WordNet they are taken out of the rows.
        """
        kind, dim = name[:1], name[1:]
        if kind not in "SDW" or not dim.isdigit():
            raise UserError(f"set {name!r}: write S128, D128, W384 or the like")
        if kind == "W":
            return self._wordnet(name, int(dim), base, more, queries)
        key = {"set": name, "rows": base + more, "queries": queries, "seed": self.seed}
        if kind == "D":
            key["late"] = more

        def make(folder: Path) -> None:
            n, common = base + more, {"seed": self.seed, "queries": queries}
            made = (
                clustered(n, int(dim), **common)  # type: ignore[arg-type]
                if kind == "S"
                else drift(n, int(dim), share=more / n, **common)  # type: ignore[arg-type]
            )
            np.save(folder / "rows.npy", made.base())
            asked = [made.queries, made.late_queries]
            np.save(folder / "queries.npy", np.concatenate(asked))

        folder = self.made("set", key, make)
        rows = np.load(folder / "rows.npy", mmap_mode="r")
        asked = np.load(folder / "queries.npy")
        parts = {"early": (0, base), "late": (base, base + more)} if kind == "D" else {}
        return Set(name, rows[:base], rows[base:], asked, key, parts, folder / "rows.npy")

    def _wordnet(self, name: str, dim: int, base: int, more: int, queries: int) -> Set:
        limit = base + more + queries if base else None
        glosses = wordnet(self.data, layers=dim // 384, limit=limit)
        rows = len(glosses.vectors)
        # Every part of speech is asked for.
        asked = np.unique(np.linspace(0, rows - 1, queries).round().astype(int))
        kept = np.setdiff1d(np.arange(rows), asked)
        base = base or len(kept) - more
        key = {"set": name, "rows": rows, "queries": queries}

        def make(folder: Path) -> None:
            np.save(folder / "rows.npy", np.asarray(glosses.vectors)[kept])

        file = self.made("set", key, make) / "rows.npy"
        vectors = np.load(file, mmap_mode="r")
        parts = {
            part: (int(np.searchsorted(kept, start)), int(np.searchsorted(kept, stop)))
            for part, (start, stop) in glosses.boundaries.items()
        }
        questions = np.array(np.asarray(glosses.vectors)[asked])
        return Set(name, vectors[:base], vectors[base : base + more], questions, key, parts, file)

    def truth(self, of: Set, rows: int, k: int = 20) -> Truth:
        """Give the exact neighbours of every query among the first `rows` rows.

        More than the ten that are asked for, so that ties are seen.
        """
        key = {**of.key, "among": rows, "k": k}

        def make(folder: Path) -> None:
            exactly = exact(of.rows(0, rows), of.queries, k)
            np.savez(folder / "truth.npz", ids=exactly.ids, distances=exactly.distances)

        with np.load(self.made("truth", key, make) / "truth.npz") as held:
            return Truth(held["ids"], held["distances"])

    # ------------------------------------------------------------------ indexes

    def index(
        self, of: Set, rows: int | None = None, for_budget: int | None = None, **build: Any
    ) -> Path:
        """Give the folder of an index of the base (or the first `rows` rows); never change it.

        It is built whole, with the codes that `Index.build` would choose for the budget given.
        """
        n = len(of.base) if rows is None else rows
        if for_budget is not None:
            build = {"code_bytes": quantizer.fitting_bytes(of.dim, n, for_budget), **build}
        key = {**of.key, "built": n, "engine": engine(), **build}

        def make(folder: Path) -> None:
            Index.build(folder / "index", of.rows(0, n), seed=self.seed, **build).close()

        return self.made("index", key, make) / "index"

    @contextmanager
    def copy(self, index: Path, name: str = "copy") -> Iterator[Path]:
        """Give a copy of an index to change; it is on disk, out of the page cache, then removed."""
        target = self.workdir / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(index, target)
        for file in target.rglob("*"):
            if file.is_file():
                handle = os.open(file, os.O_RDONLY)
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)
        try:
            yield target
        finally:
            shutil.rmtree(target, ignore_errors=True)

    # ------------------------------------------------------------------ made once

    def made(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Give the folder of `kind` and `key`, calling `make` with an empty one if there is none.

        Two processes that want the same thing make it once.
        """
        text = json.dumps(key, sort_keys=True)
        target = self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target / "key.json").is_file():
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                make(target)
                write_json(target / "key.json", key)  # last: what has one is whole
                self._evict()
            os.utime(target)
        return target

    def _evict(self) -> None:
        held = [(f.stat().st_mtime, f) for f in self.folder.glob("*-*/") if f.is_dir()]
        sizes = {f: sum(x.stat().st_size for x in f.rglob("*") if x.is_file()) for _, f in held}
        total = sum(sizes.values())
        for used, folder in sorted(held):
            if total <= _BOUND or time.time() - used < _FRESH_S:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


@cache
def engine() -> str:
    """What an index's bytes depend on besides its options: the engine's code."""
    core = importlib.import_module("navis._core")
    files = [core.__file__, importlib.import_module("navis.index").__file__, quantizer.__file__]
    sums = [hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()[:12] for file in files]
    return "-".join(sums)


def recall_of(ids: Array, truth: Truth, k: int = 10) -> float:
    """Recall of answers (n, k), 0 to 1; what is as near as the k-th counts as found."""
    return float(recall(ids.astype(np.int64), truth.ids, k, truth.distances))
