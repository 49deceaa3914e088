"""Block after block: the paper's two baselines, which run the teacher again for every block.

``dp`` (DNA): for block i, all steps; every rank takes its rows, runs teacher blocks 0..i and trains
S_i with an all-reduce. ``ls`` (layer scheduling): whole blocks are tasks, bin-packed on ranks by
cost; full batches, no communication. Teacher block calls per batch: N·B(B+1)/2 for dp, B(B+1)/2 for
ls; the data is read B times (section 1.3).
"""

from __future__ import annotations

from collections.abc import Sequence

from shorthaul.progress import bar

from pipe_bd.plan import row_ranges
from pipe_bd.runtime.context import Context, Prefetcher
from pipe_bd.runtime.trainer import Share


def _train_block(context: Context, index: int, share: Share) -> None:
    trainer = context.add_trainer(index, share)
    context.use_teacher(range(index + 1), entry=True)
    start = trainer.resume_step()
    steps = range(context.steps if start is None else start, context.steps)
    loader = Prefetcher(context, steps, share.lo, share.lo + share.rows, context.options.depth)
    for step in steps:
        if trainer.finished:
            break
        batch = loader.take(step)
        x = context.enter(batch)
        side = context.task.side_inputs(x, batch.carry)
        for j in range(index):
            x = context.teach(j, x, side[j], step, share.lo)
        y = context.teach(index, x, side[index], step, share.lo)
        context.learn(index, x, y, side[index], step)
        if trainer.update():
            context.saved(index, step)
    loader.close()
    context.done(index)


def run_dp(context: Context) -> None:
    """Data-parallel blockwise training, one block after the other; all ranks call it."""
    world = context.world
    everyone = range(world.size)
    group = world.group(everyone)
    lo, hi = row_ranges(context.batch, world.size)[world.rank]
    share = Share(lo, hi - lo, context.batch, world.size, group)
    _train(context, list(range(len(context.task.pairs))), share)


def run_ls(context: Context, assignment: Sequence[int]) -> None:
    """Whole blocks on ranks, no communication; all ranks call it.

    Args:
        context: this rank.
        assignment: rank of each block.
    """
    mine = [i for i, rank in enumerate(assignment) if rank == context.world.rank]
    _train(context, mine, Share(0, context.batch, context.batch))


def _train(context: Context, blocks: Sequence[int], share: Share) -> None:
    options = context.options
    progress = bar(len(blocks), options.schedule, disable=None if options.progress else True)
    for index in blocks:
        _train_block(context, index, share)
        progress.update(1)
    progress.close()
