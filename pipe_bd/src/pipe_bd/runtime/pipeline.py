"""Stages in a line.

Sequential, joint, teacher relaying, decoupled updates and hybrid plans are one loop.

===========  ==================================  =========================
schedule     plan                                barrier
===========  ==================================  =========================
sequential   one stage, one device               none (nobody to wait for)
joint        one stage, N devices                its gradient all-reduce
tr           stages of one device                every step (section 1.4)
dpu          stages of one device                none (section 1.5)
ahd          any stages, any widths              none (section 1.6)
===========  ==================================  =========================

Per step a rank gets the boundary x_lo, runs its teacher blocks keeping every boundary, sends x_hi
on *before* any student work, and then trains its students.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from shorthaul.progress import bar
from torch import Tensor

from pipe_bd.blocks import Boundary
from pipe_bd.plan import Plan, row_ranges
from pipe_bd.runtime.context import Context, Prefetcher
from pipe_bd.runtime.relay import Receiver, Sender
from pipe_bd.runtime.trainer import Share
from pipe_bd.source import Batch


class _Inlet:
    """Where a stage's boundary comes from.

    The source for the first stage, the relay for the others.
    """

    def __init__(
        self, context: Context, plan: Plan, stage: int, steps: range, carry: dict[str, Boundary]
    ) -> None:
        self.context, self.carry = context, carry
        world, depth = context.world, context.options.depth
        self.ranks = plan.ranks(stage)
        self.me = world.rank - self.ranks.start
        lo, hi = row_ranges(context.batch, len(self.ranks))[self.me]
        self.loader: Prefetcher | None = None
        self.receiver: Receiver | None = None
        self.scatter: Sender | None = None
        if stage > 0:
            previous = plan.ranks(stage - 1)
            boundary = context.boundaries[plan.stages[stage].first]
            self.receiver = self._receiver(list(previous), boundary, steps, list(self.ranks))
        elif len(self.ranks) > 1 and getattr(context.task.source, "streaming", False):
            # A stream can be read by one rank only: it hands the others their rows of the first
            # boundary.
            if self.me == 0:
                self.loader = Prefetcher(context, steps, 0, context.batch, depth)
                self.scatter = Sender(
                    0, [self.ranks[0]], list(self.ranks), depth, context.clock, "source"
                )
            else:
                self.receiver = self._receiver(
                    [self.ranks[0]], context.boundaries[0], steps, list(self.ranks)
                )
        else:
            self.loader = Prefetcher(context, steps, lo, hi, depth)

    def _receiver(
        self, senders: list[int], boundary: Boundary, steps: range, receivers: list[int]
    ) -> Receiver:
        c = self.context
        boundaries = [boundary, *self.carry.values()]
        depth, device = c.options.depth, c.world.device
        return Receiver(
            self.me, senders, receivers, boundaries, c.batch, steps, depth, c.clock, device
        )

    def get(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's rows of the stage's first boundary, and what travels with it."""
        if self.receiver is not None:
            x, *carried = self.receiver.receive(step)
            return x, dict(zip(self.carry, carried, strict=True))
        assert self.loader is not None
        batch = self.loader.take(step)
        x, carry = self.context.enter(batch), {k: batch.carry[k].contiguous() for k in self.carry}
        if self.scatter is None:
            return x, carry
        self.scatter.send([x, *carry.values()], self.context.batch)
        hi = row_ranges(self.context.batch, len(self.ranks))[0][1]
        return x[:hi].contiguous(), {k: v[:hi].contiguous() for k, v in carry.items()}

    def close(self) -> None:
        if self.scatter is not None:
            self.scatter.close()
        if self.loader is not None:
            self.loader.close()


def carried(batch: Batch) -> dict[str, Boundary]:
    """Shapes of the tensors that travel with the boundary."""
    return {k: Boundary(tuple(v.shape[1:]), v.dtype) for k, v in batch.carry.items()}


