"""One block's training step equals what a person would write by hand."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, Candidate
from pipe_bd.counters import Clock, Counters
from pipe_bd.losses import MSE
from pipe_bd.rng import derive
from pipe_bd.runtime.trainer import BlockTrainer, Share

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def trainer(pair: BlockPair, precision: str = "full", **options: Any) -> BlockTrainer:
    return BlockTrainer(
        pair,
        0,
        Share(0, 4, 4),
        torch.device("cpu"),
        seed=3,
        precision=precision,
        sync_batchnorm=False,
        clock=Clock(Counters(), None),
        **options,
    )


def data(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator))
        for _ in range(steps)
    ]


def run(t: BlockTrainer, batches: list[tuple[Tensor, Tensor]], start: int = 0) -> None:
    for step, (x, y) in enumerate(batches[start:], start):
        t.backward(x, y, {}, step)
        t.update()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
    ) and a.state_dict().keys() == (b.state_dict().keys())


def test_a_step_is_the_textbook_step_bit_by_bit() -> None:
    student = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    plain = copy.deepcopy(student)
    pair = BlockPair(
        "b",
        nn.ReLU(),
        student,
        MSE(),
        SGD,
        lr_schedule=lambda step: 1.0 / (1 + step),
        clip_norm=0.05,
    )
    t = trainer(pair)
    run(t, data(5))
    optimizer = SGD(plain.parameters())
    for step, (x, y) in enumerate(data(5)):
        torch.manual_seed(derive(3, "dropout", "b", "student", step, 0))
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        F.mse_loss(plain(x), y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    assert equal(student, plain)
    assert t.clock.counters.student_steps == {"b/student": 5}
    assert list(t.losses()["student"]) == list(range(5))


def library(**options: Any) -> BlockPair:
    torch.manual_seed(1)
    students = {n: Candidate(nn.Linear(3, 2), **options.get(n, {})) for n in ("a", "b", "c")}
    return BlockPair("b", nn.ReLU(), students, MSE(), SGD)


def alone(name: str, steps: int) -> nn.Module:
    pair = library()
    only = BlockPair("b", nn.ReLU(), {name: pair.candidates[name]}, MSE(), SGD)
    run(trainer(only), data(steps))
    return only.candidates[name].module


def test_a_candidate_ends_early_and_the_others_go_on() -> None:
    pair = library(a={"steps": 2}, b={"steps": 0})
    untouched = copy.deepcopy(pair.candidates["b"].module)
    t = trainer(pair)
    run(t, data(6))
    assert equal(pair.candidates["a"].module, alone("a", 2))
    assert equal(pair.candidates["b"].module, untouched)
    assert equal(pair.candidates["c"].module, alone("c", 6))
    assert t.clock.counters.student_steps == {"b/a": 2, "b/c": 6}
    assert not t.finished


def test_a_candidate_ends_at_its_target_loss() -> None:
    pair = library()
    t = trainer(pair)
    run(t, data(6))
    losses = t.losses()["a"]
    target = sorted(losses.values())[2]
    reached = min(step for step, loss in losses.items() if loss <= target)
    pair = library(a={"target_loss": target})
    run(trainer(pair), data(6))
    assert equal(pair.candidates["a"].module, alone("a", reached + 1))


def test_a_candidate_may_have_its_own_optimizer() -> None:
    own = partial(torch.optim.SGD, lr=0.0)
    pair = library(a={"optimizer": own})
    before = copy.deepcopy(pair.candidates["a"].module)
    run(trainer(pair), data(3))
    assert equal(pair.candidates["a"].module, before)
    assert equal(pair.candidates["c"].module, alone("c", 3))


def test_state_continues_bit_by_bit() -> None:
    def make() -> tuple[BlockPair, BlockTrainer]:
        torch.manual_seed(2)
        student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        pair = BlockPair("b", nn.ReLU(), student, MSE(), partial(torch.optim.AdamW, lr=1e-2))
        return pair, trainer(pair)

    whole, t = make()
    run(t, data(6))
    _, first = make()
    run(first, data(6)[:4])
    state = first.state()
    run(first, data(6), 4)  # the state must not follow
    second, again = make()
    again.load_state(state)
    assert again.resume_step() == 4
    run(again, data(6), 0)  # steps already taken are passed over
    assert equal(second.student, whole.student)


def test_frozen_parameters_stay_and_get_no_gradient() -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    student[0].requires_grad_(False)
    before = copy.deepcopy(student)
    run(trainer(BlockPair("b", nn.ReLU(), student, MSE(), SGD)), data(3))
    assert equal(student[0], before[0])
    assert not equal(student[1], before[1])
    assert student[0].weight.grad is None


@pytest.mark.parametrize("student", [nn.ReLU(), nn.Linear(3, 2).requires_grad_(False)])
def test_a_student_with_nothing_to_train_is_one_line(student: nn.Module) -> None:
    with pytest.raises(UserError, match=r"'student' of block 'b' has no parameter .*steps=0"):
        trainer(BlockPair("b", nn.ReLU(), student))
    kept = BlockPair("b", nn.ReLU(), {"s": Candidate(student, steps=0)})
    assert trainer(kept).finished


def test_parameters_that_the_optimizer_leaves_out_do_not_gather_gradients() -> None:
    student = nn.Linear(3, 2)
    pair = BlockPair("b", nn.ReLU(), student, MSE(), lambda p: SGD([next(iter(p))]))
    t = trainer(pair)
    run(t, data(2))
    assert student.bias.grad is None


def test_every_nth_loss_is_kept_and_the_last_is_known_to_be_finite() -> None:
    pair = BlockPair("b", nn.ReLU(), nn.Linear(3, 2), MSE(), partial(torch.optim.SGD, lr=1e30))
    t = trainer(pair, loss_every=2)
    assert t.broken() is None
    run(t, data(1))
    assert t.broken() is None
    run(t, data(5), 1)
    assert list(t.losses()["student"]) == [0, 2, 4]
    assert t.broken() == "student"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_weights_in_full(precision: str) -> None:
    student = nn.Linear(3, 2)
    pair = BlockPair("b", nn.ReLU(), student, MSE(), SGD)
    t = trainer(pair, precision)
    x, y = data(1)[0]
    for step in range(30):
        t.backward(x, y, {}, step)
        t.update()
    losses = t.losses()["student"]
    assert losses[29] < losses[0] * 0.8
    assert student.weight.dtype == torch.float32
    scaler = t.state()["student"]["scaler"]
    assert (scaler is not None) == (precision == "fp16")
    trainer(pair, precision).load_state(t.state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_runs_the_same_step() -> None:
    torch.manual_seed(0)
    students = [nn.Linear(3, 2) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    for device, student in zip(("cpu", "cuda"), students, strict=True):
        pair = BlockPair("b", nn.ReLU(), student, MSE(), SGD)
        t = trainer(pair)
        t.device = torch.device(device)
        student.to(device)
        for step, (x, y) in enumerate(data(4)):
            t.backward(x.to(device), y.to(device), {}, step)
            t.update()
    torch.testing.assert_close(students[1].weight.cpu(), students[0].weight)
