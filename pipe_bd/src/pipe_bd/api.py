"""`pipe_bd.distill`.

The one call behind the command line, scripts under torchrun and scripts without it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from shorthaul.errors import ShorthaulError, UserError
from torch import Tensor, nn

from pipe_bd import planner
from pipe_bd.blocks import BlockPair, Boundary, SideInputs, Task, check, freeze
from pipe_bd.counters import peak_rss_bytes
from pipe_bd.options import Options
from pipe_bd.plan import Plan
from pipe_bd.profile import Profile
from pipe_bd.profiler import measure
from pipe_bd.result import Result
from pipe_bd.runtime import blockwise, checkpoint, pipeline
from pipe_bd.runtime.context import Context
from pipe_bd.runtime.spawn import run_ranks
from pipe_bd.runtime.trainer import autocast
from pipe_bd.runtime.watchdog import Watchdog
from pipe_bd.runtime.world import World, join, under_torchrun
from pipe_bd.source import as_source


def distill(
    pairs: Task | Sequence[BlockPair],
    data: Any = None,
    *,
    schedule: str = "ahd",
    devices: int | None = None,
    plan: Plan | Path | str | None = None,
    profile: Profile | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    entry: nn.Module | None = None,
    side: SideInputs | None = None,
    memory_bytes: int | None = None,
    threads: int = 1,
    **options: Any,
) -> Result:
    """Train every student block from one frozen teacher (Pipe-BD, sections II–IV).

    Works in three settings from the same call: alone (``devices=1``), with processes it starts
    itself (``devices=N``; the task travels to them and the trained students come back), and inside
    a script that torchrun started (``devices`` is then the world size unless fewer are asked for).
    The students in ``pairs`` hold the trained weights afterwards, on every rank.

    Args:
        pairs: the blocks, or a whole :class:`Task`.
        data: a tensor, a map-style dataset, a loader or a batch source; not needed with a Task.
            Labels are never read.
        schedule: sequential, dp, ls, joint, tr, dpu or ahd; every one gives the same students.
        devices: number of processes.
        plan: stages for tr, dpu or ahd, or a plan file; None measures a profile and plans.
        profile: measured costs to plan with.
        batch_size: rows per global batch, for tensors and datasets.
        steps: batches to train on; None takes one epoch.
        seed: orders the data and keys every random draw.
        entry: frozen module that makes the first boundary from a batch.
        side: extra block inputs.
        memory_bytes: memory per device, for the planner.
        threads: intra-operation threads of each process this call starts.
        **options: further fields of :class:`~pipe_bd.options.Options`.

    Returns:
        Losses, counters and times.

    Raises:
        UserError: bad input; the message names the value and the fix.
        RankDied: a rank was killed or failed; the others have been ended.
    """
    if isinstance(pairs, Task):
        extra = {"data": data, "batch_size": batch_size, "steps": steps, "entry": entry}
        for name, value in {**extra, "side": side}.items():
            if value is not None:
                raise UserError(f"{name} belongs to the Task: give it there, or blocks and data")
        task = pairs
    else:
        source = as_source(data, batch_size=batch_size, steps=steps, seed=seed)
        task = Task(list(pairs), source, entry, side)
    if isinstance(plan, str | Path):
        plan = Plan.load(Path(plan))
    if devices is None:
        devices = _world_size() if under_torchrun() else 1
    chosen = Options(schedule=schedule, devices=devices, plan=plan, seed=seed, **options)
    if under_torchrun() or devices == 1:
        return run_here(task, chosen, profile, memory_bytes)
    check(task, autocast(chosen.precision, torch.device("cpu")))
    early = _plan_without_measuring(task, chosen)
    if early is not None:
        validate(task, early, chosen)
    elif chosen.schedule == "dp":
        check_split(task, devices, chosen)
    if chosen.checkpoint_dir is not None:
        _prepare(task, chosen)
    result, states = run_ranks(
        _worker, devices, task, chosen, profile, memory_bytes, threads=threads
    )
    for pair in task.pairs:
        for name, candidate in pair.candidates.items():
            candidate.module.load_state_dict(states[pair.name][name])
    return result


def _world_size() -> int:
    import os

    return int(os.environ["WORLD_SIZE"])


def _worker(task: Task, options: Options, profile: Profile | None, memory_bytes: int | None) -> Any:
    result = run_here(task, options, profile, memory_bytes)
    return result, {
        p.name: {n: _on_cpu(c.module.state_dict()) for n, c in p.candidates.items()}
        for p in task.pairs
    }


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    # The caller's students are where the caller put them: their new weights carry no device.
    return {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}


def run_here(
    task: Task, options: Options, profile: Profile | None = None, memory_bytes: int | None = None
) -> Result:
    """Run on the ranks of this process group; all of them call it with equal arguments."""
    world = join(options.device)
    if options.devices > world.size:
        raise UserError(
            f"{options.devices} devices were asked for, but only {world.size} ranks are running: "
            f"start torchrun with --nproc-per-node {options.devices} or ask for {world.size}"
        )
    with (
        torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),  # whatever the caller is in
    ):
        return _run(task, options, world, profile, memory_bytes)


def _run(
    task: Task, options: Options, world: World, profile: Profile | None, memory_bytes: int | None
) -> Result:
    freeze(task, options.teacher_mode)
    boundaries = check(task, autocast(options.precision, torch.device("cpu")))
    plan, assignment = _decide(task, options, world, boundaries, profile, memory_bytes)
    if plan is not None:
        validate(task, plan, options)
    if options.checkpoint_dir is not None:
        if world.rank == 0:
            _prepare(task, options)
        world.barrier()
    watchdog = Watchdog(world, _roles(task, plan, assignment, world.size), options.deadline_s)
    try:
        report = _train(task, options, world, boundaries, plan, assignment)
    except BaseException:
        watchdog.abandon()
        raise
    ranks = world.gather(report)
    _share_students(
        task,
        world,
        {i: r for r, rank in reversed(list(enumerate(ranks))) for i in _indices(task, rank)},
    )
    watchdog.close()
    losses: dict[str, dict[str, dict[int, float]]] = {}
    for rank in ranks:
        for block, candidates in rank.pop("losses").items():
            losses.setdefault(block, candidates)
    ordered = {p.name: losses.get(p.name, {}) for p in task.pairs}
    return Result(
        options.schedule,
        plan,
        assignment,
        task.source.steps,
        task.source.batch_size,
        ordered,
        ranks,
    )


def _train(
    task: Task,
    options: Options,
    world: World,
    boundaries: Sequence[Boundary],
    plan: Plan | None,
    assignment: tuple[int, ...] | None,
) -> dict[str, Any]:
    """This rank's part of the run, and its report."""
    context = Context(task, options, world, boundaries)
    world.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        if plan is not None:
            pipeline.run(context, plan)
        elif options.schedule == "dp":
            blockwise.run_dp(context)
        else:
            assert assignment is not None
            blockwise.run_ls(context, assignment)
    except BaseException:
        with contextlib.suppress(ShorthaulError):  # the first error is the one to tell
            context.close()
        raise
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    report = {
        "rank": world.rank,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_rss_bytes": peak_rss_bytes(),
        "device": str(world.device),
        "counters": context.counters.to_dict(),
        "marks": context.marks,
        "losses": {task.pairs[i].name: t.losses() for i, t in context.trainers.items()},
    }
    context.finish()
    return report


