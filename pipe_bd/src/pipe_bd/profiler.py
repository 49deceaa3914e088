"""Measure what each block costs on the user's devices, for every group size, with real inputs.

One group of each size measures while the other ranks wait, so the figures are those of devices with
their memory and power to themselves. All-reduces and links are measured with the process group that
the run will use. Students are copies: a profile changes nothing.

On a CPU device with one thread the clock is the process's CPU time: a process that was preempted is
not a slower block, and an all-reduce that overlaps computation costs what its transport threads
take from the core. On a GPU it is the wall clock.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, Boundary, Task
from pipe_bd.counters import Clock, Counters
from pipe_bd.options import Options
from pipe_bd.plan import row_ranges
from pipe_bd.profile import BlockProfile, LinkProfile, Profile, Samples
from pipe_bd.rng import moment
from pipe_bd.runtime.trainer import BlockTrainer, Share, autocast, finish_sum, start_sum
from pipe_bd.runtime.world import World

WARM_UP = 3  # the allocator and the caches need some steps to settle
NO_LINK = LinkProfile(latency_s=0.0, bytes_per_s=1e12)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


@contextmanager
def _saved_bytes(total: list[int]) -> Iterator[None]:
    """Count the bytes autograd keeps for the backward pass, each storage once."""
    seen: set[int] = set()

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _optimizer_bytes(trainer: BlockTrainer) -> int:
    total = 0
    for s in trainer.students:
        for state in s.optimizer.state.values():
            total += _bytes(v for v in state.values() if isinstance(v, Tensor))
    return total


def measure(
    task: Task,
    world: World,
    boundaries: Sequence[Boundary],
    options: Options,
    *,
    trials: int = 5,
    groups: Sequence[int] | None = None,
    together: int = 0,
) -> Profile:
    """Profile every block; all ranks call it and get the same profile.

    Blocks are measured in turn, teacher after teacher and then student after student as in a run: a
    block measured over and over would find its weights in a cache that a run has long filled with
    others'.

    Args:
        task: the job, frozen.
        world: the ranks to measure on.
        boundaries: x_0 … x_B.
        options: of the run that is being planned.
        trials: timed repetitions, after :data:`WARM_UP` that are dropped.
        groups: group sizes; None takes 1 … min(devices, batch size).
        together: blocks that take turns and lie on the device at once; 0 takes all.

    Raises:
        UserError: the blocks that take turns do not fit on a device.
    """
    batch = task.source.batch_size
    sizes = list(groups or range(1, min(options.devices, batch) + 1))
    raw = task.source.load(0, 0, batch)
    loads = []
    for step in range(min(trials, task.source.steps)):
        start = _now(world.device)
        task.source.load(step, 0, batch)
        loads.append(_now(world.device) - start)
    device = world.device
    if task.entry is not None:
        task.entry.to(device)
    carry = {k: v.to(device) for k, v in raw.carry.items()}
    with autocast(options.precision, device):
        x = task.enter(replace(raw, x=raw.x.to(device)))
    session = _Session(task, world, boundaries, options, trials, sizes)
    blocks: list[BlockProfile] = []
    count = together or len(task.pairs)
    for first in range(0, len(task.pairs), count):
        window = range(first, min(first + count, len(task.pairs)))
        world.barrier()
        try:
            measured, x = session.window(window, x, carry)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"blocks {window.start} to {window.stop - 1} with their students do not fit on "
                f"{device} together: measure fewer at a time, pipe-bd profile --together "
                f"{max(1, count // 2)}, and give the profile to the run"
            ) from error
        blocks += measured
    link = (
        _measure_link(world, max(b.bytes(batch) for b in boundaries), trials)
        if world.size > 1
        else NO_LINK
    )
    loader = world.gather(statistics.median(loads))
    return Profile(
        batch=batch,
        link=link,
        blocks=tuple(blocks),
        loader_s=statistics.median(loader),
        environment=_environment(world),
    )


def _environment(world: World) -> dict[str, Any]:
    return {
        "ranks": world.size,
        "device": world.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


@dataclass
class _Subject:
    """A block under measurement: its students are copies."""

    pair: BlockPair
    index: int
    teacher: nn.Module
    samples: dict[str, dict[int, list[float]]] = field(
        default_factory=lambda: {"teacher": {}, "student": {}}
    )
    updates: list[float] = field(default_factory=list)
    memory: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, index: int, device: torch.device) -> _Subject:
        pair = task.pairs[index]
        students = {
            n: replace(
                c,
                module=copy.deepcopy(c.module),
                target_loss=None,
                steps=0 if c.steps == 0 else None,  # a block that stays as it is costs no training
            )
            for n, c in pair.candidates.items()
        }
        return cls(replace(pair, students=students), index, pair.teacher.to(device))

    def trainer(self, rows: int, device: torch.device, options: Options) -> BlockTrainer:
        return BlockTrainer(
            self.pair,
            self.index,
            Share(0, rows, rows),
            device,
            seed=options.seed,
            precision=options.precision,
            sync_batchnorm=False,
            clock=Clock(Counters(), None),
        )

    def gradients(self) -> list[Tensor]:
        """Zeros in the shapes of what a group sums."""
        return [
            torch.zeros_like(p)
            for c in self.pair.candidates.values()
            for p in c.module.parameters()
            if p.requires_grad and c.steps != 0
        ]

    def profile(self, allreduce: dict[int, float], out: int, *, single: bool) -> BlockProfile:
        median = statistics.median
        teacher, student = self.samples["teacher"], self.samples["student"]
        return BlockProfile(
            name=self.pair.name,
            teacher_s={g: median(v) for g, v in teacher.items()},
            student_s={g: median(v) for g, v in student.items()},
            allreduce_s=allreduce,
            update_s=median(self.updates),
            activation_bytes=out,
            memory_bytes=self.memory,
            max_group=1 if single else None,
            samples=Samples(
                teacher_s={g: tuple(v) for g, v in teacher.items()},
                student_s={g: tuple(v) for g, v in student.items()},
                update_s=tuple(self.updates),
            ),
        )


@dataclass(frozen=True)
class _Session:
    """What all windows share; see :func:`measure`."""

    task: Task
    world: World
    boundaries: Sequence[Boundary]
    options: Options
    trials: int
    sizes: Sequence[int]

    def window(
        self, blocks: range, x: Tensor, carry: dict[str, Tensor]
    ) -> tuple[list[BlockProfile], Tensor]:
        """Profiles of some blocks, and the boundary that leaves them."""
        batch = self.task.source.batch_size
        subjects = [_Subject.of(self.task, index, self.world.device) for index in blocks]
        leaving: list[Tensor] = []
        for g in self.sizes:
            rows = row_ranges(batch, g)[0][1]
            part = x[:rows]
            side = self.task.side_inputs(part, {k: v[:rows] for k, v in carry.items()})
            leaving.append(self._take_turns(subjects, g, part, side))
        profiles = []
        for subject in subjects:
            gradients = subject.gradients()
            allreduce = {1: 0.0}
            for g in self.sizes:
                if g > 1:
                    allreduce[g] = _measure_allreduce(self.world, g, gradients, self.trials)
            out = self.boundaries[subject.index + 1].bytes(batch)
            limited = self.options.batchnorm == "one-device"
            single = limited and subject.pair.has_training_batchnorm()
            profiles.append(subject.profile(allreduce, out, single=single))
        return profiles, leaving[0]

    def _take_turns(self, subjects: Sequence[_Subject], g: int, x: Tensor, side: Any) -> Tensor:
        """Step all blocks on a g-th of the batch; the first group's times become samples."""
        device, rows = self.world.device, x.shape[0]
        trainers = [s.trainer(rows, device, self.options) for s in subjects]
        kept = [[0] for _ in subjects]
        teacher: list[list[float]] = [[] for _ in subjects]
        student: list[list[float]] = [[] for _ in subjects]
        update: list[list[float]] = [[] for _ in subjects]
        xs = [x] * (len(subjects) + 1)
        # One group computes and the others wait: a stage's neighbours may well be idle, and devices
        # of their own do not slow each other down.
        rounds = WARM_UP + self.trials if self.world.rank < g else 1
        for trial in range(rounds):
            for n, subject in enumerate(subjects):
                start = _now(device)
                xs[n + 1] = self._teach(subject, xs[n], side, trial)
                teacher[n].append(_now(device) - start)
            for n, (subject, trainer) in enumerate(zip(subjects, trainers, strict=True)):
                start = _now(device)
                with _saved_bytes(kept[n]) if trial == 0 else nullcontext():
                    trainer.backward(xs[n], xs[n + 1], side[subject.index], trial)
                middle = _now(device)
                trainer.update()
                student[n].append(middle - start)
                update[n].append(_now(device) - middle)
            if trial == 0 and device.type == "cpu":
                # What one round needs, twice: else the heap grows, and faults pages in, for twenty
                # rounds, which a run of any length forgets and a short profile takes for the cost.
                largest = max(k[0] for k in kept) + sum(t.nbytes for t in xs)
                torch.ones(2 * largest, dtype=torch.uint8)
        self.world.barrier()
        for n, (subject, trainer) in enumerate(zip(subjects, trainers, strict=True)):
            times = [rows_of[n][WARM_UP:] for rows_of in (teacher, student, update)]
            everyone = list(zip(*self.world.gather(times), strict=True))
            subject.samples["teacher"][g] = [t for rank in everyone[0] for t in rank]
            subject.samples["student"][g] = [t for rank in everyone[1] for t in rank]
            subject.updates += [t for rank in everyone[2] for t in rank]
            weights = _bytes(p for s in trainer.students for p in s.module.parameters())
            mine = (
                _bytes(subject.teacher.parameters())
                + 2 * weights
                + _optimizer_bytes(trainer)
                + kept[n][0]
                + (self.options.depth + 1) * self.boundaries[subject.index].bytes(rows)
            )
            subject.memory[g] = max(self.world.gather(mine))  # all must plan alike
        return xs[-1]

    def _teach(self, subject: _Subject, x: Tensor, side: Any, trial: int) -> Tensor:
        with (
            torch.no_grad(),
            moment(self.options.seed, subject.pair.name, "", trial, 0),
            autocast(self.options.precision, self.world.device),
        ):
            y: Tensor = subject.teacher(x, **side[subject.index]).contiguous()
            return y


