"""Everything that a run can be told, validated where it is owned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from shorthaul.errors import UserError

from pipe_bd.plan import Plan

Schedule = Literal["sequential", "dp", "ls", "joint", "tr", "dpu", "ahd"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
Precision = Literal["full", "bf16", "fp16"]
BatchNormPolicy = Literal["one-device", "sync", "local"]


def check_schedule(name: str) -> None:
    """Raise UserError for an unknown schedule, naming the nearest."""
    if name not in SCHEDULES:
        from difflib import get_close_matches

        near = get_close_matches(name, SCHEDULES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown schedule {name!r}: {hint}choose one of {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class Options:
    """Options of one run.

    Args:
        schedule: how blocks are placed and ordered; all give the same result.
        devices: processes, one per device.
        plan: stages for tr, dpu and ahd; None lets the planner choose from a profile.
        assignment: for ls, the rank of each block; None bin-packs by cost.
        seed: seed of every random draw.
        depth: boundary batches a sender may have outstanding, and receives a receiver posts ahead.
        teacher_mode: "eval" freezes the teacher's BatchNorm and dropout; "train" is the original's
            behaviour.
        batchnorm: students with train-mode BatchNorm stay on one device, or share statistics over
            their group, or use local ones (then a group is not exact).
        precision: "full" computes in the modules' own type; "bf16" and "fp16" use autocast.
        device: "auto" takes CUDA when every rank has a GPU, else the CPU.
        checkpoint_dir: where per-block checkpoints go; None writes none.
        checkpoint_every: steps between checkpoints of a block; 0 writes only the last.
        resume: continue from checkpoint_dir.
        deadline_s: a rank that gives no sign of life for this long ends the run.
        trace_dir: where each rank leaves a Chrome trace; None traces nothing.
        progress: show a progress bar on a terminal.
        loss_every: keep every n-th loss.
    """

    schedule: str = "ahd"
    devices: int = 1
    plan: Plan | None = None
    assignment: tuple[int, ...] | None = None
    seed: int = 0
    depth: int = 2
    teacher_mode: str = "eval"
    batchnorm: str = "one-device"
    precision: str = "full"
    device: str = "auto"
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 0
    resume: bool = False
    deadline_s: float = 20.0
    trace_dir: Path | None = None
    progress: bool = False
    loss_every: int = 1

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        for folder in ("checkpoint_dir", "trace_dir"):  # a user may give a string
            if getattr(self, folder) is not None:
                object.__setattr__(self, folder, Path(getattr(self, folder)))
        if self.plan is not None and self.schedule not in ("tr", "dpu", "ahd"):
            raise UserError(
                f"schedule {self.schedule!r} takes no plan: use 'tr', 'dpu' or 'ahd' with a plan"
            )
        _at_least("devices", self.devices, 1)
        _at_least("depth", self.depth, 1)
        _at_least("checkpoint_every", self.checkpoint_every, 0)
        _at_least("loss_every", self.loss_every, 1)
        _one_of("teacher_mode", self.teacher_mode, ("eval", "train"))
        _one_of("batchnorm", self.batchnorm, get_args(BatchNormPolicy))
        _one_of("precision", self.precision, get_args(Precision))
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.resume and self.checkpoint_dir is None:
            raise UserError("resume needs a checkpoint folder: set checkpoint_dir (--checkpoint)")
        if self.deadline_s < 5:
            raise UserError(
                f"deadline_s (--deadline) is {self.deadline_s}, too short for a heartbeat every "
                "second: use 5 or more"
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}: use {least} or more")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} {value!r} is unknown: choose one of {', '.join(choices)}")