def _indices(task: Task, report: dict[str, Any]) -> list[int]:
    return [i for i, p in enumerate(task.pairs) if p.name in report["losses"]]


def _share_students(task: Task, world: World, owner: dict[int, int]) -> None:
    """Give every rank the trained students, from the first rank that trained each block."""
    for index, pair in enumerate(task.pairs):
        for candidate in pair.candidates.values():
            for t in candidate.module.state_dict().values():
                if world.size > 1 and isinstance(t, Tensor) and t.numel():
                    # As bytes: gloo has no bool.
                    host = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    dist.broadcast(host, src=owner[index], group=world.control())
                    t.copy_(host.view(t.dtype).view(t.shape))


def _decide(
    task: Task,
    options: Options,
    world: World,
    boundaries: Sequence[Boundary],
    profile: Profile | None,
    memory_bytes: int | None,
) -> tuple[Plan | None, tuple[int, ...] | None]:
    """The plan, or for ls the assignment; measured where nothing was given."""
    blocks, n = len(task.pairs), options.devices
    if options.schedule == "dp":
        if n != world.size:
            raise UserError(f"dp uses every rank: ask for {world.size} devices, not {n}")
        check_split(task, n, options)
        return None, None
    early = _plan_without_measuring(task, options)
    if early is not None:
        return early, None
    if options.schedule == "ls" and options.assignment is not None:
        if len(options.assignment) != blocks or any(not 0 <= r < n for r in options.assignment):
            raise UserError(
                f"assignment {list(options.assignment)} must give one of {n} ranks for each of "
                f"{blocks} blocks"
            )
        return None, options.assignment
    if profile is None:
        profile = measure(task, world, boundaries, options)
    if [b.name for b in profile.blocks] != [p.name for p in task.pairs]:
        raise UserError(
            f"the profile is of {_listed([b.name for b in profile.blocks])}, the task has "
            f"{_listed([p.name for p in task.pairs])}: profile this task"
        )
    if profile.batch != task.source.batch_size:
        raise UserError(
            f"the profile was measured with batches of {profile.batch} rows, the task has "
            f"{task.source.batch_size}: profile this batch size"
        )
    if options.schedule == "ls":
        owner = {
            i: rank for rank, mine in enumerate(planner.layer_scheduling(profile, n)) for i in mine
        }
        return None, tuple(owner[i] for i in range(blocks))
    widest = 1 if options.schedule in ("tr", "dpu") else None
    return planner.plan(profile, n, memory_bytes, largest_group=widest), None


