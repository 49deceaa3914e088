"""What every schedule needs on a rank.

The task on its device, the teacher's forward pass, the batches, the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from shorthaul.errors import Fault, ShorthaulError, UserError
from shorthaul.trace import Tracer
from torch import Tensor

from pipe_bd.blocks import Boundary, Task, first_line
from pipe_bd.counters import Clock, Counters
from pipe_bd.options import Options
from pipe_bd.rng import moment
from pipe_bd.runtime import checkpoint
from pipe_bd.runtime.trainer import BlockTrainer, Share, autocast
from pipe_bd.runtime.world import World
from pipe_bd.source import Batch


@contextmanager
def _named(what: str, step: int) -> Iterator[None]:
    """Say which module failed, and when, if one does."""
    try:
        yield
    except ShorthaulError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise Fault(f"{what} failed at step {step}: {kind}: {first_line(error)}") from error


class Context:
    """One rank of one run.

    Attributes:
        marks: clock readings at the end of each step of a pipeline, seconds.

    Args:
        task: the job; modules still where the caller made them.
        options: of the run.
        world: the ranks.
        boundaries: x_0 … x_B.
    """

    def __init__(
        self, task: Task, options: Options, world: World, boundaries: Sequence[Boundary]
    ) -> None:
        self.task, self.options, self.world, self.boundaries = task, options, world, boundaries
        self.counters = Counters()
        self.tracer = (
            Tracer(world.rank, f"rank {world.rank}") if options.trace_dir is not None else None
        )
        self.clock = Clock(self.counters, self.tracer)
        self.batch = task.source.batch_size
        self.steps = task.source.steps
        self.trainers: dict[int, BlockTrainer] = {}
        self.writer = (
            checkpoint.Writer(options.checkpoint_dir)
            if options.checkpoint_dir is not None
            else None
        )
        self.marks: list[float] = []
        self._saved: dict[int, int] = {}

    # -- set-up

    def add_trainer(self, index: int, share: Share) -> BlockTrainer:
        """Make the trainer of a block on this rank, from its checkpoint when resuming."""
        pair, options = self.task.pairs[index], self.options
        sync = options.batchnorm == "sync"
        if (
            share.group is not None
            and options.batchnorm == "one-device"
            and pair.has_training_batchnorm()
        ):
            raise UserError(
                f"block {pair.name!r} has a student with train-mode BatchNorm and would be split "
                f"over {share.ranks} devices: "
                "give it one device, or set batchnorm to 'sync' (exact) or 'local'"
            )
        trainer = BlockTrainer(
            pair,
            index,
            share,
            self.world.device,
            seed=options.seed,
            precision=options.precision,
            sync_batchnorm=sync,
            clock=self.clock,
            loss_every=options.loss_every,
        )
        if options.resume:
            assert options.checkpoint_dir is not None
            state = checkpoint.newest(options.checkpoint_dir, index)
            if state is not None:
                self._load(trainer, state)
                ahead = max(s.steps for s in trainer.students)
                if ahead > self.steps:
                    raise UserError(
                        f"the checkpoint of block {pair.name!r} stands at step {ahead}, the run "
                        f"would end at {self.steps}: give {ahead} steps or more (--steps)"
                    )
        self.trainers[index] = trainer
        return trainer

    def _load(self, trainer: BlockTrainer, state: Mapping[str, Any]) -> None:
        try:
            trainer.load_state(state)
        except (RuntimeError, ValueError, KeyError) as error:
            assert self.options.checkpoint_dir is not None
            path = checkpoint.newest_path(self.options.checkpoint_dir, trainer.index)
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {path} does not fit block {trainer.pair.name!r}: {reason}; resume "
                "with the same model and optimizer"
            ) from error

    def use_teacher(self, blocks: Iterable[int], entry: bool) -> None:
        """Move the teacher blocks this rank runs to its device."""
        for i in blocks:
            self.task.pairs[i].teacher.to(self.world.device)
        if entry and self.task.entry is not None:
            self.task.entry.to(self.world.device)

    # -- per step

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this rank's device."""
        device = self.world.device
        return Batch(batch.x.to(device), {k: v.to(device) for k, v in batch.carry.items()})

    def read(self, step: int, lo: int, hi: int) -> Batch:
        """Read rows [lo, hi) of a batch from the source, counted."""
        with self.clock.span("data", step=step):
            batch = self.task.source.load(step, lo, hi)
        if len(batch.x) != hi - lo:
            raise UserError(
                f"the data gave {len(batch.x)} rows for rows {lo} to {hi - 1} of step {step}: "
                f"every batch must have {self.batch} rows (drop_last=True)"
            )
        self.counters.loader_reads += 1
        self.counters.loader_rows += len(batch.x)
        return batch

    def enter(self, batch: Batch) -> Tensor:
        """First boundary of a raw batch."""
        with autocast(self.options.precision, self.world.device):
            x = self.task.enter(batch).to(self.boundaries[0].dtype)
        self._same_shape(x, 0, "the input")
        return x

    def _same_shape(self, x: Tensor, boundary: int, what: str) -> None:
        """Receivers post buffers of the first batch's shape; another one would be misread."""
        expected = self.boundaries[boundary].shape
        if tuple(x.shape[1:]) != expected:
            raise UserError(
                f"{what} has rows of shape {tuple(x.shape[1:])}, those of the first batch "
                f"were {expected}: pad or crop all batches to one shape"
            )

    def teach(self, index: int, x: Tensor, side: Mapping[str, Any], step: int, lo: int) -> Tensor:
        """Run teacher block ``index``: x_index → x_{index+1}, without gradients, counted."""
        pair = self.task.pairs[index]
        version = x._version
        with (
            self.clock.span("teacher", pair.name, step=step, block=index),
            torch.no_grad(),
            moment(self.options.seed, pair.name, "", step, lo),
            autocast(self.options.precision, self.world.device),
            _named(f"teacher of block {pair.name!r}", step),
        ):
            # Autocast chooses types by device; the receiver has its buffers for this one.
            y: Tensor = pair.teacher(x, **side).to(self.boundaries[index + 1].dtype).contiguous()
        self.counters.teacher_calls[pair.name] += 1
        self.counters.teacher_rows[pair.name] += len(x)
        self._same_shape(y, index + 1, f"at step {step} the output of block {pair.name!r}")
        if x._version != version:
            raise UserError(
                f"teacher of block {pair.name!r} changes its input in place: the boundary is "
                "still needed, "
                "make the first operation out of place (e.g. ReLU(inplace=False))"
            )
        return y

    def learn(self, index: int, x: Tensor, y: Tensor, side: Mapping[str, Any], step: int) -> None:
        """Start a block's training step; :meth:`BlockTrainer.update` ends it."""
        version = x._version, y._version
        with _named(f"a student of block {self.task.pairs[index].name!r}", step):
            self.trainers[index].backward(x, y, side, step)
        if (x._version, y._version) != version:
            name = self.task.pairs[index].name
            raise UserError(
                f"a student of block {name!r} changes its input in place: other blocks still need "
                "it, "
                "make the first operation out of place (e.g. ReLU(inplace=False))"
            )

    def saved(self, index: int, step: int) -> None:
        """Checkpoint a block after ``step`` if one is due and this rank writes it."""
        every = self.options.checkpoint_every
        trainer = self.trainers[index]
        if self.writer is None or trainer.share.lo != 0 or not every or (step + 1) % every:
            return
        self._submit(index, step + 1)

    def done(self, index: int) -> None:
        """Checkpoint a block that will not train any further in this run."""
        if self.writer is not None and self.trainers[index].share.lo == 0:
            self._submit(index, self.steps)

    def _submit(self, index: int, step: int) -> None:
        assert self.writer is not None
        if self._saved.get(index) == step:
            return
        broken = self.trainers[index].broken()
        if broken is not None:
            raise UserError(
                f"block {self.task.pairs[index].name!r}: the loss or a weight of {broken!r} is not "
                f"finite at step {step}: lower its learning rate; what was saved before is kept"
            )
        self._saved[index] = step
        self.writer.submit(index, step, self.trainers[index].state())

    def finish(self) -> None:
        """Write the last checkpoints and the trace; a diverged block costs no other its own."""
        diverged: UserError | None = None
        for index in self.trainers:
            try:
                self.done(index)
            except UserError as error:
                diverged = diverged or error
        self.close()
        if diverged is not None:
            raise diverged
        if self.tracer is not None:
            assert self.options.trace_dir is not None
            self.tracer.write(self.options.trace_dir / f"rank-{self.world.rank}.trace.json")

    def close(self) -> None:
        """Wait for the checkpoints that are under way."""
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()


