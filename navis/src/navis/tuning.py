"""The smallest search list that reaches a recall: found by trial, kept beside the index.

`tuning.json` in the index's folder: `version` 1 and `tuned`, a list of `Tuned`, at most one for
each k and target.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from shorthaul import atomic
from shorthaul.errors import EnvironmentLack, UserError

from navis.errors import Corrupt
from navis.formats import check_finite
from navis.formats.truth import Truth, recall

if TYPE_CHECKING:
    from navis.index import Index

Array = npt.NDArray[Any]
Say = Callable[["Trial"], None]

FILE, VERSION = "tuning.json", 1
_LONGEST = 2048  # search list beyond which another index is the better answer
_TIES = 10  # neighbours more than k: which of several equally near is found is chance
_SAMPLE = 500  # stored vectors asked for
_LOSS = 0.0012  # of recall, that stopping re-ranking early may cost


@dataclass(frozen=True)
class Tuned:
    """A search list that reaches a recall.

    Attributes:
        k: neighbours per query.
        target_recall: what was asked for.
        L: the search list.
        margin: of re-ranking; None where the layout reads every vector anyway.
        recall: what it reached.
        queries: how many it was measured with.
        given: whether they were given; else they were stored vectors.
        vectors: how many the index held. When it has grown much, tune again.
    """

    k: int
    target_recall: float
    L: int
    margin: float | None
    recall: float
    queries: int
    given: bool
    vectors: int


@dataclass(frozen=True)
class Trial:
    """What a search list gave: recall, and read requests per query."""

    L: int
    margin: float | None
    recall: float
    requests: float


# ---------------------------------------------------------------------- keeping


def load(folder: Path) -> tuple[Tuned, ...]:
    """Read what has been tuned; nothing where there is no file."""
    file = folder / FILE
    try:
        stat = file.stat()
    except FileNotFoundError:
        return ()
    return _parsed(file, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _parsed(file: Path, inode: int, changed: int) -> tuple[Tuned, ...]:
    try:
        found = atomic.read_json(file)
        version = found["version"]
        if isinstance(version, int) and version > VERSION:
            raise EnvironmentLack(
                f"{file}: version {version}, this navis reads {VERSION}: install a newer navis"
            )
        tuned = tuple(Tuned(**entry) for entry in found["tuned"])
        if version != VERSION or not all(
            t.L >= t.k >= 1 and 0 < t.target_recall <= 1 and 0 <= (t.margin or 0) <= 1
            for t in tuned
        ):
            raise ValueError
    except EnvironmentLack:
        raise
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        raise Corrupt(f"{file}: damaged; delete it and run navis tune again") from None
    return tuned


def keep(folder: Path, tuned: Tuned) -> None:
    """Add to what has been tuned, in place of an older one of this k and target."""
    known = [t for t in load(folder) if (t.k, t.target_recall) != (tuned.k, tuned.target_recall)]
    entries = sorted([*known, tuned], key=lambda t: (t.k, t.target_recall))
    document = {"version": VERSION, "tuned": [dataclasses.asdict(t) for t in entries]}
    try:
        atomic.write_json(folder / FILE, document)
    except OSError as error:
        raise UserError(f"{folder / FILE}: cannot be written ({error.strerror})") from error


def look_up(folder: Path, k: int, target_recall: float) -> Tuned:
    """The shortest list that was tuned for this k and this recall or more."""
    check_target(target_recall)
    known = load(folder)
    fit = [t for t in known if t.k == k and t.target_recall >= target_recall]
    if not fit:
        there = ", ".join(f"{t.target_recall:g} at k {t.k}" for t in known) or "nothing"
        raise UserError(
            f"target_recall {target_recall:g} at k {k} is not tuned (tuned: {there}): run "
            f"navis tune {folder} --target-recall {target_recall:g} --k {k}"
        )
    return min(fit, key=lambda t: t.L)


def check_target(target_recall: float) -> None:
    """Refuse what is no share."""
    if not 0 < target_recall <= 1:
        raise UserError(f"target_recall {target_recall:g}: use more than 0, at most 1, like 0.95")


# ---------------------------------------------------------------------- finding


class Stored:
    """The index's vectors as the rows of an array, read when they are asked for."""

    ndim = 2

    def __init__(self, index: Index) -> None:
        self._index, self.ids = index, index.ids()
        self._order = np.argsort(self.ids)
        self.shape, self.dtype = (len(self.ids), index.dim), index.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        return self._index.get(self.ids[rows])

    def rows_of(self, ids: Array) -> npt.NDArray[np.int64]:
        """Rows of these ids; -1 of those that are not there."""
        at = np.searchsorted(self.ids, ids, sorter=self._order)
        rows = self._order[np.minimum(at, len(self) - 1)]
        return np.where(self.ids[rows] == ids, rows, -1).astype(np.int64)


