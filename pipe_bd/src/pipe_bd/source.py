"""Batches by global step, independent of who reads them.

A source answers "rows [lo, hi) of batch s". Every rank that needs rows asks for just those, the
order depends only on the seed, and resuming at step s needs no replay. Labels are never read: the
blocks learn from the teacher alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from shorthaul.errors import UserError
from torch import Tensor

from pipe_bd.rng import borrowed, derive, reseed


@dataclass(frozen=True)
class Batch:
    """Rows of one batch.

    Args:
        x: the model's main input, shape (rows, ...).
        carry: small tensors that accompany x through every stage unchanged, each (rows, ...).
    """

    x: Tensor
    carry: Mapping[str, Tensor] = field(default_factory=dict)


class BatchSource(Protocol):
    """A finite sequence of batches of one size with random access by step."""

    steps: int
    batch_size: int

    def load(self, step: int, lo: int, hi: int) -> Batch:
        """Rows [lo, hi) of batch ``step``."""
        ...

    def fingerprint(self) -> str:
        """Identifies the batch sequence; a resumed run must see the same one."""
        ...


class IndexedSource:
    """Shuffled epochs over anything that can be indexed by row.

    Args:
        fetch: rows for a 1-d int64 tensor of row numbers.
        length: number of rows.
        batch_size: rows per batch.
        steps: number of batches; the data is repeated as needed. None means one epoch.
        seed: orders the epochs; every epoch has its own order.
        shuffle: False keeps the order of the rows.
        transform: augmentation ``f(x, generator)`` for one row x, with a generator keyed by (seed,
            epoch, row).
        identity: what the data is, for the fingerprint.
        threaded: ``fetch`` and ``transform`` leave torch's, numpy's and Python's global generators
            alone, so a thread may read ahead while the blocks draw from them. Otherwise each row is
            fetched between two steps, with these generators seeded for (seed, epoch, row): random
            augmentation inside ``fetch`` is then as independent of the schedule as ``transform``.
    """

    def __init__(
        self,
        fetch: Callable[[Tensor], Batch],
        length: int,
        batch_size: int,
        steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        identity: str = "",
        threaded: bool = False,
    ) -> None:
        if length <= 0:
            raise UserError("the data is empty: give at least one row")
        if batch_size <= 0:
            raise UserError(f"batch size {batch_size} is not positive: use 1 or more")
        if batch_size > length:
            raise UserError(
                f"batch size {batch_size} is larger than the data ({length} rows): use at most "
                f"{length}"
            )
        self.fetch, self.length, self.batch_size = fetch, length, batch_size
        self.seed, self.shuffle, self.transform, self.identity = seed, shuffle, transform, identity
        self.threaded = threaded
        # The remainder of an epoch is dropped: batch composition must not depend on where an epoch
        # ends.
        self.per_epoch = length // batch_size
        self.steps = self.per_epoch if steps is None else steps
        if self.steps <= 0:
            raise UserError(f"{self.steps} steps leave nothing to train on: use 1 or more")
        self._order: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """Row numbers of one epoch, shape (length,)."""
        if self._order is None or self._order[0] != epoch:
            if self.shuffle:
                generator = torch.Generator().manual_seed(derive(self.seed, "epoch", epoch))
                order = torch.randperm(self.length, generator=generator)
            else:
                order = torch.arange(self.length)
            self._order = (epoch, order)
        return self._order[1]

    def load(self, step: int, lo: int, hi: int) -> Batch:
        """Rows [lo, hi) of batch ``step``."""
        epoch, index = divmod(step, self.per_epoch)
        first = index * self.batch_size
        numbers = self.order(epoch)[first + lo : first + hi]
        batch = self.fetch(numbers) if self.threaded else self._one_by_one(numbers, epoch)
        if self.transform is None:
            return batch
        rows = [
            self.transform(
                row, torch.Generator().manual_seed(derive(self.seed, "augment", epoch, int(n)))
            )
            for row, n in zip(batch.x, numbers, strict=True)
        ]
        return Batch(torch.stack(rows), batch.carry)

    def _one_by_one(self, numbers: Tensor, epoch: int) -> Batch:
        rows = []
        with borrowed():
            for n in numbers:
                reseed(derive(self.seed, "fetch", epoch, int(n)))
                rows.append(self.fetch(n.view(1)))
        carry = {k: torch.cat([r.carry[k] for r in rows]) for k in rows[0].carry}
        return Batch(torch.cat([r.x for r in rows]), carry)

    def fingerprint(self) -> str:
        """Hash of everything that orders the batches."""
        text = f"{self.identity}|{self.length}|{self.batch_size}|{self.seed}|{self.shuffle}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def tensor_source(
    x: Tensor, batch_size: int, *, carry: Mapping[str, Tensor] | None = None, **options: Any
) -> IndexedSource:
    """Batches of a tensor that fits in memory.

    Args:
        x: data, shape (n, ...).
        batch_size: rows per batch.
        carry: tensors that travel with x, each (n, ...).
        **options: of :class:`IndexedSource`.
    """
    extra = dict(carry or {})
    for name, t in extra.items():
        if len(t) != len(x):
            raise UserError(f"carry {name!r} has {len(t)} rows, the data {len(x)}: they must agree")

    def fetch(numbers: Tensor) -> Batch:
        return Batch(x[numbers], {k: v[numbers] for k, v in extra.items()})

    return IndexedSource(fetch, len(x), batch_size, **{"threaded": True, **options})


def dataset_source(dataset: Any, batch_size: int, **options: Any) -> IndexedSource:
    """Batches of a map-style torch Dataset; of a (x, label, ...) sample only x is kept.

    Args:
        dataset: has ``__len__`` and ``__getitem__`` giving a tensor, or a tuple whose first item is
            one.
        batch_size: rows per batch.
        **options: of :class:`IndexedSource`.
    """

    def fetch(numbers: Tensor) -> Batch:
        samples = [dataset[int(n)] for n in numbers]
        rows = [s[0] if isinstance(s, tuple | list) else s for s in samples]
        return Batch(torch.stack([torch.as_tensor(row) for row in rows]))

    return IndexedSource(fetch, len(dataset), batch_size, **options)


class StreamSource:
    """Batches of a re-iterable loader, read in order.

    Only sequential access is possible: the one rank that reads hands row ranges on to the others of
    its stage. Re-reading an earlier batch starts the loader again, with torch's, numpy's and
    Python's global generators seeded as they were the first time: shuffling and augmentation in
    this process depend on the seed, the epoch and the batch only. The caller's generators are put
    back after every read.

    Args:
        loader: anything that can be iterated repeatedly and gives tensors, tuples whose first item
            is the input, or batches.
        steps: number of batches; None takes ``len(loader)``. The loader is started again as often
            as needed.
        identity: what the data is, for the fingerprint.
        seed: of shuffling and augmentation.
    """

    streaming = True

    def __init__(
        self,
        loader: Iterable[Any],
        steps: int | None = None,
        identity: str = "stream",
        seed: int = 0,
    ) -> None:
        self.loader, self.identity, self.seed = loader, identity, seed
        if isinstance(loader, Iterator):
            raise UserError(
                f"the data is a {type(loader).__name__}, which can be read only once: give a list "
                "or a loader that can be started again"
            )
        if steps is None and not hasattr(loader, "__len__"):
            raise UserError("the loader has no length: say how many steps to run")
        self._rewind()
        self.batch_size = len(self._read().x)
        self.steps = len(loader) if steps is None else steps  # type: ignore[arg-type]
        if self.batch_size == 0:
            raise UserError("the data is empty: the loader's first batch has no rows")
        if self.steps <= 0:
            raise UserError(f"{self.steps} steps leave nothing to train on: use 1 or more")

    def _rewind(self) -> None:
        self._iterator: Iterator[Any] | None = None
        self._next = self._epoch = self._index = 0
        self._last: Batch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process starts at the beginning: iterators cannot travel."""
        start = {"_iterator": None, "_last": None, "_next": 0, "_epoch": 0, "_index": 0}
        return {**vars(self), **start}

    def _read(self) -> Batch:
        """The next batch; starts the loader again where it ends."""
        with borrowed():
            reseed(derive(self.seed, "stream", self._epoch, self._index))
            if self._iterator is None:
                self._iterator = iter(self.loader)
            item = next(self._iterator, None)
            if item is None and self._index == 0:
                raise UserError("the data is empty: the loader gave no batch")
        if item is None:
            self._iterator, self._epoch, self._index = None, self._epoch + 1, 0
            return self._read()
        self._last = _as_batch(item)
        self._next, self._index = self._next + 1, self._index + 1
        return self._last

    def load(self, step: int, lo: int, hi: int) -> Batch:
        """Rows [lo, hi) of batch ``step``."""
        if step < self._next - 1:
            self._rewind()
        while self._next <= step:
            self._read()
        assert self._last is not None
        if len(self._last.x) != self.batch_size:
            raise UserError(
                f"batch {step} has {len(self._last.x)} rows, the first had {self.batch_size}: use "
                "drop_last in the loader"
            )
        return Batch(self._last.x[lo:hi], {k: v[lo:hi] for k, v in self._last.carry.items()})

    def fingerprint(self) -> str:
        """Hash of everything that orders the batches, as far as it is known."""
        text = f"{self.identity}|{self.batch_size}|{self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_batch(item: Any) -> Batch:
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            raise UserError(f"the loader gave a mapping of {sorted(item)}: input_ids is missing")
        carry = {k: v for k, v in item.items() if k == "attention_mask" and isinstance(v, Tensor)}
        return Batch(item["input_ids"], carry)
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if not isinstance(item, Tensor):
        raise UserError(
            f"the loader gave {type(item).__name__}: give tensors, (x, ...) tuples or input_ids "
            "mappings"
        )
    return Batch(item)


