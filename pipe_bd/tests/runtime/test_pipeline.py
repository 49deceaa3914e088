"""Every schedule equals the sequential reference, to the bit where no batch is split."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipe_bd import formulas
from pipe_bd.api import clone, run_here
from pipe_bd.blocks import BlockPair, Candidate, Task, check
from pipe_bd.losses import MSE
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import Plan, Stage, compositions
from pipe_bd.runtime.pipeline import first_step
from pipe_bd.runtime.trainer import autocast
from pipe_bd.runtime.world import join
from pipe_bd.source import tensor_source
from pipe_bd.verify import compare, composition_plan

WORLD = 4
# A covering set: every model, optimizer and type, not every combination.
CASES = [
    ("toy-vgg", "sgd", "float32"),
    ("toy-vgg", "adamw", "float64"),
    ("toy-gpt", "adamw", "float32"),
    ("toy-gpt", "sgd", "float64"),
    ("toy-bn", "sgd", "float64"),
    ("toy-bn", "adamw", "float32"),
]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
WIDTHS = [c for n in (1, 2, 3, 4) for c in compositions(n)]


def _run(task: Task, schedule: str, **options: Any) -> tuple[Task, Any]:
    ours = clone(task)
    return ours, run_here(ours, Options(schedule=schedule, device="cpu", **options))


def _matrix() -> dict[Any, Any]:
    world = join("cpu")
    out: dict[Any, Any] = {}
    for model, optimizer, dtype in CASES:
        task = build(model, steps=3, optimizer=optimizer, dtype=dtype)
        bounds = check(task)
        reference, _ = _run(task, "sequential")
        blocks = len(task.pairs)
        runs: dict[str, tuple[str, dict[str, Any]]] = {
            "ls": ("ls", {"devices": 3, "assignment": tuple(i % 3 for i in range(blocks))}),
            "dp": ("dp", {"devices": 4, "batchnorm": "sync"}),
            "joint": ("joint", {"devices": 3, "batchnorm": "sync"}),
            "tr": ("tr", {"devices": 3, "plan": Plan.even(blocks, 3)}),
            "dpu": ("dpu", {"devices": 2, "plan": Plan.even(blocks, 2), "depth": 1}),
        }
        every = list(compositions(4))  # all 8, with a batch of 10
        few = [(1, 1, 1, 1), (2, 1, 1), (1, 2)]
        for widths in every if (model, dtype) != ("toy-gpt", "float32") else few:
            plan = composition_plan(blocks, widths)
            options = {"devices": 4, "plan": plan, "batchnorm": "sync"}
            runs["+".join(map(str, widths))] = ("ahd", options)
        for label, (schedule, options) in runs.items():
            ours, result = _run(task, schedule, **options)
            want = formulas.of_run(ours, result, bounds, options["devices"])
            out[model, optimizer, dtype, label] = {
                "equal": compare(reference, ours),
                "miscounts": formulas.differences(want, formulas.found(result)),
                "batchnorm": result.total("batchnorm_bytes"),
                "allreduce": result.total("allreduce_bytes"),
                "losses": {b: len(v["student"]) for b, v in result.losses.items()},
            }
    assert world.size == WORLD
    return out


@pytest.fixture(scope="module")
def matrix(ranks: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = ranks(_matrix, WORLD)
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("model", "optimizer", "dtype"), CASES)
def test_every_schedule_gives_the_sequential_students(
    matrix: dict[Any, Any], model: str, optimizer: str, dtype: str
) -> None:
    mine = {k[3]: v for k, v in matrix.items() if k[:3] == (model, optimizer, dtype)}
    assert len(mine) >= 7
    for label, row in mine.items():
        same, largest = row["equal"]
        split = label in ("dp", "joint") or any(c not in "1+" for c in label if c.isdigit())
        if split:
            assert largest <= TOLERANCE[dtype], label
        else:
            assert same, label
        assert row["miscounts"] == {}, label
        assert set(row["losses"].values()) == {3}, label


def test_batchnorm_traffic_is_counted_where_it_flows_and_only_there(matrix: Any) -> None:
    for (model, _, _, label), row in matrix.items():
        split = label in ("dp", "joint") or any(c not in "1+" for c in label if c.isdigit())
        assert (row["batchnorm"] > 0) == (split and model == "toy-bn"), (model, label)
        assert (row["allreduce"] > 0) == split
    # joint on 3 of toy-bn in float64: two layers' sums per direction, 2·(3−1)/3 each on 3 ranks.
    channels = [8, 8, 12, 12]
    elements = sum(2 * (c + 1) + 2 * c for c in channels)
    assert matrix["toy-bn", "sgd", "float64", "joint"]["batchnorm"] == pytest.approx(
        3 * 2 * (3 - 1) * elements * 8
    )


# -- odd jobs: what users bring


def _linear(i: int, o: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Linear(i, o).to(dtype)


class _Reads(nn.Module):
    """Adds what travels with the boundary, so that a wrong one shows in the weights."""

    def __init__(self, train: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4)) if train else None

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        y = x + by.to(x.dtype)
        return y if self.weight is None else y * self.weight


class _Slow(nn.Module):
    def __init__(self, block: nn.Module, seconds: float) -> None:
        super().__init__()
        self.block, self.seconds = block, seconds

    def forward(self, x: Tensor, **side: Any) -> Tensor:
        import time

        time.sleep(self.seconds)
        return self.block(x, **side)


class _Mask(nn.Module):
    """A student with a boolean buffer and one scalar buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.mask = ~self.mask
        return self.layer(x) * self.mask


