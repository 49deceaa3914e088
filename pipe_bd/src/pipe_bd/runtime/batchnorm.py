"""BatchNorm whose statistics span a group of devices, on any backend.

torch's SyncBatchNorm runs on CUDA only. Here the row sums Σx, Σx² and counts are all-reduced with
autograd through the reduction, so a group computes the statistics, and the gradients, of the
undivided batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipe_bd.blocks import BATCH_NORMS

Count = Callable[[Tensor], None]


class _SumOverGroup(torch.autograd.Function):
    """All-reduce in both directions: the loss of every rank depends on the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, count: Count) -> Tensor:
        ctx.group, ctx.count = group, count
        total = x.clone()
        dist.all_reduce(total, group=group)
        count(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        ctx.count(total)
        return total, None, None


def _forward(
    bn: nn.modules.batchnorm._BatchNorm, x: Tensor, group: dist.ProcessGroup, count: Count
) -> Tensor:
    given = x.dtype
    if x.dtype.itemsize < 4:  # a count of rows soon exceeds what half precision can hold
        x = x.float()
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    rows = x.new_tensor([float(x.numel() // x.shape[1])])
    # Two passes, as the undivided batch does: Σ(x − mean)² cancels less than Σx² − n·mean².
    sums = _SumOverGroup.apply(torch.cat([x.sum(dims), rows]), group, count)
    n = sums[-1].detach()
    mean = sums[:-1] / n
    centred = x - mean.view(shape)
    variance = _SumOverGroup.apply(centred.square().sum(dims), group, count) / n
    if bn.track_running_stats and bn.running_mean is not None and bn.running_var is not None:
        with torch.no_grad():
            assert bn.num_batches_tracked is not None
            bn.num_batches_tracked.add_(1)
            momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
            bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
            bn.running_var.lerp_((variance * n / (n - 1)).to(bn.running_var.dtype), momentum)
    y = centred * torch.rsqrt(variance + bn.eps).view(shape)
    if bn.affine:
        y = y * bn.weight.view(shape) + bn.bias.view(shape)
    return y.to(given)


@contextmanager
def synchronised(
    module: nn.Module, group: dist.ProcessGroup | None, count: Count
) -> Iterator[None]:
    """While it lasts, train-mode BatchNorm layers use the statistics of the whole group.

    Args:
        module: a student block.
        group: the ranks that share the batch; None leaves the module alone.
        count: called with every tensor that is summed over the group.
    """
    if group is None:
        yield
        return
    layers = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.training]
    for layer in layers:
        # An attribute of the instance hides the class's method until it is deleted.
        layer.__dict__["forward"] = partial(_forward, layer, group=group, count=count)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
