"""``pipe-bd bench``: schedules against each other in one run, interleaved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shorthaul import machine
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from pipe_bd.commands.task import ModelFlags


@dataclass(kw_only=True)
class BenchCommand(ModelFlags, Common):
    """Measure schedules in one process group, A-B-C-A-B-C, with counts beside times."""

    world: int = 2
    """Ranks."""
    schedules: str = "dp,ls,joint,tr,dpu,ahd"
    """Comma-separated; the last is run twice per round to show the machine's noise."""
    reps: int = 5
    """Counted rounds, after one that warms up."""
    profile: Path | None = None
    """Profile to plan with; measured first when absent."""

    def run(self) -> None:
        """Run, print a table, write every repetition as JSON."""
        from pipe_bd.bench import Entry, bench
        from pipe_bd.options import check_schedule
        from pipe_bd.plan import Plan
        from pipe_bd.profile import Profile

        names = [s.strip() for s in self.schedules.split(",") if s.strip()]
        if not names:
            raise UserError("--schedules is empty: name at least one schedule")
        for name in names:
            check_schedule(name)
        if self.reps < 1:
            raise UserError(f"--reps {self.reps}: use 1 or more")
        given = None if self.profile is None else Profile.load(self.profile)
        again = f"{names[-1]} again"
        entries = [*(Entry(n, n) for n in dict.fromkeys(names)), Entry(again, names[-1])]
        result = bench(
            self.build(self.seed),
            self.world,
            entries,
            self.reps,
            profile=given,
            threads=self.threads,
        )
        noise = result.noise(names[-1], again)
        cpu, wall = result.medians("cpu_s"), result.medians("wall_s")
        lines = [
            f"{self.model}, {self.world} ranks, {self.steps} steps, median of {self.reps} "
            "interleaved rounds"
        ]
        lines.append(
            f"  {'schedule':<14} {'CPU ms/step':>11} {'wall ms/step':>12} {'teacher calls':>13} "
            f"{'KB sent/step':>12}  plan"
        )
        for name in cpu:
            counts, plan = result.counts[name], result.plans.get(name)
            sent = (counts["relay_bytes"] + counts["allreduce_bytes"]) / self.steps / 1024
            shape = "" if plan is None else Plan.from_dict(plan).shape()
            calls = counts["teacher_calls"] / self.steps
            lines.append(
                f"  {name:<14} {cpu[name] * 1e3:>11.1f} {wall[name] * 1e3:>12.1f} {calls:>13.0f} "
                f"{sent:>12.0f}  {shape}"
            )
        lines.append(
            "CPU is of the busiest rank. A/A noise of this machine: ± "
            f"{100 * noise['spread']:.1f} %"
        )
        document = {
            **result.to_dict(),
            "noise": noise,
            "machine": machine.describe(),
            "model": self.model,
            "world": self.world,
        }
        emit(document, self.json, "\n".join(lines))
