"""What a run gives back: losses, counts and times of every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipe_bd.counters import BUSY, WAIT
from pipe_bd.plan import Plan


def steady_period(marks: Sequence[float], skip: int) -> float:
    """Seconds per step after the first ``skip`` steps.

    Args:
        marks: clock readings at the end of each step.
        skip: steps of the fill, left out.
    """
    if len(marks) < 2:
        return float("nan")
    first = min(skip, len(marks) - 2)
    return (marks[-1] - marks[first]) / (len(marks) - 1 - first)


@dataclass(frozen=True)
class Result:
    """Outcome of :func:`pipe_bd.distill`.

    Attributes:
        schedule: the schedule that ran.
        plan: its stages; None for dp and ls.
        assignment: for ls, the rank of each block.
        steps: batches per block.
        batch: rows per batch.
        losses: {block: {candidate: {step: full-batch loss}}}.
        ranks: one report per rank: counters, seconds, cpu_s, wall_s, peak_rss_bytes, marks.
    """

    schedule: str
    plan: Plan | None
    assignment: tuple[int, ...] | None
    steps: int
    batch: int
    losses: Mapping[str, Mapping[str, Mapping[int, float]]]
    ranks: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def wall_s(self) -> float:
        """Seconds from the common start to the last rank's end."""
        return max(r["wall_s"] for r in self.ranks)

    @property
    def busiest_cpu_s(self) -> float:
        """CPU seconds of the busiest rank, its transport threads included."""
        return max(r["cpu_s"] for r in self.ranks)

    def total(self, name: str) -> Any:
        """A counter summed over the ranks.

        Args:
            name: a field of :class:`~pipe_bd.counters.Counters`.
        """
        values = [r["counters"][name] for r in self.ranks]
        if isinstance(values[0], dict):
            return dict(sum((Counter(v) for v in values), Counter()))
        return sum(values)

    def period_s(self, skip: int = 0) -> float:
        """Steady seconds per step of the last stage; total time per step for dp and ls."""
        if self.plan is None:
            return self.wall_s / self.steps
        last = self.plan.ranks(len(self.plan.stages) - 1).start
        return steady_period(self.ranks[last]["marks"], skip)

    def shares(self) -> list[dict[str, float]]:
        """Per rank the seconds of each activity, and "idle" for what remains of the run.

        Loading runs on a thread of its own; it is shown as "data" and overlaps the others.
        """
        table = []
        for rank in self.ranks:
            seconds = rank["counters"]["seconds"]
            row = {k: float(seconds.get(k, 0.0)) for k in (*BUSY, *WAIT)}
            row["idle"] = max(0.0, self.wall_s - sum(v for k, v in row.items() if k != "data"))
            table.append(row)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; losses keyed by step as strings."""
        return {
            "schedule": self.schedule,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "assignment": self.assignment,
            "steps": self.steps,
            "batch": self.batch,
            "wall_s": self.wall_s,
            "busiest_cpu_s": self.busiest_cpu_s,
            "losses": {
                b: {c: {str(k): v for k, v in s.items()} for c, s in m.items()}
                for b, m in self.losses.items()
            },
            "ranks": [{k: v for k, v in r.items() if k != "marks"} for r in self.ranks],
        }
