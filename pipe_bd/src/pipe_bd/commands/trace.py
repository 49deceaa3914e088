"""``pipe-bd trace``: record a run for Perfetto or chrome://tracing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from shorthaul import trace
from shorthaul.cli import Common, emit

from pipe_bd.commands.task import ModelFlags


@dataclass(kw_only=True)
class Trace(ModelFlags, Common):
    """Train a few steps and write one Chrome trace of all ranks."""

    schedule: str = "dpu"
    """Schedule to record."""
    devices: int = 2
    """Processes."""
    plan: Path | None = None
    """Plan file."""
    out: Path = Path("trace.json")
    """Trace to write; open it in ui.perfetto.dev or chrome://tracing."""

    def run(self) -> None:
        """Run and merge the ranks' traces."""
        from pipe_bd.api import distill
        from pipe_bd.options import check_schedule
        from pipe_bd.plan import Plan

        check_schedule(self.schedule)
        plan = None if self.plan is None else Plan.load(self.plan)
        task = self.build(self.seed)
        with tempfile.TemporaryDirectory(prefix="pipe-bd-trace-") as folder:
            result = distill(
                task,
                schedule=self.schedule,
                devices=self.devices,
                plan=plan,
                seed=self.seed,
                trace_dir=Path(folder),
                threads=self.threads,
            )
            trace.merge(sorted(Path(folder).glob("rank-*.trace.json")), self.out)
        document = {
            "trace": str(self.out),
            "ranks": len(result.ranks),
            "steps": result.steps,
            "wall_s": result.wall_s,
        }
        emit(
            document,
            self.json,
            f"{self.out}: {len(result.ranks)} ranks, {result.steps} steps, {result.wall_s:.2f} s",
        )
