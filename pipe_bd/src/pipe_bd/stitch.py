"""The whole student: entry, the chosen student of every block, and the teacher's tail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, Candidate, SideInputs, Task
from pipe_bd.losses import relative_error
from pipe_bd.source import Batch

Choice = str | Mapping[str, str] | None


def chosen(pair: BlockPair, choose: Choice) -> tuple[str, Candidate]:
    """Name and candidate that stand for a block.

    Args:
        pair: the block.
        choose: one candidate name for all blocks, or a name per block; needed only where a block
            has several.

    Raises:
        UserError: several candidates and none chosen, or an unknown name.
    """
    name = choose if isinstance(choose, str) else (choose or {}).get(pair.name)
    known = ", ".join(pair.candidates)
    if name is None:
        if len(pair.candidates) > 1:
            raise UserError(
                f"block {pair.name!r} has several candidates ({known}): choose one by name"
            )
        name = next(iter(pair.candidates))
    if name not in pair.candidates:
        raise UserError(f"block {pair.name!r} has no candidate {name!r}: it has {known}")
    return name, pair.candidates[name]


def check_choice(task: Task, choose: Choice) -> None:
    """Refuse a choice for a block that the task does not have."""
    if isinstance(choose, Mapping):
        names = [p.name for p in task.pairs]
        for name in choose:
            if name not in names:
                raise UserError(
                    f"there is no block {name!r} to choose for: the blocks are {', '.join(names)}"
                )


class Stitched(nn.Module):
    """Blocks one after another, with their side inputs.

    Args:
        blocks: one module per block, by name.
        entry: applied to the raw batch first.
        side: side inputs of the blocks.
        tail: applied last.
    """

    def __init__(
        self,
        blocks: Mapping[str, nn.Module],
        entry: nn.Module | None = None,
        side: SideInputs | None = None,
        tail: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.entry = entry or nn.Identity()
        self.blocks = nn.ModuleList(blocks.values())
        self.tail = tail or nn.Identity()
        self.names = tuple(blocks)
        self.side = side

    def forward(self, x: Tensor, **carry: Tensor) -> Any:
        """Raw batch (rows, ...) → the tail's output; ``carry`` as in a :class:`Batch`."""
        x = self.entry(x)
        side = [{}] * len(self.blocks) if self.side is None else self.side(x, carry)
        for block, kwargs in zip(self.blocks, side, strict=True):
            x = block(x, **kwargs)
        return self.tail(x)


def stitch(task: Task, choose: Choice = None) -> Stitched:
    """The whole student of a task, in eval mode. Modules are shared with the task, not copied.

    Args:
        task: the job, trained or not.
        choose: see :func:`chosen`.
    """
    check_choice(task, choose)
    blocks = {p.name: chosen(p, choose)[1].module for p in task.pairs}
    return _whole(task, blocks)


def teacher_of(task: Task) -> Stitched:
    """The whole teacher of a task, run block by block, in eval mode."""
    return _whole(task, {p.name: p.teacher for p in task.pairs})


def _whole(task: Task, blocks: Mapping[str, nn.Module]) -> Stitched:
    whole = Stitched(blocks, task.entry, task.side, getattr(task, "tail", None)).eval()
    devices = [p.device for p in whole.blocks.parameters()]
    # A run leaves what it used on its device, and the rest (the tail, others' blocks) behind.
    if any(p.device != devices[0] for p in whole.parameters()):
        whole.to(devices[0])
    return whole


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def block_errors(
    task: Task,
    x: Tensor,
    measure: Callable[[Tensor, Tensor], float] = relative_error,
    **carry: Tensor,
) -> dict[str, dict[str, float]]:
    """Error of every candidate on given rows, each fed by the teacher, as it was trained.

    Args:
        task: the job, trained or not.
        x: raw batch (rows, ...).
        measure: ``f(student output, teacher output)``.
        **carry: as in a :class:`~pipe_bd.source.Batch`.
    """
    errors: dict[str, dict[str, float]] = {}
    device = device_of(teacher_of(task))
    carry = {k: v.to(device) for k, v in carry.items()}
    with torch.no_grad():
        x = task.enter(Batch(x.to(device), carry))
        for pair, side in zip(task.pairs, task.side_inputs(x, carry), strict=True):
            y = pair.teacher(x, **side)
            errors[pair.name] = {}
            for name, candidate in pair.candidates.items():
                modes = {m: m.training for m in candidate.module.modules()}
                errors[pair.name][name] = measure(candidate.module.to(device).eval()(x, **side), y)
                for module, mode in modes.items():
                    module.training = mode
            x = y
    return errors
