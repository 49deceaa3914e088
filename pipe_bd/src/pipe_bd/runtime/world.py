"""The processes of a run: who I am, my device, the groups, and control messages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from shorthaul.errors import UserError

from pipe_bd.runtime.allocator import keep_pages

# A rank that has nothing left to do waits for the others' last step, however long they train.
# Whether they are alive is the watchdog's business, not that of torch's time-out.
PATIENCE = timedelta(days=365)


@dataclass
class World:
    """This process's place among the ranks.

    Attributes:
        rank: number of this process.
        size: number of processes; 1 means no process group is used.
        device: where this rank computes.
    """

    rank: int
    size: int
    device: torch.device
    _groups: dict[tuple[int, ...], dist.ProcessGroup | None] = field(default_factory=dict)
    _control: dist.ProcessGroup | None = None

    def group(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """The process group of these ranks; None for a group of one or one that I am not in.

        Every rank must ask for the same groups in the same order.
        """
        key = tuple(ranks)
        if len(key) == 1:
            return None
        if key not in self._groups:
            made = dist.new_group(list(key), timeout=PATIENCE)
            self._groups[key] = made if self.rank in key else None
        return self._groups[key]

    def control(self) -> dist.ProcessGroup | None:
        """A gloo group for small Python objects and barriers, whatever carries the tensors."""
        if self.size > 1 and self._control is None:
            self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self._control

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control())
        return items

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.control())


def under_torchrun() -> bool:
    """Whether a launcher has given this process a rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


_world: World | None = None
_of: dist.ProcessGroup | None = None  # the default group that _world speaks for


def join(device: str) -> World:
    """Join the process group that torchrun describes, or be alone.

    Args:
        device: "auto", "cpu" or "cuda". On the CPU this process's allocator is told to keep its
            pages (:mod:`pipe_bd.runtime.allocator`).

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    global _of, _world
    size = int(os.environ.get("WORLD_SIZE", "1")) if under_torchrun() else 1
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and torch.cuda.device_count() <= local:
        raise UserError(
            f"device 'cuda' was asked for, but this rank (local {local}) sees "
            f"{torch.cuda.device_count()} GPUs"
        )
    # All ranks of this machine, or none: ranks that disagree would wait for different back ends.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.device_count() >= here)
    place = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    else:
        keep_pages()
    if size == 1:
        return World(0, 1, place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=PATIENCE)
    if _world is None or _world.device != place or _of is not dist.group.WORLD:
        _world, _of = World(dist.get_rank(), dist.get_world_size(), place), dist.group.WORLD
    return _world


def leave() -> None:
    """Take the process group down; the caller will not communicate again."""
    global _of, _world
    _of = _world = None
    if dist.is_initialized():
        dist.destroy_process_group()