def _measure_allreduce(world: World, g: int, tensors: Sequence[Tensor], trials: int) -> float:
    """Seconds to sum a block's gradients over the first g ranks, with the copies a run makes.

    The same number on all ranks.
    """
    group = world.group(range(g))
    times = []
    if world.rank < g and tensors:
        for _ in range(WARM_UP + trials):
            dist.barrier(group=group)
            start = _now(world.device)
            sums = start_sum(tensors, group)
            finish_sum(sums)
            times.append(_now(world.device) - start)
    everyone = [t for rank in world.gather(times[WARM_UP:]) for t in rank]
    return statistics.median(everyone) if everyone else 0.0


def _measure_link(world: World, nbytes: int, trials: int) -> LinkProfile:
    """α–β model of rank 0 → rank 1 from round trips of a small and of a boundary-sized message."""
    sizes = (1024, max(nbytes, 1 << 20))
    medians = []
    for size in sizes:
        times = []
        buffer = torch.zeros(size // 4, device=world.device)
        for _ in range(2 * trials + 1):
            world.barrier()
            if world.rank > 1:
                continue
            start = time.perf_counter()
            if world.rank == 0:
                dist.send(buffer, 1)
                dist.recv(buffer, 1)
            else:
                dist.recv(buffer, 0)
                dist.send(buffer, 0)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            times.append((time.perf_counter() - start) / 2)
        medians.append(statistics.median([t for rank in world.gather(times[1:]) for t in rank]))
    small, large = medians
    per_byte = max((large - small) / (sizes[1] - sizes[0]), 1e-13)
    return LinkProfile(latency_s=max(small - sizes[0] * per_byte, 0.0), bytes_per_s=1.0 / per_byte)