@dataclass(frozen=True)
class Questions:
    """Queries and their exact neighbours.

    Attributes:
        queries: float32, shape (n, d).
        truth: rows of the stored vectors and distances, a few more than k.
        own: rows of the queries where they are stored vectors: each is held out of its own answer.
    """

    queries: Array
    truth: Truth
    own: Array | None = None


def stored_questions(
    stored: Stored, metric: str, k: int, seed: int = 0, count: int = _SAMPLE
) -> Questions:
    """Ask for the neighbours that stored vectors have besides themselves."""
    ids = np.sort(stored.ids)  # so that the same are chosen whatever the order
    chosen = np.random.default_rng(seed).choice(ids, min(count, len(ids)), replace=False)
    own = stored.rows_of(np.sort(chosen))
    queries = stored[own].astype(np.float32)
    truth = truth_of(stored, queries, metric, k + 1)
    assert truth.distances is not None
    last = _own_last(truth.ids, own)
    others = np.take_along_axis(truth.ids, last, 1)[:, :-1]
    distances = np.take_along_axis(truth.distances, last, 1)[:, :-1]
    return Questions(queries, Truth(others, distances), own)


def _own_last(rows: Array, own: Array) -> Array:
    """Order of columns that puts each query's own row behind the others."""
    return np.argsort(rows == own[:, None], axis=1, kind="stable")


def truth_of(stored: Stored, queries: Array, metric: str, k: int) -> Truth:
    """Exact neighbours, `_TIES` more than k where there are; rows of the stored vectors."""
    from navis.groundtruth import exact

    base: Any = stored
    return exact(base, queries, min(k + _TIES, len(stored)), metric)


