"""Virtual devices: real processes and real tensors on the wire, sleep in place of compute.

Proves how a *schedule* behaves on more devices than the machine has. Whatever such a run reports is
marked "virtual".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, Task
from pipe_bd.profile import BlockProfile, Profile
from pipe_bd.rng import step_generator
from pipe_bd.source import tensor_source


class _Sleeper(nn.Module):
    """Sleeps for a block's measured time at the group size that the number of rows implies."""

    def __init__(
        self, seconds: Mapping[int, float], batch: int, jitter: float, purpose: str
    ) -> None:
        super().__init__()
        self.seconds, self.batch, self.jitter, self.purpose = dict(seconds), batch, jitter, purpose

    def sleep(self, rows: int) -> None:
        """Sleep for the share of a batch of this many rows."""
        group = max(1, self.batch // rows)
        known = self.seconds.get(group)
        seconds = self.seconds[1] * rows / self.batch if known is None else known
        if self.jitter:
            u = float(torch.rand((), generator=step_generator(self.purpose)))
            seconds *= 1 + self.jitter * (2 * u - 1)
        time.sleep(seconds)


class SleepTeacher(_Sleeper):
    """Returns a boundary of the profile's size after the block's forward time; x_BN → y_BM."""

    def __init__(self, block: BlockProfile, batch: int, jitter: float) -> None:
        super().__init__(block.teacher_s, batch, jitter, "teacher")
        self.width = max(1, int(block.activation_bytes) // 4 // batch)

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of shape (rows, width)."""
        self.sleep(len(x))
        return torch.zeros(len(x), self.width)


class SleepStudent(_Sleeper):
    """Sleeps for the student's forward and backward time.

    The gradient of its one weight is real.
    """

    def __init__(self, block: BlockProfile, batch: int, jitter: float) -> None:
        super().__init__(block.student_s, batch, jitter, "student")
        self.width = max(1, int(block.activation_bytes) // 4 // batch)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width), depending on the weight."""
        self.sleep(len(x))
        return self.weight.expand(len(x), self.width)


class SleepOptimizer(torch.optim.SGD):
    """SGD that takes as long as the measured update."""

    def __init__(self, params: Iterable[nn.Parameter], seconds: float) -> None:
        super().__init__(params, lr=1e-3)
        self.seconds = seconds

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Sleep, then update."""
        time.sleep(self.seconds)
        super().step(closure)


class _Factory:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, params: Iterable[nn.Parameter]) -> SleepOptimizer:
        return SleepOptimizer(params, self.seconds)


def task(profile: Profile, steps: int, jitter: float = 0.0) -> Task:
    """A task that takes the profile's time on every block.

    Args:
        profile: seconds and boundary sizes per block.
        steps: batches.
        jitter: each sleep is scaled by a factor uniform in [1 − jitter, 1 + jitter].
    """
    pairs = [
        BlockPair(
            b.name,
            SleepTeacher(b, profile.batch, jitter),
            SleepStudent(b, profile.batch, jitter),
            optimizer=_Factory(b.update_s),
        )
        for b in profile.blocks
    ]
    data = torch.zeros(profile.batch, 1)
    return Task(
        pairs, tensor_source(data, profile.batch, steps=steps, shuffle=False), name="virtual"
    )
