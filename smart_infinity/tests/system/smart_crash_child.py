"""Trains until it is killed, and says each step that has returned."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from smart_infinity import SmartOptimizer

SIZES = (5000, 33_000, 17)


def gradient(i: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * i + step)
    return torch.randn(SIZES[i], generator=generator) * 1e-2


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, generator=generator).requires_grad_() for n in SIZES]


def main() -> None:
    torch.set_num_threads(1)
    params = parameters()
    optimizer = SmartOptimizer(
        params, devices=[Path(a) for a in sys.argv[1:]], tile=4096, lr=1e-3, weight_decay=0.01
    )
    pids = [device.process.pid for device in optimizer.array.devices if device.process]
    print("pids", *pids, flush=True)
    while True:
        step = optimizer.steps[0]
        for i, param in enumerate(params):
            param.grad = gradient(i, step)
        optimizer.step()
        # The step before is durable everywhere: this one could not have begun otherwise.
        print("durable", step, "returned", step + 1, flush=True)


if __name__ == "__main__":
    main()