class Tuning:
    """Trials of an index with queries whose neighbours are known."""

    def __init__(
        self,
        index: Index,
        stored: Stored,
        asked: Questions,
        k: int,
        threads: int,
        say: Say | None,
    ) -> None:
        self.index, self.stored, self.asked, self.k = index, stored, asked, k
        self._threads, self._say = threads, say
        self._known: dict[tuple[int, float | None], float] = {}

    def recall(self, L: int, margin: float | None) -> float:
        """Search all queries; each pair of L and margin once."""
        if (L, margin) not in self._known:
            from navis.measure import Meter

            asked, held_out = self.asked, int(self.asked.own is not None)
            with Meter(self.index) as meter:
                given, _ = self.index.search(
                    asked.queries,
                    self.k + held_out,
                    L=L + held_out,
                    margin=margin,
                    threads=self._threads,
                )
            rows = self.stored.rows_of(given)
            if asked.own is not None:
                rows = np.take_along_axis(rows, _own_last(rows, asked.own), 1)
            found = recall(rows, asked.truth.ids, self.k, asked.truth.distances)
            self._known[L, margin] = found
            if self._say:
                self._say(Trial(L, margin, found, meter.reads / len(asked.queries)))
        return self._known[L, margin]

    def shortest(self, target: float, margin: float | None, longest: int) -> int | None:
        """The least L from k to `longest` whose recall reaches the target."""
        low, high = self.k - 1, self.k  # too short, perhaps long enough
        while self.recall(high, margin) < target:
            if high >= longest:
                return None
            low, high = high, min(2 * high, longest)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.recall(middle, margin) >= target else (middle, high)
        return high

    def margin(self, L: int) -> float:
        """The largest margin that costs next to nothing at this L; 0 where none does."""
        full = self.recall(L, 0.0)
        low, high = 0.5, 1.0
        while high - low > 0.02:
            middle = (low + high) / 2
            cheap = full - self.recall(L, middle) <= _LOSS
            low, high = (middle, high) if cheap else (low, middle)
        return low if low > 0.5 else 0.0

    def find(self, target: float) -> tuple[int, float | None]:
        """L and margin that reach the target.

        Raises:
            UserError: No list within reason does; the message says what is reached.
        """
        longest = max(self.k, min(_LONGEST, len(self.index)))
        every = None if self.index.layout == "packed" else 0.0
        L = self.shortest(target, every, longest)
        if L is None:
            best = max(self._known.values())
            raise UserError(
                f"target_recall {target:g} is out of reach: recall is {best:.4f} at L {longest}; "
                "ask for less, or build with a larger degree or build_list"
            )
        if every is None:
            return L, None
        # Stopping early may need a list a little longer; where it does not help it is left.
        margin = self.margin(L)
        slack = min(longest, L + max(2, L // 8))
        for length in range(L, slack + 1):
            if margin and self.recall(length, margin) >= target:
                return length, margin
        return L, 0.0


def tune(
    index: Index,
    target_recall: float,
    *,
    k: int = 10,
    queries: npt.ArrayLike | None = None,
    truth: Truth | None = None,
    threads: int = 1,
    seed: int = 0,
    say: Say | None = None,
) -> Tuned:
    """Find the smallest search list that reaches a recall, and keep it with the index.

    Args:
        index: It may be open readonly.
        target_recall: Share of the k nearest to be found, at most 1.
        k: Neighbours per query.
        queries: (n, d) as they will be asked. By default stored vectors, asked for their neighbours
            besides themselves.
        truth: Their exact neighbours, k or more; computed by default.
        threads: Threads of the searches.
        seed: Of the choice of vectors.
        say: Told of every trial.

    Raises:
        UserError: Bad input, or the recall is out of reach.
    """
    check_target(target_recall)
    there = len(index)
    most = there if queries is not None else there - 1  # a held-out vector is no neighbour
    if not 1 <= k <= most:
        raise UserError(f"k {k}: the index holds {there} vectors; use 1 to {most}")
    stored = Stored(index)
    if queries is None:
        if truth is not None:
            raise UserError("truth without queries: give both")
        asked = stored_questions(stored, index.metric, k, seed)
    else:
        asked = _given(stored, index.metric, np.asarray(queries, np.float32), truth, k)
    trials = Tuning(index, stored, asked, k, threads, say)
    L, margin = trials.find(target_recall)
    tuned = Tuned(
        k=k,
        target_recall=float(target_recall),
        L=L,
        margin=margin,
        recall=trials.recall(L, margin),
        queries=len(asked.queries),
        given=queries is not None,
        vectors=there,
    )
    keep(index.path, tuned)
    return tuned


def _given(stored: Stored, metric: str, queries: Array, truth: Truth | None, k: int) -> Questions:
    if queries.ndim != 2 or queries.shape[1] != stored.shape[1] or not len(queries):
        raise UserError(f"queries of shape {queries.shape}: give (n, {stored.shape[1]}), 1 or more")
    check_finite(queries, "queries")
    if truth is None:
        return Questions(queries, truth_of(stored, queries, metric, k))
    if len(truth.ids) != len(queries) or truth.ids.shape[1] < k:
        raise UserError(
            f"truth is of {truth.ids.shape[0]} queries with {truth.ids.shape[1]} neighbours: give "
            f"one of {len(queries)} with {k} or more"
        )
    rows = stored.rows_of(truth.ids.astype(np.uint64))
    unknown = truth.ids[:, :k][rows[:, :k] < 0]
    if unknown.size:
        raise UserError(f"truth names id {unknown[0]}, which is not in the index: make it anew")
    return Questions(queries, Truth(rows, truth.distances))
