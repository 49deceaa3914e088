"""What every schedule must do per run, in closed form (notes, 1.3–1.6, checks 3, 4 and 15).

The counters of a run are compared with these to the last call, row and byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipe_bd.blocks import Boundary, Task
from pipe_bd.losses import Loss
from pipe_bd.plan import Plan, row_ranges
from pipe_bd.result import Result
from pipe_bd.runtime.pipeline import carried
from pipe_bd.runtime.relay import overlaps


@dataclass(frozen=True)
class Counts:
    """Totals over all ranks.

    Attributes:
        teacher_calls: teacher block forward passes.
        teacher_rows: rows through teacher blocks.
        loader_reads: reads of a batch or of a row range of one.
        loader_rows: rows read.
        relay_bytes: bytes of boundaries (and what travels with them) sent between stages.
        relay_messages: sends.
        allreduce_bytes: bytes sent in ring all-reduces, 2(g−1) times each buffer.
    """

    teacher_calls: int
    teacher_rows: int
    loader_reads: int
    loader_rows: int
    relay_bytes: int
    relay_messages: int
    allreduce_bytes: int

    def to_dict(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


def gradient_bytes(task: Task) -> list[int]:
    """Bytes that a group sums per block and step.

    Gradients, one loss per candidate, the target's normaliser if any.
    """
    sizes = []
    for pair in task.pairs:
        weights = [
            [p for p in c.module.parameters() if p.requires_grad]
            for c in pair.candidates.values()
            if c.steps != 0  # kept as it is
        ]
        if not weights:
            sizes.append(0)
            continue
        scalar = weights[0][0].element_size()
        scalars = len(weights) + (type(pair.objective).normaliser is not Loss.normaliser)
        sizes.append(
            sum(p.numel() * p.element_size() for w in weights for p in w) + scalars * scalar
        )
    return sizes


def expected(
    schedule: str,
    *,
    blocks: int,
    ranks: int,
    steps: int,
    batch: int,
    plan: Plan | None,
    boundaries: Sequence[Boundary],
    gradients: Sequence[int],
    carry: Mapping[str, Boundary] | None = None,
    streaming: bool = False,
) -> Counts:
    """The counts of one run.

    Args:
        schedule: its name.
        blocks: B.
        ranks: N.
        steps: batches.
        batch: rows per batch.
        plan: its stages; not used for dp and ls.
        boundaries: x_0 … x_B.
        gradients: bytes summed per block, see :func:`gradient_bytes`.
        carry: what travels with a boundary.
        streaming: the data can be read by one rank only, which hands the others of its stage their
            rows.
    """
    triangle = blocks * (blocks + 1) // 2
    if schedule == "dp":
        ring = 2 * (ranks - 1) * sum(gradients)
        per_step = (ranks * triangle, batch * triangle, ranks * blocks, blocks * batch, 0, 0, ring)
    elif schedule == "ls":
        per_step = (triangle, batch * triangle, blocks, blocks * batch, 0, 0, 0)
    else:
        assert plan is not None
        calls = sum(s.devices * len(s.blocks) for s in plan.stages)
        ring = sum(2 * (s.devices - 1) * sum(gradients[i] for i in s.blocks) for s in plan.stages)
        extra = list((carry or {}).values())
        sent = sum(
            boundaries[c + 1].bytes(batch) + sum(b.bytes(batch) for b in extra) for c in plan.cuts
        )
        pairs = zip(plan.stages, plan.stages[1:], strict=False)
        messages = sum(
            len(overlaps(batch, a.devices, b.devices)) * (1 + len(extra)) for a, b in pairs
        )
        readers = plan.stages[0].devices
        if streaming and readers > 1:
            first = [boundaries[0], *extra]
            given = batch - row_ranges(batch, readers)[0][1]
            sent += sum(b.bytes(given) for b in first)
            messages += (readers - 1) * len(first)
            readers = 1
        per_step = (calls, batch * blocks, readers, batch, sent, messages, ring)
    return Counts(*(steps * n for n in per_step))


def found(result: Result) -> Counts:
    """The counts of a run that took place."""
    return Counts(
        teacher_calls=sum(result.total("teacher_calls").values()),
        teacher_rows=sum(result.total("teacher_rows").values()),
        loader_reads=result.total("loader_reads"),
        loader_rows=result.total("loader_rows"),
        relay_bytes=sum(result.total("relay_bytes").values()),
        relay_messages=result.total("relay_messages"),
        allreduce_bytes=round(result.total("allreduce_bytes")),
    )


def of_run(task: Task, result: Result, boundaries: Sequence[Boundary], ranks: int) -> Counts:
    """:func:`expected` for a run of a task."""
    return expected(
        result.schedule,
        blocks=len(task.pairs),
        ranks=ranks,
        steps=result.steps,
        batch=result.batch,
        plan=result.plan,
        boundaries=boundaries,
        gradients=gradient_bytes(task),
        carry=carried(task.source.load(0, 0, 1)),
        streaming=getattr(task.source, "streaming", False),
    )


def differences(want: Counts, have: Counts) -> dict[str, Any]:
    """The fields that differ: {name: [expected, found]}."""
    a, b = want.to_dict(), have.to_dict()
    return {k: [a[k], b[k]] for k in a if a[k] != b[k]}
