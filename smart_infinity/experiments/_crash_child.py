"""The process that is killed: trains until then, and says each step that has returned.

Run by path with the folders of its devices. Its gradients are known, so that the parameters after
any step are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIZES = (5000, 33_000, 17)
OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}
TILE = 4096


def gradient(i: int, step: int) -> torch.Tensor:
    """Give the gradient of parameter `i` in the step after `step`."""
    import torch

    generator = torch.Generator().manual_seed(1000 * i + step)
    return torch.randn(SIZES[i], generator=generator) * 1e-2


def parameters() -> list[torch.Tensor]:
    """Give the parameters before the first step."""
    import torch

    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, generator=generator).requires_grad_() for n in SIZES]


def main() -> None:
    """Train until something ends it."""
    import torch

    from smart_infinity import SmartOptimizer

    torch.set_num_threads(1)
    params = parameters()
    folders = [Path(argument) for argument in sys.argv[1:]]
    optimizer = SmartOptimizer(params, devices=folders, tile=TILE, **OPTIONS)
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