def as_source(data: Any, *, batch_size: int | None, steps: int | None, seed: int) -> BatchSource:
    """Turn what a user has into a source: a source, a tensor, a map-style dataset or a loader.

    Args:
        data: see above.
        batch_size: needed for tensors and datasets.
        steps: batches to train on; None takes one epoch.
        seed: order of the batches.

    Raises:
        UserError: the data is empty, of an unknown kind, or the batch size is missing.
    """
    if hasattr(data, "load") and hasattr(data, "fingerprint"):
        for name, value in (("batch_size", batch_size), ("steps", steps)):
            if value is not None:
                raise UserError(f"{name} belongs to the source: make it with {name}={value}")
        return data
    if isinstance(data, Tensor) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        if len(data) == 0:
            raise UserError("the data is empty: give at least one row")
        is_batches = (
            isinstance(data, Sequence) and isinstance(data[0], Tensor) and batch_size is None
        )
        if is_batches:
            return StreamSource(data, steps, seed=seed)
        if batch_size is None:
            raise UserError("batch_size is missing: it is needed for a tensor or a dataset")
        make = tensor_source if isinstance(data, Tensor) else dataset_source
        return make(data, batch_size, steps=steps, seed=seed)
    if isinstance(data, Iterable):
        return StreamSource(data, steps, seed=seed)
    raise UserError(
        f"cannot read batches from {type(data).__name__}: give a tensor, a dataset or a loader"
    )
