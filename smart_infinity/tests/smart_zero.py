"""A stand-in for DeepSpeed's ZeRO-3 with its optimizer on the CPU: what it shows an optimizer.

Parameters are cut in subgroups, one flat tensor each; a step shows the optimizer one of them after
the other, with its float32 gradient, and copies it into the model's flat tensor afterwards.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


class DeepSpeedZeroOptimizer_Stage3:
    """The part of it that the adapter relies on; `groups` are lists of flat tensors' sizes."""

    offload_optimizer = True
    swap_optimizer = False
    zenflow = False
    partial_offload = 1.0
    torch_autocast_gradscaler = None

    def __init__(
        self, optimizer: Any, groups: list[list[torch.Tensor]], dtype: torch.dtype = torch.float32
    ) -> None:
        self.optimizer = optimizer
        flat = [(g, tensor) for g, group in enumerate(groups) for tensor in group]
        self.sub_group_to_group_id = {i: g for i, (g, _) in enumerate(flat)}
        self.fp16_partitioned_groups_flat = [
            tensor.detach().to(dtype).clone() for _, tensor in flat
        ]
        self.fp32_partitioned_groups_flat = [
            lp.float().clone().requires_grad_() for lp in self.fp16_partitioned_groups_flat
        ]
        for master in self.fp32_partitioned_groups_flat:
            master.grad = torch.zeros_like(master)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param._z3_optimizer = self
            group["params"] = []

    def step(self, gradients: list[torch.Tensor], order: list[int] | None = None) -> None:
        for i in order or range(len(gradients)):
            master = self.fp32_partitioned_groups_flat[i]
            master.grad.copy_(gradients[i])
            group = self.optimizer.param_groups[self.sub_group_to_group_id[i]]
            group["params"] = [master]
            self.optimizer.step()
            group["params"] = []
            self.fp16_partitioned_groups_flat[i].copy_(master.data)

    def save(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "fp32": [master.detach().clone() for master in self.fp32_partitioned_groups_flat],
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(saved["optimizer"])
        for i, value in enumerate(saved["fp32"]):
            self.fp32_partitioned_groups_flat[i].data.copy_(value)
            self.fp16_partitioned_groups_flat[i].copy_(self.fp32_partitioned_groups_flat[i].data)


def install(monkeypatch: Any, version: str) -> None:
    """Put a DeepSpeed of this version, with the stand-in, where `import deepspeed` finds it."""
    names = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero",
             "deepspeed.runtime.zero.stage3")  # fmt: skip
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["deepspeed"].__version__ = version  # type: ignore[attr-defined]
    stage3: Any = sys.modules[names[-1]]
    stage3.DeepSpeedZeroOptimizer_Stage3 = DeepSpeedZeroOptimizer_Stage3


def engine(zero: Any) -> Any:
    """What `deepspeed.initialize` gives, as far as `attach` looks at it."""
    return SimpleNamespace(optimizer=zero)
