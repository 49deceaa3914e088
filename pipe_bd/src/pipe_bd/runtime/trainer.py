"""One block's training step: forward, backward, gradient sum over its group, update.

Everything a schedule may do with a block goes through :class:`BlockTrainer`, so all schedules run
the same operations in the same order on a block and differ only in when and where (notes, section
1.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, Candidate
from pipe_bd.counters import Clock
from pipe_bd.rng import moment
from pipe_bd.runtime.batchnorm import synchronised

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of a precision; nothing for "full"."""
    dtype = AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


# All-reduces under way: the work, the flat buffer, and the tensors that it is to be copied into.
Sums = list[tuple[dist.Work, Tensor, list[Tensor]]]


def start_sum(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> Sums:
    """Start one all-reduce per element type over all tensors."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        by_type.setdefault(t.dtype, []).append(t)
    sums = []
    for same in by_type.values():
        flat = torch.cat([t.reshape(-1) for t in same])
        work = dist.all_reduce(flat, group=group, async_op=True)
        assert work is not None
        sums.append((work, flat, same))
    return sums


def finish_sum(sums: Sums) -> None:
    """Wait for the all-reduces and copy their results into the tensors."""
    for work, flat, tensors in sums:
        work.wait()
        offset = 0
        for t in tensors:
            t.copy_(flat[offset : offset + t.numel()].view_as(t))
            offset += t.numel()


@dataclass(frozen=True)
class Share:
    """Which rows of a batch this rank trains on, and with whom.

    Attributes:
        lo: first row.
        rows: number of rows.
        batch: rows of the whole batch.
        ranks: size of the group.
        group: its process group; None for a group of one.
    """

    lo: int
    rows: int
    batch: int
    ranks: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def fraction(self) -> float:
        """Local rows / batch rows."""
        return self.rows / self.batch


@dataclass
class _Student:
    """One candidate in training."""

    name: str
    module: nn.Module
    spec: Candidate
    optimizer: torch.optim.Optimizer
    base_lrs: list[float]
    scaler: torch.amp.GradScaler | None
    steps: int = 0
    finished: bool = False
    losses: dict[int, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None

    def parameters_with_grad(self) -> list[Tensor]:
        return [p for p in self.module.parameters() if p.grad is not None]


class BlockTrainer:
    """Trains every candidate of one block.

    Args:
        pair: teacher and candidates; modules are moved to ``device``.
        index: position of the block in the model.
        share: this rank's part of each batch.
        device: where to compute.
        seed: the run's seed.
        precision: see :class:`~pipe_bd.options.Options`.
        sync_batchnorm: share BatchNorm statistics over the group.
        clock: counts steps, bytes and time.
        loss_every: keep every n-th loss.
    """

    def __init__(
        self,
        pair: BlockPair,
        index: int,
        share: Share,
        device: torch.device,
        *,
        seed: int,
        precision: str,
        sync_batchnorm: bool,
        clock: Clock,
        loss_every: int = 1,
    ) -> None:
        self.pair, self.index, self.share, self.device = pair, index, share, device
        self.seed, self.precision, self.clock, self.loss_every = seed, precision, clock, loss_every
        self.sync_group = share.group if sync_batchnorm else None
        self.students: list[_Student] = []
        for name, spec in pair.candidates.items():
            module = spec.module.to(device)
            # A candidate of zero steps (a block that stays as it is) may have no parameter at all.
            finished = spec.steps == 0
            parameters: list[nn.Parameter] = (
                [nn.Parameter(torch.empty(0))]
                if finished
                else [p for p in module.parameters() if p.requires_grad]
            )
            if not parameters:
                raise UserError(
                    f"student {name!r} of block {pair.name!r} has no parameter to train: "
                    "give it some, or Candidate(module, steps=0) to keep it as it is"
                )
            make = spec.optimizer or pair.optimizer
            optimizer = make(parameters)
            scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
            lrs = [float(g["lr"]) for g in optimizer.param_groups]
            self.students.append(
                _Student(name, module, spec, optimizer, lrs, scaler, finished=finished)
            )
        self.pending: tuple[list[_Student], Sums, int] | None = None

    @property
    def finished(self) -> bool:
        """Whether no candidate trains any more."""
        return all(s.finished for s in self.students)

    def due(self, step: int) -> list[_Student]:
        """The candidates that take part in ``step``.

        Not finished, and not already past it (after a resume).
        """
        return [s for s in self.students if not s.finished and s.steps == step]

    def backward(self, x: Tensor, target: Tensor, side: Mapping[str, Any], step: int) -> None:
        """Forward and backward of every candidate due, and the start of the gradient sum.

        Args:
            x: teacher boundary entering the block, local rows.
            target: teacher boundary leaving it.
            side: keyword arguments of the block.
            step: the step; a candidate past it is skipped.
        """
        students = self.due(step)
        if not students:
            return
        norm = self._normaliser(target)
        for student in students:
            with (
                self.clock.span(
                    "student", f"{self.pair.name}/{student.name}", step=step, block=self.index
                ),
                moment(self.seed, self.pair.name, student.name, step, self.share.lo),
                synchronised(student.module, self.sync_group, self._count_batchnorm),
            ):
                with autocast(self.precision, self.device):
                    output = student.module(x, **side)
                    loss = self.pair.objective.share(output, target, self.share.fraction, norm)
                scaled = loss if student.scaler is None else student.scaler.scale(loss)
                scaled.backward()
                student.loss = loss.detach()
        self.pending = (students, self._start_sum(students), step)

    def update(self) -> bool:
        """Finish the gradient sum and update every candidate of the last :meth:`backward`.

        Returns:
            Whether any candidate took a step.
        """
        if self.pending is None:
            return False
        students, sums, step = self.pending
        self.pending = None
        if sums:
            with self.clock.span("allreduce_wait", step=step, block=self.index):
                finish_sum(sums)
        with self.clock.span("update", f"{self.pair.name} update", step=step, block=self.index):
            for student in students:
                self._step(student, step)
        return True

    def _normaliser(self, target: Tensor) -> Tensor | None:
        norm = self.pair.objective.normaliser(target)
        if norm is not None and self.share.group is not None:
            with self.clock.span("allreduce_wait", block=self.index):
                dist.all_reduce(norm, group=self.share.group)
            self._count_allreduce(norm)
        return norm

    def _start_sum(self, students: list[_Student]) -> Sums:
        """Start one all-reduce per element type over all candidates' gradients and losses."""
        if self.share.group is None:
            return []
        tensors: list[Tensor] = []
        for student in students:
            tensors += [p.grad for p in student.parameters_with_grad() if p.grad is not None]
            assert student.loss is not None
            tensors.append(student.loss)
        sums = start_sum(tensors, self.share.group)
        for _, flat, _ in sums:
            self._count_allreduce(flat)
        return sums

    def _ring_bytes(self, flat: Tensor) -> float:
        g = self.share.ranks
        return 2 * (g - 1) / g * flat.numel() * flat.element_size()

    def _count_allreduce(self, flat: Tensor) -> None:
        self.clock.counters.allreduce_bytes += self._ring_bytes(flat)
        self.clock.counters.allreduce_calls += 1

    def _count_batchnorm(self, flat: Tensor) -> None:
        self.clock.counters.batchnorm_bytes += self._ring_bytes(flat)
        self.clock.counters.batchnorm_calls += 1

    def _step(self, student: _Student, step: int) -> None:
        optimizer, scaler = student.optimizer, student.scaler
        if self.pair.lr_schedule is not None:
            factor = self.pair.lr_schedule(step)
            for group, lr in zip(optimizer.param_groups, student.base_lrs, strict=True):
                group["lr"] = lr * factor
        if self.pair.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(student.module.parameters(), self.pair.clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        student.module.zero_grad(set_to_none=True)  # also what the optimizer does not hold
        student.steps += 1
        self.clock.counters.student_steps[f"{self.pair.name}/{student.name}"] += 1
        assert student.loss is not None
        if step % self.loss_every == 0:
            student.losses[step] = student.loss
        if student.spec.steps is not None and student.steps >= student.spec.steps:
            student.finished = True
        if student.spec.target_loss is not None and float(student.loss) <= student.spec.target_loss:
            student.finished = True

    def losses(self) -> dict[str, dict[int, float]]:
        """Full-batch loss per candidate and step."""
        return {s.name: {k: float(v) for k, v in s.losses.items()} for s in self.students}

    def broken(self) -> str | None:
        """A candidate whose last loss, or any weight since, is not finite; or None."""
        for s in self.students:
            if s.loss is None:  # took no step in this run
                continue
            if not math.isfinite(float(s.loss)) or not all(
                bool(torch.isfinite(p).all()) for p in s.module.parameters()
            ):
                return s.name
        return None

    def state(self) -> dict[str, Any]:
        """A copy of everything a resumed run needs, on the CPU."""
        return {
            s.name: {
                "steps": s.steps,
                "finished": s.finished,
                "module": _to_cpu(s.module.state_dict()),
                "optimizer_type": type(s.optimizer).__name__,
                "optimizer": _to_cpu(s.optimizer.state_dict()),
                "scaler": None if s.scaler is None else s.scaler.state_dict(),
            }
            for s in self.students
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the state of :meth:`state`; candidates that it does not hold start anew."""
        for s in self.students:
            if s.name not in state:
                continue
            saved = state[s.name]
            then, now = saved["optimizer_type"], type(s.optimizer).__name__
            if then != now:
                raise ValueError(f"its optimizer was {then}, now it is {now}")
            s.module.load_state_dict(saved["module"])
            s.optimizer.load_state_dict(saved["optimizer"])
            s.steps, s.finished = saved["steps"], saved["finished"]
            if s.scaler is not None and saved["scaler"] is not None:
                s.scaler.load_state_dict(saved["scaler"])

    def resume_step(self) -> int | None:
        """The earliest step a candidate still needs, None when all are finished."""
        return min((s.steps for s in self.students if not s.finished), default=None)


def _to_cpu(value: Any) -> Any:
    """A deep copy with tensors on the CPU: the background writer must not see later updates."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: _to_cpu(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_cpu(v) for v in value)
    return value
