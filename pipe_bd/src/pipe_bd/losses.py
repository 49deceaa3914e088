"""Block losses that stay exact when the batch is split over a group of devices.

A group of g devices sees g row ranges of one batch. The gradients of the ranges are *summed*, so
every loss here returns the share of the full-batch loss that its own rows contribute: Σ over the
group equals the loss of the undivided batch. For a mean over rows the share is ``mean(local) ·
local_rows / batch_rows``; a loss whose denominator depends on the data (normalised MSE) first has
that denominator summed over the group (:meth:`Loss.normaliser`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss:
    """A row-additive block loss L(student output, teacher output)."""

    def normaliser(self, target: Tensor) -> Tensor | None:
        """Row-additive statistic of the target, summed over the group before the loss.

        Args:
            target: teacher output of the local rows, shape (rows, ...).

        Returns:
            A scalar tensor, or None when the loss needs none.
        """
        del target
        return None

    def share(self, output: Tensor, target: Tensor, fraction: float, norm: Tensor | None) -> Tensor:
        """This rank's share of the full-batch loss.

        Args:
            output: student output, shape (rows, ...).
            target: teacher output, same shape.
            fraction: local rows / batch rows, in (0, 1].
            norm: group sum of :meth:`normaliser`, or None.

        Returns:
            Scalar tensor with graph; its sum over the group is the full-batch loss.
        """
        raise NotImplementedError(f"{type(self).__name__} must define share()")


def _weighted(loss: Tensor, fraction: float) -> Tensor:
    # A whole batch is not multiplied by 1.0: the reference and a group of one must run the same
    # operations.
    return loss if fraction == 1.0 else loss * fraction


@dataclass(frozen=True)
class MSE(Loss):
    """Mean squared error over all elements (DNA; Pipe-BD's loss for inner blocks)."""

    def share(self, output: Tensor, target: Tensor, fraction: float, norm: Tensor | None) -> Tensor:
        """See :meth:`Loss.share`."""
        del norm
        return _weighted(F.mse_loss(output, target), fraction)


@dataclass(frozen=True)
class NormalisedMSE(Loss):
    """Σ(o_s − o_t)² / Σ o_t² over the batch: the loss of Puzzle's blockwise local distillation."""

    eps: float = 1e-12

    def normaliser(self, target: Tensor) -> Tensor:
        """Σ o_t² over the local rows."""
        return (
            target.detach().float().square().sum()
            if target.dtype.itemsize < 4
            else target.detach().square().sum()
        )

    def share(self, output: Tensor, target: Tensor, fraction: float, norm: Tensor | None) -> Tensor:
        """See :meth:`Loss.share`."""
        del fraction
        assert norm is not None
        difference = output - target
        if difference.dtype.itemsize < 4:
            difference = difference.float()
        return difference.square().sum() / norm.clamp_min(self.eps)


@dataclass(frozen=True)
class SoftCrossEntropy(Loss):
    """Cross-entropy against softmax(teacher logits / T), mean over rows.

    For a block that ends in logits.

    The class dimension is the last one. Scaled by T² so that gradients keep their size (Hinton et
    al., 2015).
    """

    temperature: float = 1.0

    def share(self, output: Tensor, target: Tensor, fraction: float, norm: Tensor | None) -> Tensor:
        """See :meth:`Loss.share`."""
        del norm
        t = self.temperature
        log_q = F.log_softmax(output / t, dim=-1)
        p = F.softmax(target / t, dim=-1)
        return _weighted(-(p * log_q).sum(dim=-1).mean() * (t * t), fraction)


@dataclass(frozen=True)
class MeanLoss(Loss):
    """Any ``f(output, target) -> scalar`` that is a mean over rows."""

    function: Callable[[Tensor, Tensor], Tensor]

    def share(self, output: Tensor, target: Tensor, fraction: float, norm: Tensor | None) -> Tensor:
        """See :meth:`Loss.share`."""
        del norm
        return _weighted(self.function(output, target), fraction)


def as_loss(loss: Loss | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A :class:`Loss` as it is; any other callable is taken to be a mean over rows."""
    return loss if isinstance(loss, Loss) else MeanLoss(loss)


def relative_error(output: Tensor, target: Tensor) -> float:
    """MSE / variance of the target: the figure to log per block.

    0 is perfect, 1 predicts the mean.
    """
    with torch.no_grad():
        variance = target.double().var(unbiased=False)
        return float(
            (output.double() - target.double()).square().mean() / variance.clamp_min(1e-30)
        )


def normalised_error(output: Tensor, target: Tensor) -> float:
    """Σ(o_s − o_t)² / Σ o_t² in double precision: the value of :class:`NormalisedMSE`."""
    with torch.no_grad():
        power = target.double().square().sum().clamp_min(1e-30)
        return float((output.double() - target.double()).square().sum() / power)