def first_step(resume_steps: Sequence[int | None], steps: int) -> int:
    """Where the relay starts: the earliest step that some block of some rank still needs."""
    return min((s for s in resume_steps if s is not None), default=steps)


def run(context: Context, plan: Plan) -> None:
    """Train every block of the task by a plan; all ranks call it.

    Args:
        context: this rank.
        plan: validated stages; ranks beyond it stay idle.
    """
    world, options, task = context.world, context.options, context.task
    groups = [world.group(plan.ranks(s)) for s in range(len(plan.stages))]
    me = plan.stage_of(world.rank)
    stage = plan.stages[me] if me is not None else None
    if me is not None and stage is not None:
        ranks = plan.ranks(me)
        lo, hi = row_ranges(context.batch, len(ranks))[world.rank - ranks.start]
        share = Share(lo, hi - lo, context.batch, len(ranks), groups[me])
        for index in stage.blocks:
            context.add_trainer(index, share)
        context.use_teacher(stage.blocks, entry=me == 0)
    needs = [t.resume_step() for t in context.trainers.values()]
    start = first_step([s for rank in world.gather(needs) for s in rank], context.steps)
    if me is None or stage is None:
        if options.schedule == "tr":
            for _ in range(start, context.steps):
                world.barrier()
        return
    carry = carried(task.source.load(0, 0, 1))
    steps = range(start, context.steps)
    inlet = _Inlet(context, plan, me, steps, carry)
    outlet = None
    if me + 1 < len(plan.stages):
        outlet = Sender(
            world.rank - plan.ranks(me).start,
            list(plan.ranks(me)),
            list(plan.ranks(me + 1)),
            options.depth,
            context.clock,
            f"{me}->{me + 1}",
        )
    progress = bar(
        context.steps,
        options.schedule,
        initial=start,
        disable=None if options.progress else True,
    )
    for step in steps:
        _step(context, plan, me, share.lo, step, inlet, outlet)
        context.marks.append(time.perf_counter())
        progress.update(1)
    progress.close()
    if outlet is not None:
        outlet.close()
    inlet.close()


def _step(
    context: Context, plan: Plan, me: int, lo: int, step: int, inlet: _Inlet, outlet: Sender | None
) -> None:
    stage = plan.stages[me]
    x, carry = inlet.get(step)
    side = context.task.side_inputs(x, carry)
    boundaries = [x]
    needed = any(context.trainers[i].due(step) for i in stage.blocks)
    for index in stage.blocks:
        if outlet is None and not needed:
            break
        boundaries.append(context.teach(index, boundaries[-1], side[index], step, lo))
    if outlet is not None:
        # What was received lies in a buffer that is filled again while this send may still wait:
        # what travels on unchanged, or is a view of it, must not share its memory.
        passing = [boundaries[-1], *carry.values()]
        if inlet.receiver is not None:
            received = {t.untyped_storage().data_ptr() for t in (x, *carry.values())}
            passing = [
                t.clone() if t.untyped_storage().data_ptr() in received else t for t in passing
            ]
        outlet.send(passing, context.batch)
    barrier = context.options.schedule == "tr"
    previous: int | None = None
    for number, index in enumerate(stage.blocks):
        if not needed:
            break
        context.learn(index, boundaries[number], boundaries[number + 1], side[index], step)
        if barrier:
            continue
        # The gradients of this block are summed over the group while the next block computes.
        if context.trainers[index].share.group is None:
            _finish(context, index, step)
        else:
            if previous is not None:
                _finish(context, previous, step)
            previous = index
    if previous is not None:
        _finish(context, previous, step)
    if barrier:
        with context.clock.span("barrier", step=step):
            context.world.barrier()
        for index in stage.blocks:
            _finish(context, index, step)


def _finish(context: Context, index: int, step: int) -> None:
    if context.trainers[index].update():
        context.saved(index, step)
