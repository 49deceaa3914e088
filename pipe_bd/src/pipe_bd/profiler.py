"""Measure what each block costs on the user's devices, for every group size, with real inputs.

All ranks measure the same thing at the same time, so that devices which share memory or power are
measured as they will run. All-reduces and links are measured with the process group that the run
will use. Students are copies: a profile changes nothing.

On a CPU device with one thread the clock is the process's CPU time: a process that was preempted is
not a slower block, and an all-reduce that overlaps computation costs what its transport threads
take from the core. On a GPU it is the wall clock.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipe_bd.blocks import BlockPair, Boundary, Task
from pipe_bd.counters import Clock, Counters
from pipe_bd.options import Options
from pipe_bd.plan import row_ranges
from pipe_bd.profile import BlockProfile, LinkProfile, Profile, Samples
from pipe_bd.rng import moment
from pipe_bd.runtime.trainer import BlockTrainer, Share, autocast
from pipe_bd.runtime.world import World

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
) -> Profile:
    """Profile every block; all ranks call it and get the same profile.

    Args:
        task: the job, frozen.
        world: the ranks to measure on.
        boundaries: x_0 … x_B.
        options: of the run that is being planned.
        trials: timed repetitions, after one that is dropped.
        groups: group sizes; None takes 1 … min(devices, batch size).
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
    blocks = []
    for index, pair in enumerate(task.pairs):
        world.barrier()
        block, x = _measure_block(
            task, index, pair, x, carry, world, boundaries, options, trials, sizes
        )
        blocks.append(block)
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


def _measure_block(
    task: Task,
    index: int,
    pair: BlockPair,
    x: Tensor,
    carry: dict[str, Tensor],
    world: World,
    boundaries: Sequence[Boundary],
    options: Options,
    trials: int,
    sizes: Sequence[int],
) -> tuple[BlockProfile, Tensor]:
    device, batch = world.device, task.source.batch_size
    teacher = pair.teacher.to(device)
    counters = Counters()
    students = {
        n: replace(
            c,
            module=copy.deepcopy(c.module),
            target_loss=None,
            steps=0 if c.steps == 0 else None,  # a block that stays as it is costs no training
        )
        for n, c in pair.candidates.items()
    }
    twin = replace(pair, students=students)
    samples: dict[str, dict[int, list[float]]] = {"teacher": {}, "student": {}}
    updates: list[float] = []
    memory: dict[int, int] = {}
    outputs: Tensor | None = None
    for g in sizes:
        rows = row_ranges(batch, g)[0][1]
        trainer = BlockTrainer(
            twin,
            index,
            Share(0, rows, rows),
            device,
            seed=options.seed,
            precision=options.precision,
            sync_batchnorm=False,
            clock=Clock(counters, None),
        )
        part = x[:rows]
        side = task.side_inputs(part, {k: v[:rows] for k, v in carry.items()})[index]
        times: list[tuple[float, float, float]] = []
        kept = [0]
        for trial in range(trials + 1):
            with (
                torch.no_grad(),
                moment(options.seed, pair.name, "", trial, 0),
                autocast(options.precision, device),
            ):
                t0 = _now(device)
                y = teacher(part, **side).contiguous()
                t1 = _now(device)
            if trial == 0:
                with _saved_bytes(kept):
                    trainer.backward(part, y, side, trial)
            else:
                trainer.backward(part, y, side, trial)
            t2 = _now(device)
            trainer.update()
            t3 = _now(device)
            times.append((t1 - t0, t2 - t1, t3 - t2))
        everyone = [t for rank in world.gather(times[1:]) for t in rank]
        samples["teacher"][g] = [t[0] for t in everyone]
        samples["student"][g] = [t[1] for t in everyone]
        updates += [t[2] for t in everyone]
        weights = _bytes(p for s in trainer.students for p in s.module.parameters())
        relayed = (options.depth + 1) * boundaries[index].bytes(rows)
        memory[g] = (
            _bytes(teacher.parameters())
            + 2 * weights
            + _optimizer_bytes(trainer)
            + kept[0]
            + relayed
        )
        if g == sizes[0]:
            outputs = y
    assert outputs is not None
    flat = sum(
        p.numel() * p.element_size()
        for c in pair.candidates.values()
        for p in c.module.parameters()
        if p.requires_grad and c.steps != 0
    )
    allreduce = {1: 0.0}
    for g in sizes:
        if g > 1:
            allreduce[g] = _measure_allreduce(world, g, flat, trials)
    median = statistics.median
    single = options.batchnorm == "one-device" and pair.has_training_batchnorm()
    profile = BlockProfile(
        name=pair.name,
        teacher_s={g: median(v) for g, v in samples["teacher"].items()},
        student_s={g: median(v) for g, v in samples["student"].items()},
        allreduce_s=allreduce,
        update_s=median(updates),
        activation_bytes=boundaries[index + 1].bytes(batch),
        memory_bytes=memory,
        max_group=1 if single else None,
        samples=Samples(
            teacher_s={g: tuple(v) for g, v in samples["teacher"].items()},
            student_s={g: tuple(v) for g, v in samples["student"].items()},
            update_s=tuple(updates),
        ),
    )
    return profile, outputs


def _measure_allreduce(world: World, g: int, nbytes: int, trials: int) -> float:
    """Seconds to all-reduce a block's gradients over the first g ranks.

    The same number on all ranks.
    """
    group = world.group(range(g))
    times = []
    if world.rank < g:
        flat = torch.zeros(max(1, nbytes // 4), device=world.device)
        for _ in range(trials + 1):
            dist.barrier(group=group)
            start = _now(world.device)
            dist.all_reduce(flat, group=group)
            times.append(_now(world.device) - start)
    return statistics.median([t for rank in world.gather(times[1:]) for t in rank])


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
