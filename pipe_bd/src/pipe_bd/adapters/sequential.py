"""Distil any chain of modules: an ``nn.Sequential`` or a list, cut where you like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from shorthaul.errors import UserError
from torch import nn

from pipe_bd.adapters._modules import as_students, forbid_inplace, share
from pipe_bd.blocks import BlockPair, Task
from pipe_bd.source import as_source

Replace = Callable[[str, nn.Module], Any]


def _chain(model: nn.Module | Sequence[nn.Module], what: str) -> list[nn.Module]:
    if isinstance(model, nn.Sequential | nn.ModuleList | list | tuple):
        parts = list(model)
        if parts and all(isinstance(m, nn.Module) for m in parts):
            return parts
    raise UserError(
        f"the {what} is {type(model).__name__}, not a chain of modules: give nn.Sequential or a "
        "list, or use from_named"
    )


def cut_chain(parts: Sequence[nn.Module], cuts: Sequence[int] | None, what: str) -> list[nn.Module]:
    """Blocks of a chain; a new one begins at each of ``cuts``, None makes each module a block."""
    if cuts is None:
        return list(parts)
    edges = [0, *cuts, len(parts)]
    if any(a >= b for a, b in pairwise(edges)):
        raise UserError(
            f"cuts {list(cuts)} of the {what} must grow and lie between 1 and {len(parts) - 1}"
        )
    return [nn.Sequential(*parts[a:b]) for a, b in pairwise(edges)]


def make_pairs(
    names: Sequence[str],
    teachers: Sequence[nn.Module],
    students: Sequence[Any] | Mapping[str, Any] | Replace,
    last_loss: Any = None,
    **pair_options: Any,
) -> list[BlockPair]:
    """Pair the teacher's blocks with students.

    Args:
        names: of the blocks.
        teachers: the blocks.
        students: one entry per block, or a mapping by block name (blocks that it leaves out stay as
            they are), or a function ``f(name, teacher block)``. An entry is a module, a mapping of
            candidates, or None to keep the block.
        last_loss: loss of the last block, if it differs from the others'.
        **pair_options: of :class:`~pipe_bd.blocks.BlockPair`.
    """
    if callable(students) and not isinstance(students, nn.Module):
        entries = [students(n, t) for n, t in zip(names, teachers, strict=True)]
    elif isinstance(students, Mapping):
        for name in students:
            if name not in names:
                raise UserError(
                    f"there is no block {name!r} to replace: the blocks are {', '.join(names)}"
                )
        entries = [students.get(n) for n in names]
    else:
        entries = list(students)  # type: ignore[arg-type]
        if len(entries) != len(names):
            raise UserError(
                f"the teacher has {len(names)} blocks, the student {len(entries)}: cut both into "
                "as many"
            )
    pairs = []
    for i, (name, teacher, entry) in enumerate(zip(names, teachers, entries, strict=True)):
        candidates = as_students(teacher, entry)
        for c in candidates.values():
            forbid_inplace(c.module)
        options = dict(pair_options)
        if last_loss is not None and i == len(names) - 1:
            options["loss"] = last_loss
        pairs.append(BlockPair(name, forbid_inplace(teacher), candidates, **options))
    if all(c.steps == 0 for p in pairs for c in p.candidates.values()):
        raise UserError("no block is replaced: give at least one student")
    return pairs


def from_sequential(
    teacher: nn.Module | Sequence[nn.Module],
    student: nn.Module | Sequence[Any] | Mapping[str, Any] | Replace,
    *,
    source: Any,
    cuts: Sequence[int] | None = None,
    student_cuts: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    entry: nn.Module | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    name: str = "sequential",
    last_loss: Any = None,
    **pair_options: Any,
) -> Task:
    """A task from two chains of modules.

    Args:
        teacher: ``nn.Sequential`` or a list of modules.
        student: a chain that is cut like the teacher; or students per block as :func:`make_pairs`
            takes them.
        source: data, see :func:`~pipe_bd.source.as_source`.
        cuts: positions in the teacher's chain where a new block begins; None makes each module a
            block.
        student_cuts: the same for the student's chain; None cuts it like the teacher.
        names: of the blocks; None numbers them.
        entry: frozen module applied to the raw batch first.
        batch_size: for tensors and data sets.
        steps: batches to train on; None takes one epoch.
        seed: order of the batches.
        name: used in records.
        last_loss: loss of the last block, e.g. :class:`~pipe_bd.losses.SoftCrossEntropy` where it
            ends in logits.
        **pair_options: ``loss``, ``optimizer``, ``lr_schedule``, ``clip_norm`` of every block.

    Raises:
        UserError: not a chain, cuts outside it, or another number of students than blocks.
    """
    blocks = cut_chain([share(m).eval() for m in _chain(teacher, "teacher")], cuts, "teacher")
    if names is None:
        names = [f"block{i}" for i in range(len(blocks))]
    elif len(names) != len(blocks):
        raise UserError(f"{len(names)} names for {len(blocks)} blocks: give one per block")
    if isinstance(student, nn.Sequential | nn.ModuleList):
        student = list(student)
    if (
        isinstance(student, list | tuple)
        and (student_cuts is not None or cuts is not None)
        and len(student) != len(blocks)
    ):
        student = cut_chain(_chain(student, "student"), student_cuts or cuts, "student")
    pairs = make_pairs(names, blocks, student, last_loss, **pair_options)
    return Task(
        pairs,
        as_source(source, batch_size=batch_size, steps=steps, seed=seed),
        entry=entry,
        name=name,
    )
