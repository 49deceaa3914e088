"""What is distilled.

Teacher blocks, their student candidates, and how a raw batch enters the first block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.losses import MSE, Loss, as_loss
from pipe_bd.source import Batch, BatchSource

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass
class Candidate:
    """One student for one block.

    Args:
        module: called as ``module(x, **side)`` with the teacher's boundary tensor x; returns the
            teacher's output shape.
        optimizer: overrides the pair's optimizer factory.
        steps: the candidate is finished after this many steps; None trains to the end of the data.
        target_loss: the candidate is finished once its full-batch loss is at or below this value.
    """

    module: nn.Module
    optimizer: OptimizerFactory | None = None
    steps: int | None = None
    target_loss: float | None = None


@dataclass
class BlockPair:
    """A frozen teacher block and the students that learn to replace it (Pipe-BD, section II).

    Student i is trained on the *teacher's* boundary x_i, never on another student's output, so
    blocks are independent.

    Args:
        name: unique name; keys the random numbers and the checkpoint.
        teacher: frozen block, called as ``teacher(x, **side)``, returns one tensor.
        students: one module, or a mapping from candidate name to module or :class:`Candidate`.
        loss: a :class:`~pipe_bd.losses.Loss`, or any mean-over-rows ``f(output, target)``.
        optimizer: makes the optimizer of one candidate from its parameters.
        lr_schedule: factor on the base learning rate as a function of the block's own step.
        clip_norm: clip each candidate's gradient to this L2 norm.
    """

    name: str
    teacher: nn.Module
    students: nn.Module | Mapping[str, nn.Module | Candidate]
    loss: Loss | Callable[[Tensor, Tensor], Tensor] = field(default_factory=MSE)
    optimizer: OptimizerFactory = field(default_factory=lambda: partial(torch.optim.AdamW, lr=1e-3))
    lr_schedule: Callable[[int], float] | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        students = (
            self.students if isinstance(self.students, Mapping) else {"student": self.students}
        )
        if not students:
            raise UserError(f"block {self.name!r} has no student: give at least one module")
        self.candidates: dict[str, Candidate] = {
            name: s if isinstance(s, Candidate) else Candidate(s) for name, s in students.items()
        }
        self.objective: Loss = as_loss(self.loss)

    @property
    def student(self) -> nn.Module:
        """The only student; raises UserError when the block holds a library of candidates."""
        if len(self.candidates) != 1:
            names = ", ".join(self.candidates)
            raise UserError(
                f"block {self.name!r} has several candidates ({names}): choose one by name"
            )
        return next(iter(self.candidates.values())).module

    def has_training_batchnorm(self) -> bool:
        """Whether a student holds BatchNorm that would use batch statistics."""
        return any(
            isinstance(m, BATCH_NORMS) and m.training
            for c in self.candidates.values()
            for m in c.module.modules()
        )


class SideInputs(Protocol):
    """Extra keyword arguments of the blocks (rotary embeddings, masks).

    Rebuilt once per batch on every rank.
    """

    def __call__(self, x: Tensor, carry: Mapping[str, Tensor]) -> Sequence[Mapping[str, Any]]:
        """Keyword arguments per block, for the local rows.

        Args:
            x: the boundary tensor this rank received, shape (rows, ...).
            carry: small tensors that travel with x unchanged (e.g. the padding mask), each (rows,
                ...).
        """
        ...


@dataclass
class Task:
    """A whole distillation job.

    Args:
        pairs: the blocks in order.
        source: the batches.
        entry: frozen module applied to the raw batch to give the first boundary (an embedding);
            None if the batch is it.
        side: extra block inputs.
        name: used in records.
    """

    pairs: list[BlockPair]
    source: BatchSource
    entry: nn.Module | None = None
    side: SideInputs | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UserError("no blocks given: a task needs at least one BlockPair")
        names = [p.name for p in self.pairs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"block name {name!r} is used twice: give each block its own name")

    def side_inputs(self, x: Tensor, carry: Mapping[str, Tensor]) -> Sequence[Mapping[str, Any]]:
        """Keyword arguments of every block for these rows."""
        if self.side is None:
            return [{}] * len(self.pairs)
        return self.side(x, carry)

    def enter(self, batch: Batch) -> Tensor:
        """The first boundary x_0 of a raw batch."""
        with torch.no_grad():
            return (batch.x if self.entry is None else self.entry(batch.x)).contiguous()


class Projected(nn.Module):
    """A student of another width between two linear maps.

    So that its boundaries agree with the teacher's.

    Both maps are trained with the student and stay part of it when blocks are stitched.

    Args:
        block: the student, width w_s in and out.
        before: teacher width → w_s, or None.
        after: w_s → teacher width, or None.
    """

    def __init__(self, block: nn.Module, before: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.block = block
        self.after = after or nn.Identity()

    def forward(self, x: Tensor, **side: Any) -> Tensor:
        """(rows, ..., teacher width) → (rows, ..., teacher width)."""
        return self.after(self.block(self.before(x), **side))


@dataclass(frozen=True)
class Boundary:
    """Shape of one row and type of a boundary tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def bytes(self, rows: int) -> int:
        """Bytes of this many rows."""
        count = 1
        for n in self.shape:
            count *= n
        return rows * count * self.dtype.itemsize


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, and every submodule's own mode again afterwards, whatever happens."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def freeze(task: Task, teacher_mode: str) -> None:
    """Freeze the teacher in place.

    No gradients, and eval mode unless the caller keeps the modules' own mode.

    Args:
        task: the job.
        teacher_mode: "eval" (default everywhere) or "train" (the original's mistake, kept to be
            compared with).
    """
    for module in [task.entry, *(p.teacher for p in task.pairs)]:
        if module is not None:
            module.requires_grad_(False)
            module.train(teacher_mode == "train")


