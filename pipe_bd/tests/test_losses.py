"""A loss split over a group sums to the loss of the whole batch, gradients too."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipe_bd.losses import (
    MSE,
    Loss,
    MeanLoss,
    NormalisedMSE,
    SoftCrossEntropy,
    as_loss,
    relative_error,
)

LOSSES: list[Loss] = [
    MSE(),
    NormalisedMSE(),
    SoftCrossEntropy(),
    SoftCrossEntropy(2.5),
    MeanLoss(F.l1_loss),
]


def whole(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    return loss.share(output, target, 1.0, loss.normaliser(target))


def tensors(batch: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(batch, 3, 5, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randn(batch, 3, 5, generator=generator, dtype=torch.float64).to(dtype)
    return output.requires_grad_(), target


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_shares_of_any_row_split_sum_to_the_loss_of_the_batch(
    loss: Loss, cuts: list[int], seed: int
) -> None:
    batch = sum(cuts)
    output, target = tensors(batch, seed)
    reference = whole(loss, output, target)
    (wanted,) = torch.autograd.grad(reference, output)
    parts = list(zip(output.split(cuts), target.split(cuts), cuts, strict=True))
    norms = [loss.normaliser(t) for _, t, _ in parts]
    norm = None if norms[0] is None else torch.stack([n for n in norms if n is not None]).sum()
    shares = [loss.share(o, t, rows / batch, norm) for o, t, rows in parts]
    total = torch.stack(shares).sum()
    (found,) = torch.autograd.grad(total, output)
    torch.testing.assert_close(total, reference, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_a_whole_batch_runs_the_plain_loss_bit_by_bit() -> None:
    output, target = tensors(7, 1, torch.float32)
    assert torch.equal(whole(MSE(), output, target), F.mse_loss(output, target))


def test_normalised_mse_is_the_formula_and_survives_a_zero_target() -> None:
    output, target = tensors(4, 2)
    wanted = (output - target).square().sum() / target.square().sum()
    torch.testing.assert_close(whole(NormalisedMSE(), output, target), wanted)
    zero = torch.zeros_like(target)
    assert torch.isfinite(whole(NormalisedMSE(), output, zero))
    assert float(whole(NormalisedMSE(), target, target)) == 0.0
    # Predicting zero is no information: the loss is one.
    assert float(whole(NormalisedMSE(), zero, target)) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normalised_mse_of_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    target = torch.full((64, 2048), 3.0, dtype=dtype)  # Σ o² overflows fp16
    output = (target * 2).requires_grad_()
    loss = whole(NormalisedMSE(), output, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1.0, rel=1e-2)


def test_soft_cross_entropy_is_least_where_the_student_is_the_teacher() -> None:
    _, target = tensors(6, 3)
    output = target.clone().requires_grad_()
    loss = whole(SoftCrossEntropy(1.5), output, target)
    (gradient,) = torch.autograd.grad(loss, output)
    assert float(gradient.abs().max()) < 1e-15
    p = F.softmax(target, -1)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(whole(SoftCrossEntropy(), target, target), entropy)


def test_temperature_keeps_the_size_of_gradients() -> None:
    output, target = tensors(6, 4)
    sizes = []
    for temperature in (4.0, 40.0):
        loss = whole(SoftCrossEntropy(temperature), output * 0.1, target * 0.1)
        sizes.append(float(torch.autograd.grad(loss, output)[0].norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_a_plain_function_becomes_a_mean_loss_and_a_loss_stays() -> None:
    loss = MSE()
    assert as_loss(loss) is loss
    function: Callable[[Tensor, Tensor], Tensor] = F.smooth_l1_loss
    made = as_loss(function)
    assert isinstance(made, MeanLoss)
    assert made.normaliser(torch.ones(2)) is None
    with pytest.raises(NotImplementedError, match="Loss must define share"):
        Loss().share(torch.ones(1), torch.ones(1), 1.0, None)


def test_relative_error_is_zero_when_perfect_and_one_for_the_mean() -> None:
    _, target = tensors(50, 5)
    assert relative_error(target, target) == 0.0
    assert relative_error(target.mean().expand_as(target), target) == pytest.approx(1.0)
    assert relative_error(torch.ones(3), torch.ones(3)) == 0.0
