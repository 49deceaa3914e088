"""``pipe-bd profile``: measure every block at every group size on these devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from pipe_bd.commands.task import ModelFlags

if TYPE_CHECKING:
    from pipe_bd.blocks import Task
    from pipe_bd.options import Options
    from pipe_bd.profile import Profile


@dataclass(kw_only=True)
class ProfileCommand(ModelFlags, Common):
    """Measure teacher, student, update, memory, all-reduce and link; feeds plan and simulate."""

    devices: int = 2
    """Processes that measure together; group sizes 1 to this many."""
    trials: int = 5
    """Timed repetitions."""
    together: int = 0
    """Blocks measured in turn and held on a device at once; 0 takes all."""
    batchnorm: Literal["one-device", "sync", "local"] = "one-device"
    """Whether blocks with BatchNorm may be split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def run(self) -> None:
        """Measure, print a table, write the profile."""
        from pipe_bd.options import Options
        from pipe_bd.runtime.spawn import run_ranks

        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: use 1 or more")
        if self.together < 0:
            raise UserError(f"--together {self.together}: use 0 or more")
        task = self.build(self.seed)
        options = Options(
            devices=self.devices, seed=self.seed, batchnorm=self.batchnorm, device=self.device
        )
        profile = run_ranks(
            measure_here,
            self.devices,
            task,
            options,
            self.trials,
            self.together,
            threads=self.threads,
        )
        emit(profile.to_dict(), self.json, table(profile))


def measure_here(task: Task, options: Options, trials: int, together: int = 0) -> Profile:
    """Measure on the ranks of this process group."""
    from pipe_bd.blocks import check, freeze
    from pipe_bd.profiler import measure
    from pipe_bd.runtime.world import join

    world = join(options.device)
    freeze(task, "eval")
    return measure(task, world, check(task), options, trials=trials, together=together)


def table(profile: Profile) -> str:
    """Milliseconds per block and group size."""
    sizes = sorted(profile.blocks[0].teacher_s)
    lines = [f"milliseconds per batch of {profile.batch} rows, by devices per group"]
    lines.append(
        f"  {'block':<16} {'g':>2} {'teacher':>9} {'student':>9} {'update':>8} {'allreduce':>9} "
        f"{'MB/device':>9}"
    )
    for b in profile.blocks:
        for g in sizes:
            lines.append(
                f"  {b.name if g == sizes[0] else '':<16} {g:>2} {b.teacher_s[g] * 1e3:>9.2f} "
                f"{b.student_s[g] * 1e3:>9.2f} "
                f"{b.update_s * 1e3:>8.2f} {b.allreduce_s.get(g, 0.0) * 1e3:>9.2f} "
                f"{b.memory_bytes[g] / 1e6:>9.1f}"
            )
    link = profile.link
    lines.append(
        f"link {link.latency_s * 1e6:.0f} µs + bytes / {link.bytes_per_s / 1e9:.2f} GB/s; loader "
        f"{profile.loader_s * 1e3:.2f} ms"
    )
    return "\n".join(lines)
