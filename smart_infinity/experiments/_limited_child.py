"""Trains a model whose optimizer state is larger than the memory it may take, and says how it went.

Run by path with a JSON object: `optimizer` (smart or torch), `width` and `layers` of the model,
`folders`, `tile` and `steps`.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any


def main(given: dict[str, Any]) -> None:
    """Train, and give losses, gradients that waited on disk, and what was resident at most."""
    import torch

    from smart_infinity import DeviceOptions, SmartOptimizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = given["width"]
    net = torch.nn.Sequential(*[
        torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16)
        for _ in range(given["layers"])
    ])  # fmt: skip
    params = sum(param.numel() for param in net.parameters())
    optimizer: torch.optim.Optimizer
    if given["optimizer"] == "torch":
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    else:
        # Gradients go to the devices' disks as they come; nothing waits in memory.
        optimizer = SmartOptimizer(
            net.parameters(), lr=1e-4, devices=given["folders"], tile=given["tile"],
            offload="backward", options=DeviceOptions(landing_bytes=0),
        )  # fmt: skip
    losses = []
    for step in range(given["steps"]):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, width, generator=generator).bfloat16()
        loss = (net(x).float() - x.float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    landed, peaks = 0, []
    if isinstance(optimizer, SmartOptimizer):
        counts = optimizer.array.counts()
        landed = sum(one["device"]["engine"]["landed_write_bytes"] for one in counts)
        peaks = [one["device"]["peak_rss_bytes"] for one in counts]
        optimizer.close()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps({
        "params": params, "losses": losses, "landed_bytes": landed, "resident": sum(peaks),
    }))  # fmt: skip


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
