"""``pipe-bd train``: distil a model block by block, under any schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shorthaul import atomic
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from pipe_bd.commands.task import ModelFlags

if TYPE_CHECKING:
    from pipe_bd.result import Result


@dataclass(kw_only=True)
class Train(ModelFlags, Common):
    """Distil a model block by block; every schedule gives the same student."""

    schedule: str = "ahd"
    """sequential, dp, ls, joint, tr, dpu or ahd."""
    devices: int = 1
    """Processes, one per device."""
    plan: Path | None = None
    """Plan file of `pipe-bd plan`; measured and planned when absent."""
    profile: Path | None = None
    """Profile to plan with; measured when absent."""
    memory_gb: float | None = None
    """Memory per device in units of 1e9 bytes, for the planner."""
    depth: int = 2
    """Boundary batches a sender may have outstanding."""
    precision: Literal["full", "bf16", "fp16"] = "full"
    """full computes in the model's own type; the others use autocast."""
    teacher_mode: Literal["eval", "train"] = "eval"
    """train is the original's behaviour and is refused where batches are split."""
    batchnorm: Literal["one-device", "sync", "local"] = "one-device"
    """Students with BatchNorm: keep on one device, share statistics, or use local ones."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    checkpoint: Path | None = None
    """Folder for per-block checkpoints."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes only the last."""
    resume: bool = False
    """Continue from --checkpoint."""
    trace: Path | None = None
    """Folder for one Chrome trace per rank."""
    deadline: float = 20.0
    """Seconds of silence after which a rank counts as lost."""

    def run(self) -> None:
        """Train and report."""
        from pipe_bd.api import distill
        from pipe_bd.options import check_schedule
        from pipe_bd.plan import Plan
        from pipe_bd.profile import Profile

        check_schedule(self.schedule)
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise UserError(f"--memory-gb {self.memory_gb}: use a size above 0")
        plan = None if self.plan is None else Plan.load(self.plan)
        profile = None if self.profile is None else Profile.load(self.profile)
        task = self.build(self.seed)
        for flag, folder in (("--checkpoint", self.checkpoint), ("--trace", self.trace)):
            if folder is not None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    reason = error.strerror
                    raise UserError(f"{flag} {folder} cannot be made ({reason})") from error
        result = distill(
            task,
            schedule=self.schedule,
            devices=self.devices,
            plan=plan,
            profile=profile,
            seed=self.seed,
            memory_bytes=None if self.memory_gb is None else int(self.memory_gb * 1e9),
            threads=self.threads,
            depth=self.depth,
            precision=self.precision,
            teacher_mode=self.teacher_mode,
            batchnorm=self.batchnorm,
            device=self.device,
            checkpoint_dir=None if self.checkpoint is None else self.checkpoint.resolve(),
            checkpoint_every=self.checkpoint_every,
            resume=self.resume,
            trace_dir=None if self.trace is None else self.trace.resolve(),
            deadline_s=self.deadline,
            progress=True,
        )
        if self.checkpoint is not None:
            atomic.write_json(
                self.checkpoint / "task.json", {"version": 1, **self.describe(self.seed)}
            )
        emit(result.to_dict(), self.json, summary(result))


def summary(result: Result) -> str:
    """A few lines on a run."""
    lines = []
    for block, candidates in result.losses.items():
        for name, losses in candidates.items():
            if losses:
                first, last = losses[min(losses)], losses[max(losses)]
                label = block if len(candidates) == 1 else f"{block}/{name}"
                lines.append(f"  {label:<24} loss {first:.4g} → {last:.4g}")
    where = "" if result.plan is None else f", plan {result.plan.shape()}"
    if result.plan is not None and len(result.ranks) > result.plan.devices_used:
        idle = len(result.ranks) - result.plan.devices_used
        where += f" ({idle} of {len(result.ranks)} devices stayed idle)"
    taken = sorted({step for c in result.losses.values() for one in c.values() for step in one})
    resumed = f" (from step {taken[0]})" if taken and taken[0] > 0 else ""
    lines.append(
        f"{result.schedule}{where}: {len(taken)} steps{resumed} of {result.batch} rows in "
        f"{result.wall_s:.1f} s, "
        f"busiest rank {result.busiest_cpu_s:.1f} CPU s, "
        f"{sum(result.total('teacher_calls').values())} teacher block calls, "
        f"{sum(result.total('relay_bytes').values()) + round(result.total('allreduce_bytes')):,} "
        "bytes between ranks"
    )
    return "\n".join(lines)
