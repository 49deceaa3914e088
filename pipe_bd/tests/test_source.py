"""Batches depend on the seed and the step, not on who reads which rows in which order."""

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pipe_bd.source import (
    Batch,
    IndexedSource,
    StreamSource,
    as_source,
    dataset_source,
    tensor_source,
)


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape, generator=generator)


class Noisy(Dataset[Any]):
    """Augments through every global generator there is, as users' datasets do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        draws = [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002
        return torch.tensor([float(n), *draws]), n


def rows(step: int, parts: list[tuple[int, int]], source: Any) -> Tensor:
    return torch.cat([source.load(step, lo, hi).x for lo, hi in parts])


def split(cuts: list[int]) -> list[tuple[int, int]]:
    edges = np.cumsum([0, *cuts]).tolist()
    return list(pairwise(edges))


@pytest.mark.parametrize("kind", ["tensor", "augmented", "dataset"])
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    extra=st.integers(0, 9),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_any_sharding_and_any_order_read_the_same_rows(
    kind: str, cuts: list[int], extra: int, seed: int, order: random.Random
) -> None:
    batch = sum(cuts)
    length = batch + extra

    def make() -> IndexedSource:
        if kind == "dataset":
            return dataset_source(Noisy(length), batch, steps=4, seed=seed)
        x = torch.arange(length).float().view(-1, 1)
        transform = noise if kind == "augmented" else None
        return tensor_source(x, batch, steps=4, seed=seed, transform=transform)

    whole = make()
    wanted = [whole.load(s, 0, batch).x for s in range(4)]
    steps = list(range(4))
    order.shuffle(steps)
    sharded = make()
    for step in steps:
        torch.rand(order.randint(1, 9))
        random.random()
        parts = split(cuts)
        order.shuffle(parts)
        found = {part: sharded.load(step, *part).x for part in parts}
        assert torch.equal(torch.cat([found[p] for p in sorted(parts)]), wanted[step])


def test_an_epoch_reads_every_row_once_in_an_order_of_its_own() -> None:
    source = tensor_source(torch.arange(12), 3, steps=8, seed=4)
    epochs = [torch.cat([source.load(s, 0, 3).x for s in range(e, e + 4)]) for e in (0, 4)]
    assert [sorted(e.tolist()) for e in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert tensor_source(torch.arange(12), 3, seed=5).load(0, 0, 3).x.tolist() != epochs[0][:3]


def test_the_rest_of_an_epoch_is_dropped_and_order_can_be_kept() -> None:
    source = tensor_source(torch.arange(10), 4, steps=3, shuffle=False)
    assert [source.load(s, 0, 4).x.tolist() for s in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [0, 1, 2, 3],
    ]
    assert tensor_source(torch.arange(10), 4).steps == 2


def test_augmentation_differs_by_epoch_and_row_and_seed() -> None:
    x = torch.zeros(2, 1)

    def values(seed: int) -> set[float]:
        source = tensor_source(x, 2, steps=2, seed=seed, transform=noise)
        return {float(v) for s in range(2) for v in source.load(s, 0, 2).x}

    assert len(values(0) | values(1)) == 8


def test_what_travels_along_follows_its_rows() -> None:
    x = torch.arange(6)
    source = tensor_source(x, 3, carry={"mask": x * 10}, seed=1)
    batch = source.load(1, 1, 3)
    assert torch.equal(batch.carry["mask"], batch.x * 10)
    slow = tensor_source(x, 3, carry={"mask": x * 10}, seed=1, threaded=False)
    assert torch.equal(slow.load(1, 1, 3).carry["mask"], batch.carry["mask"])


def test_only_sources_that_leave_the_generators_alone_are_read_by_a_thread() -> None:
    assert tensor_source(torch.arange(4), 2).threaded
    assert not dataset_source(Noisy(4), 2).threaded
    assert not hasattr(StreamSource([torch.ones(2)]), "threaded")


@pytest.mark.parametrize("make", [dataset_source, None], ids=["dataset", "loader"])
def test_the_users_generators_are_not_disturbed(make: Any) -> None:
    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
        )

    before = state()
    source = (
        make(Noisy(8), 2)
        if make
        else StreamSource(DataLoader(Noisy(8), batch_size=2, shuffle=True))
    )
    for step in range(6):
        source.load(step, 0, 2)
    assert state() == before


def test_fingerprints_tell_orders_apart() -> None:
    x = torch.arange(8)
    prints = [
        tensor_source(x, 2, seed=0).fingerprint(),
        tensor_source(x, 2, seed=1).fingerprint(),
        tensor_source(x, 4, seed=0).fingerprint(),
        tensor_source(x, 2, seed=0, shuffle=False).fingerprint(),
        tensor_source(x[:6], 2, seed=0).fingerprint(),
        tensor_source(x, 2, seed=0, identity="other").fingerprint(),
        StreamSource([x]).fingerprint(),
        StreamSource([x], seed=1).fingerprint(),
        StreamSource([x], identity="b").fingerprint(),
        StreamSource([x[:3]]).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    # More steps continue the same sequence.
    assert tensor_source(x, 2, seed=0, steps=99).fingerprint() == prints[0]


class Counting:
    """A loader that counts its reads."""

    def __init__(self, batches: int, rows: int = 3) -> None:
        self.batches, self.rows, self.reads = batches, rows, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self.batches):
            self.reads += 1
            yield torch.full((self.rows, 1), float(i))


def test_a_stream_is_read_once_and_started_again_where_it_ends() -> None:
    loader = Counting(3)
    source = StreamSource(loader, steps=7)
    values = [source.load(s, 0, 3).x[0].item() for s in range(7)]
    assert values == [0, 1, 2, 0, 1, 2, 0]
    assert loader.reads == 7
    assert source.load(6, 1, 2).x.shape == (1, 1)
    assert loader.reads == 7  # the last batch is kept
    assert source.load(4, 0, 3).x[0].item() == 1  # an earlier one is read again from the start
    assert loader.reads == 7 + 5


def test_a_stream_may_skip_ahead() -> None:
    assert StreamSource(Counting(4), steps=4).load(3, 0, 1).x.item() == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shuffled_augmenting_loader_gives_the_same_batches_whoever_reads(workers: int) -> None:
    def make() -> StreamSource:
        loader = DataLoader(Noisy(8), batch_size=2, shuffle=True, num_workers=workers)
        return StreamSource(loader, steps=6, seed=3)

    source = make()
    wanted = [source.load(s, 0, 2).x for s in range(6)]
    assert sorted(int(x[0]) for b in wanted[:4] for x in b) == list(range(8))
    assert [b[:, 0].tolist() for b in wanted[:2]] != [b[:, 0].tolist() for b in wanted[4:]]
    travelled = cloudpickle.loads(cloudpickle.dumps(source))  # mid-way, to another process
    torch.manual_seed(999)
    for step in (0, 1, 5, 2):  # 2 starts the loader again
        torch.rand(3)
        assert torch.equal(travelled.load(step, 0, 2).x, wanted[step])


def test_a_stream_takes_what_loaders_give() -> None:
    x = torch.ones(2, 3)
    mask = torch.zeros(2, 3)
    for item in (x, (x, "label"), [x, 1], Batch(x), {"input_ids": x, "attention_mask": mask}):
        batch = StreamSource([item]).load(0, 0, 1)
        assert torch.equal(batch.x, x[:1])
    assert torch.equal(batch.carry["attention_mask"], mask[:1])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (torch.empty(0, 3), {"batch_size": 2}, "the data is empty: give at least one row"),
        ([], {"batch_size": 2}, "the data is empty: give at least one row"),
        ([], {}, "the data is empty: give at least one row"),
        (Counting(0), {}, "the data is empty: the loader gave no batch"),
        (Counting(2, rows=0), {}, "the data is empty: the loader's first batch has no rows"),
        (Counting(2), {"steps": 0}, "0 steps leave nothing to train on"),
        (torch.ones(4, 1), {}, "batch_size is missing"),
        (torch.ones(4, 1), {"batch_size": 5}, r"batch size 5 is larger than the data \(4 rows\)"),
        (torch.ones(4, 1), {"batch_size": 0}, "batch size 0 is not positive"),
        (torch.ones(4, 1), {"batch_size": 2, "steps": 0}, "0 steps leave nothing to train on"),
        (iter([torch.ones(2, 1)]), {}, "list_iterator, which can be read only once"),
        ((x for x in [torch.ones(2, 1)]), {"steps": 1}, "generator, which can be read only once"),
        (["text"], {}, "batch_size is missing"),
        (Counting, {}, "cannot read batches from type"),
        (7, {}, "cannot read batches from int"),
    ],
)
def test_bad_data_is_one_line(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_source(data, **{"batch_size": None, "steps": None, "seed": 0, **options})


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["text"], "the loader gave str"),
        ([()], "the loader gave tuple"),
        ([{"pixels": torch.ones(2)}], r"mapping of \['pixels'\]: input_ids is missing"),
    ],
)
def test_a_loader_that_gives_something_else_is_one_line(items: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        StreamSource(items)


def test_a_ragged_last_batch_of_a_stream_is_one_line() -> None:
    loader = DataLoader(TensorDataset(torch.ones(5, 1)), batch_size=2)
    source = StreamSource(loader)
    source.load(1, 0, 2)
    with pytest.raises(UserError, match="batch 2 has 1 rows, the first had 2: use drop_last"):
        source.load(2, 0, 2)


def test_a_loader_without_a_length_needs_steps() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                yield torch.ones(2, 1)

    with pytest.raises(UserError, match="no length: say how many steps"):
        StreamSource(Endless())
    assert StreamSource(Endless(), steps=5).steps == 5


def test_carry_of_another_length_is_one_line() -> None:
    with pytest.raises(UserError, match="carry 'm' has 3 rows, the data 4"):
        tensor_source(torch.ones(4), 2, carry={"m": torch.ones(3)})


def test_sources_are_made_from_what_users_have() -> None:
    def make(data: Any, batch: int | None = 2) -> Any:
        return as_source(data, batch_size=batch, steps=None, seed=0)

    array = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert make(array).load(0, 0, 2).x.dtype == torch.float32
    assert make(TensorDataset(torch.ones(4, 1), torch.zeros(4))).load(0, 0, 2).x.shape == (2, 1)
    assert make([torch.ones(3), torch.ones(3)]).load(0, 0, 2).x.shape == (2, 3)
    assert make([torch.ones(3, 1), torch.ones(3, 1)], None).steps == 2
    own = tensor_source(torch.ones(4), 2)
    assert make(own, None) is own
    with pytest.raises(UserError, match="batch_size belongs to the source"):
        make(own)
