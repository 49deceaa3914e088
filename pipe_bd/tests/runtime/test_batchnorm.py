"""BatchNorm over a group equals BatchNorm over the undivided batch; its traffic is counted."""

import copy
from typing import Any

import torch
from torch import nn

from pipe_bd.plan import row_ranges
from pipe_bd.runtime.batchnorm import synchronised
from pipe_bd.runtime.world import join

BATCH = 7


def modules() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        ("2d", nn.BatchNorm2d(3), (3, 4, 5)),
        ("1d", nn.BatchNorm1d(3), (3,)),
        ("1d long", nn.BatchNorm1d(3), (3, 6)),
        ("plain", nn.BatchNorm2d(3, affine=False, track_running_stats=False), (3, 2, 2)),
        ("cumulative", nn.BatchNorm2d(3, momentum=None), (3, 2, 2)),
        ("nested", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), (3, 4, 4)),
    ]


def _compare() -> dict[str, Any]:
    world = join("cpu")
    group = world.group(range(world.size))
    lo, hi = row_ranges(BATCH, world.size)[world.rank]
    out: dict[str, Any] = {}
    for name, module, shape in modules():
        whole, split = module.double(), copy.deepcopy(module.double())
        largest = 0.0
        traffic: list[int] = []

        def count(t: torch.Tensor, traffic: list[int] = traffic) -> None:
            traffic.append(t.numel())

        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64) * 3 + 5
            outputs = copy.deepcopy(whole)(x).shape
            weight = torch.randn(outputs, generator=generator, dtype=torch.float64)
            a, b = x.clone().requires_grad_(), x[lo:hi].clone().requires_grad_()
            y = whole(a)
            (y * weight).sum().backward()
            with synchronised(split, group, count):
                z = split(b)
                (z * weight[lo:hi]).sum().backward()
            assert a.grad is not None
            assert b.grad is not None
            pairs = [(y[lo:hi], z), (a.grad[lo:hi], b.grad)]
            for p, q in zip(whole.parameters(), split.parameters(), strict=True):
                assert q.grad is not None
                torch.distributed.all_reduce(q.grad, group=group)
                pairs.append((p.grad, q.grad))
            pairs += list(zip(whole.buffers(), split.buffers(), strict=True))
            largest = max([largest, *((p - q).abs().max().item() for p, q in pairs)])
            whole.zero_grad()
            split.zero_grad()
        out[name] = {"largest": largest, "traffic": traffic}
        layers = [m for m in split.modules() if "forward" in vars(m)]
        assert not layers, "the layer's own forward must come back"
    evaluated = nn.BatchNorm1d(3).eval()
    with synchronised(evaluated, group, lambda t: out.setdefault("eval", t)):
        evaluated(torch.ones(2, 3))
    return out


def test_a_group_normalises_as_one(ranks: Any) -> None:
    found = ranks(_compare, 3)
    assert "eval" not in found  # frozen statistics are nobody's business
    for name, _, _ in modules():
        assert found[name]["largest"] < 1e-12, name
        channels = 4 if name == "nested" else 3
        # Forward: sums and row count, then squares; backward: the same two, the other way round.
        step = [channels + 1, channels, channels, channels + 1]
        assert found[name]["traffic"] == step * 3, name


def test_without_a_group_nothing_changes() -> None:
    module = nn.BatchNorm1d(3)
    with synchronised(module, None, lambda t: None):
        assert "forward" not in vars(module)