def _plan_without_measuring(task: Task, options: Options) -> Plan | None:
    blocks = len(task.pairs)
    if options.plan is not None:
        return options.plan
    if options.schedule == "sequential" or (
        options.devices == 1 and options.schedule in ("tr", "dpu", "ahd")
    ):
        return Plan.joint(blocks, 1)
    if options.schedule == "joint":
        return Plan.joint(blocks, options.devices)
    return None


def validate(task: Task, plan: Plan, options: Options) -> None:
    """Check a plan against the task.

    Raises:
        UserError: it does not cover the blocks, needs more ranks than there are, has stages too
            wide for the batch, splits a block with train-mode BatchNorm, or splits batches under a
            teacher in train mode.
    """
    stuck = options.batchnorm == "one-device"
    limits = [1 if stuck and p.has_training_batchnorm() else None for p in task.pairs]
    plan.validate(len(task.pairs), options.devices, limits)
    names = [p.name for p in task.pairs]
    if plan.blocks and list(plan.blocks) != names:
        raise UserError(
            f"{plan.source} is for {_listed(plan.blocks)}, the task has {_listed(names)}: plan "
            "from a profile of this task"
        )
    widest = max(s.devices for s in plan.stages)
    check_split(task, widest, options)
    if options.schedule in ("tr", "dpu") and widest > 1:
        raise UserError(
            f"schedule {options.schedule!r} gives each stage one device, the plan has one of "
            f"{widest}: use 'ahd'"
        )


def check_split(task: Task, devices: int, options: Options) -> None:
    """Check that batches may be split over this many devices.

    Raises:
        UserError: there are fewer rows than devices, or the teacher is in train mode.
    """
    if devices > task.source.batch_size:
        raise UserError(
            f"batches are split over {devices} devices but have only {task.source.batch_size} "
            "rows: use a larger batch"
        )
    if devices > 1 and options.teacher_mode == "train":
        raise UserError(
            f"the teacher is in train mode and batches are split over {devices} devices: its "
            "targets would depend on the split; use teacher_mode 'eval' or groups of one"
        )


def _listed(blocks: Sequence[str]) -> str:
    names = [*blocks[:3], "…"] if len(blocks) > 4 else blocks
    return f"{len(blocks)} blocks ({', '.join(names)})"


def _roles(
    task: Task, plan: Plan | None, assignment: tuple[int, ...] | None, size: int
) -> list[str]:
    roles = []
    for rank in range(size):
        if assignment is not None:
            mine = [task.pairs[i].name for i, r in enumerate(assignment) if r == rank]
            roles.append("blocks " + ", ".join(mine) if mine else "idle")
        elif plan is not None:
            s = plan.stage_of(rank)
            names = (
                None
                if s is None
                else (task.pairs[plan.stages[s].first].name, task.pairs[plan.stages[s].last].name)
            )
            roles.append("idle" if names is None else f"stage {s}: {names[0]} to {names[1]}")
        else:
            roles.append("all blocks")
    return roles


def _prepare(task: Task, options: Options) -> None:
    assert options.checkpoint_dir is not None
    names = [p.name for p in task.pairs]
    checkpoint.prepare(options.checkpoint_dir, _fingerprint(task, options), names, options.resume)


def _fingerprint(task: Task, options: Options) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "batch": task.source.batch_size,
        "data": task.source.fingerprint(),
        "precision": options.precision,
        "batchnorm": options.batchnorm,
        "teacher mode": options.teacher_mode,
        "candidates": [sorted(p.candidates) for p in task.pairs],
        "losses": [type(p.objective).__name__ for p in task.pairs],
        "teacher": _digest([p.teacher for p in task.pairs]),
    }


def _digest(modules: Sequence[torch.nn.Module]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            host = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(host.numpy()))
    return digest.hexdigest()


def clone(task: Task) -> Task:
    """A task with its own copies of the students; teachers and data are shared."""
    pairs = []
    for p in task.pairs:
        students = {n: copy.deepcopy(c) for n, c in p.candidates.items()}
        pairs.append(replace(p, students=students))
    return replace(task, pairs=pairs)