def first_line(error: BaseException) -> str:
    """What an error says, short enough for one line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _call(module: nn.Module, x: Tensor, side: Mapping[str, Any], what: str) -> Tensor:
    x, side = _to_device_of(module, x), _to_device_of(module, dict(side))
    version = x._version
    try:
        with _evaluating(module):
            out = module(x, **side)
    except Exception as error:
        raise UserError(
            f"{what} rejects its input of shape {_shape(x)}: {first_line(error)}"
        ) from error
    if not isinstance(out, Tensor):
        raise UserError(
            f"{what} returned {type(out).__name__}: wrap it so that it returns one tensor"
        )
    if x._version != version:
        raise UserError(
            f"{what} changes its input in place: other blocks still need it, make the first "
            "operation out of place (e.g. ReLU(inplace=False))"
        )
    return out


def _to_device_of(module: nn.Module, value: Any) -> Any:
    """Tensors, also inside of containers, where the module's weights are.

    After a run on a GPU they are there.
    """
    weight = next(iter([*module.parameters(), *module.buffers()]), None)
    if weight is None:
        return value
    if isinstance(value, Tensor):
        return value.to(weight.device)
    if isinstance(value, Batch):
        return Batch(_to_device_of(module, value.x), _to_device_of(module, dict(value.carry)))
    if isinstance(value, dict):
        return {k: _to_device_of(module, v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_to_device_of(module, v) for v in value)
    return value


def _refuse_shared(task: Task) -> None:
    """Devices train copies: a weight that two students share would be trained apart."""
    owners: dict[int, str] = {}
    for pair in task.pairs:
        for name, candidate in pair.candidates.items():
            mine = f"student {name!r} of block {pair.name!r}"
            for p in candidate.module.parameters():
                other = owners.setdefault(id(p), mine)
                if other != mine and p.requires_grad and candidate.steps != 0:
                    raise UserError(
                        f"{mine} shares weights with {other}: give each a copy "
                        "(copy.deepcopy), blocks are trained apart"
                    )


def _shape(x: Tensor) -> str:
    return str(tuple(["rows", *x.shape[1:]])).replace("'", "")


def check(task: Task, precision: AbstractContextManager[Any] | None = None) -> list[Boundary]:
    """Run two rows through every teacher and student block and compare the shapes.

    Modules keep their mode, buffers and random state: all run in eval mode and the generators are
    restored.

    Args:
        task: the job.
        precision: autocast context of the run; it decides the boundaries' element types.

    Returns:
        The boundaries x_0 … x_B (B + 1 of them).

    Raises:
        UserError: naming the block and both shapes where a student's output differs from its
            teacher's, or the block that rejects its input.
    """
    _refuse_shared(task)
    batch = task.source.load(0, 0, min(2, task.source.batch_size))
    first = task.pairs[0].teacher if task.entry is None else task.entry
    batch = _to_device_of(first, batch)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), precision or nullcontext():
        x = task.enter(batch)
        side = task.side_inputs(x, batch.carry)
        boundaries = [Boundary(tuple(x.shape[1:]), x.dtype)]
        for i, pair in enumerate(task.pairs):
            y = _call(pair.teacher, x, side[i], f"teacher of block {pair.name!r}")
            if y.shape[:1] != x.shape[:1]:
                raise UserError(
                    f"teacher of block {pair.name!r} turns {len(x)} rows into a tensor of shape "
                    f"{tuple(y.shape)}: blocks must keep the batch dimension"
                )
            for name, candidate in pair.candidates.items():
                z = _call(candidate.module, x, side[i], f"student {name!r} of block {pair.name!r}")
                if z.shape != y.shape:
                    raise UserError(
                        f"block {pair.name!r}: student {name!r} returns {_shape(z)}, its teacher "
                        f"{_shape(y)}: "
                        "make the shapes agree or wrap the student in pipe_bd.Projected"
                    )
            x = y.contiguous()
            boundaries.append(Boundary(tuple(x.shape[1:]), x.dtype))
    return boundaries