class Prefetcher:
    """Reads the next batches on a thread of its own while this one computes.

    A source that may draw from the global random generators, which dropout uses meanwhile, is read
    between the steps instead.

    Args:
        context: whose source to read.
        steps: the steps in the order they will be asked for.
        lo: first row.
        hi: one past the last row.
        depth: batches read ahead.
    """

    def __init__(self, context: Context, steps: range, lo: int, hi: int, depth: int) -> None:
        self.context, self.lo, self.hi = context, lo, hi
        self.pool: ThreadPoolExecutor | None = None
        if getattr(context.task.source, "threaded", False):
            self.pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self.steps = iter(steps)
        self.ready: dict[int, Future[Batch]] = {}
        for _ in range(depth):
            self._ask()

    def _ask(self) -> None:
        step = next(self.steps, None) if self.pool is not None else None
        if step is not None and self.pool is not None:
            self.ready[step] = self.pool.submit(self.context.read, step, self.lo, self.hi)

    def take(self, step: int) -> Batch:
        """The batch of ``step``, on the device."""
        if self.pool is None:
            return self.context.to_device(self.context.read(step, self.lo, self.hi))
        with self.context.clock.span("recv_wait", "loader", step=step):
            batch = self.ready.pop(step).result()
        self._ask()
        return self.context.to_device(batch)

    def close(self) -> None:
        """Stop reading; batches not taken are dropped."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