class _ChannelsLast(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).to(memory_format=torch.channels_last).transpose(2, 3)


SGD = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731


def _chain(kinds: list[tuple[nn.Module, Any]], x: Tensor, batch: int, **more: Any) -> Task:
    pairs = [BlockPair(f"b{i}", t, s, MSE(), SGD) for i, (t, s) in enumerate(kinds)]
    carry, side = more.pop("carry", None), more.pop("side", None)
    return Task(pairs, tensor_source(x, batch, carry=carry, steps=more.pop("steps", 6)), side=side)


def _odd_tasks() -> dict[str, tuple[Task, list[tuple[int, ...]], dict[str, Any]]]:
    torch.manual_seed(0)
    x = torch.randn(21, 4)
    tasks: dict[str, tuple[Task, list[tuple[int, ...]], dict[str, Any]]] = {}
    every = [(1, 1), (2,), (2, 1), (1, 2), (3, 1)]

    def linears(n: int, dtype: torch.dtype = torch.float32) -> list[tuple[nn.Module, Any]]:
        return [(_linear(4, 4, dtype), _linear(4, 4, dtype)) for _ in range(n)]

    tasks["one block"] = (_chain(linears(1), x, 7), [(1,), (3,), (4,)], {})
    tasks["batch of one"] = (_chain(linears(3), x, 1), [(1, 1, 1), (1, 1)], {})
    tasks["odd batch"] = (_chain(linears(3), x, 7), [*every, (1, 1, 1)], {})
    tasks["as many rows as ranks"] = (_chain(linears(2), x, 3), [(3,), (2, 1), (3, 1)], {})
    passing = [(nn.Identity(), _linear(4, 4)) for _ in range(4)]
    passing[3] = (nn.Identity(), _Slow(_linear(4, 4), 0.02))
    # Stages that only pass on what they received, before a slow one: sends wait in receive buffers.
    tasks["identity teachers"] = (
        _chain(passing, x, 7, steps=12),
        [(1, 1, 1, 1), (1, 1, 2), (2, 1)],
        {"depth": 3},
    )
    kept: list[tuple[nn.Module, Any]] = [
        (nn.ReLU(), {"kept": Candidate(nn.ReLU(), steps=0)}),
        *linears(1),
        (nn.Tanh(), {"kept": Candidate(nn.Tanh(), steps=0), "other": _linear(4, 4)}),
    ]
    tasks["kept blocks"] = (_chain(kept, x, 7), [(1, 1, 1), (2, 1), (3,)], {})
    by = torch.randn(21, 4) > 0
    reads = [(_Reads(False), _Reads(True)) for _ in range(4)]
    reads[3] = (_Reads(False), _Slow(_Reads(True), 0.02))
    tasks["carried masks"] = (
        _chain(
            reads, x, 7, carry={"by": by}, steps=12,
            side=lambda x, carry: [{"by": carry["by"]}] * 4,
        ),
        [(1, 1, 1, 1), (1, 2, 1), (2, 1)],
        {},
    )  # fmt: skip
    tasks["boolean buffers"] = (
        _chain([(_linear(4, 4), _Mask()) for _ in range(3)], x, 7),
        [(1, 1, 1), (2, 1)],
        {},
    )
    images = torch.randn(21, 3, 6, 6)
    convs = [
        (_ChannelsLast(nn.Conv2d(3, 3, 3, padding=1)), _ChannelsLast(nn.Conv2d(3, 3, 1)))
        for _ in range(3)
    ]
    tasks["channels last"] = (_chain(convs, images, 7), [(1, 1, 1), (2, 1)], {})
    half = linears(3, torch.bfloat16)
    tasks["bfloat16"] = (_chain(half, x.bfloat16(), 7), [(1, 1, 1)], {})
    tasks["autocast"] = (_chain(linears(3), x, 7), [(1, 1, 1), (1, 1)], {"precision": "bf16"})
    tasks["autocast fp16"] = (_chain(linears(2), x, 7), [(1, 1)], {"precision": "fp16"})
    ids = torch.randint(0, 9, (21, 5))
    tokens = [(nn.Embedding(9, 4), nn.Embedding(9, 4)), *linears(1)]
    tasks["integer input"] = (_chain(tokens, ids, 7), [(1, 1), (2, 1)], {})
    return tasks


def _odd() -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for name, (task, plans, options) in _odd_tasks().items():
        bounds = check(task, autocast(options.get("precision", "full"), torch.device("cpu")))
        reference, _ = _run(task, "sequential", **options)
        if name == "carried masks":  # the fixture of a test must be able to tell
            weights = [next(p.student.parameters()) for p in reference.pairs]
            assert len({float(w.detach().sum()) for w in weights}) == 4
        for widths in plans:
            plan = composition_plan(len(task.pairs), widths)
            ours, result = _run(task, "ahd", devices=WORLD, plan=plan, **options)
            want = formulas.of_run(ours, result, bounds, WORLD)
            miscounts = formulas.differences(want, formulas.found(result))
            out[name, widths] = compare(reference, ours), miscounts
        if len(task.pairs) > 1:
            cut = Plan.even(len(task.pairs), 2)  # two of four ranks stay idle, at the barrier too
            ours, result = _run(task, "tr", devices=WORLD, plan=cut, **options)
            out[name, "tr"] = compare(reference, ours), {}
    return out


@pytest.mark.timeout(240)
def test_odd_jobs_are_exact_too(ranks: Any) -> None:
    found = ranks(_odd, WORLD)
    for (name, widths), ((same, largest), miscounts) in found.items():
        split = widths != "tr" and max(widths) > 1
        assert same or (split and largest < 1e-6), (name, widths, largest)
        assert miscounts == {}, (name, widths)
    assert len(found) > 40


def test_a_relay_starts_at_the_earliest_step_that_is_needed() -> None:
    assert first_step([5, None, 3], 9) == 3
    assert first_step([None], 9) == 9
    assert first_step([], 9) == 9


def test_composition_plans_cover_the_blocks() -> None:
    for blocks in range(1, 9):
        for widths in WIDTHS:
            if len(widths) <= blocks:
                composition_plan(blocks, widths).validate(blocks, 4)
    assert composition_plan(3, (2, 1)).stages == (Stage(0, 1, 2), Stage(2, 2, 1))
