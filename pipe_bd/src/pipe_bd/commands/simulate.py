"""``pipe-bd simulate``: what each schedule would do on devices that are not here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

if TYPE_CHECKING:
    from pipe_bd.plan import Plan
    from pipe_bd.profile import Profile
    from pipe_bd.simulator import SimulationResult

    Row = SimulationResult | tuple[str, int, str]


@dataclass(kw_only=True)
class Simulate(Common):
    """Simulate schedules on 1 to 1024 devices from a profile; nothing is run."""

    profile: Path
    """Profile to simulate (pipe-bd profile writes one; `example` is one that ships with us)."""
    devices: tuple[int, ...]
    """Device counts, one or several."""
    schedule: str = "all"
    """all, or one of sequential, dp, ls, joint, tr, dpu, ahd."""
    plan: Path | None = None
    """Plan file for tr, dpu or ahd (with `all`: for ahd); the best plan by default."""
    steps: int = 200
    """Batches that every block is trained on."""
    depth: int = 2
    """Receives posted ahead, and boundary tensors a sender may hold unsent."""
    prefetch: int = 2
    """Batches loaded ahead; 0 loads in line with the first stage."""
    jitter: float = 0.0
    """Uniform noise of up to this fraction on every block time."""

    def run(self) -> None:
        """Simulate, tabulate, write."""
        from pipe_bd.options import SCHEDULES, check_schedule
        from pipe_bd.paths import profile_path
        from pipe_bd.plan import Plan
        from pipe_bd.profile import Profile

        if self.schedule != "all":
            check_schedule(self.schedule)
        if not self.devices:
            raise UserError("--devices is empty: give at least one device count")
        profile = Profile.load(profile_path(self.profile))
        chosen = None if self.plan is None else Plan.load(self.plan)
        schedules = SCHEDULES if self.schedule == "all" else (self.schedule,)
        groups = [self._row_group(profile, chosen, schedules, count) for count in self.devices]
        rows = [_entry(row, base) for group, base in groups for row in group]
        emit(
            {
                "simulated": True,
                "profile": str(self.profile),
                "batch": profile.batch,
                "results": rows,
            },
            self.json,
            self._text(profile, rows),
        )

    def _row_group(
        self,
        profile: Profile,
        chosen: Plan | None,
        schedules: tuple[str, ...],
        devices: int,
    ) -> tuple[list[Row], float | None]:
        """Rows of one device count, and the period of dp there, None where it cannot run."""
        from pipe_bd.profile import Unavailable
        from pipe_bd.simulator import simulate

        options: dict[str, Any] = {
            "steps": self.steps,
            "depth": self.depth,
            "prefetch": self.prefetch,
            "seed": self.seed,
            "jitter": self.jitter,
        }
        rows: list[Row] = []
        base = None
        for schedule in dict.fromkeys(("dp", *schedules)):
            use = chosen if schedule == "ahd" or self.schedule == schedule else None
            try:
                result = simulate(profile, schedule, devices, plan=use, **options)
            except Unavailable as error:
                # Asked for by name it is the user's error; in a table it is a gap with a reason.
                if self.schedule == schedule or use is not None:
                    raise
                rows.append((schedule, devices, str(error)))
            else:
                base = result.period_s if schedule == "dp" else base
                rows.append(result)
        order = {name: number for number, name in enumerate(schedules)}
        rows = [row for row in rows if _name(row) in order]
        return sorted(rows, key=lambda row: order[_name(row)]), base

    def _text(self, profile: Profile, rows: list[dict[str, Any]]) -> str:
        noise = f", ±{self.jitter:.0%} noise" if self.jitter else ""
        lines = [
            f"simulated, not measured: {len(profile.blocks)} blocks, batch {profile.batch}, "
            f"{self.steps} steps, depth {self.depth}{noise}",
            f"{'devices':>7}  {'schedule':<10}  {'period':>12}  {'over dp':>7}  {'in use':>6}  "
            f"{'fill':>12}  {'relayed':>11}  stages",
        ]
        for row in rows:
            head = f"{row['devices']:>7}  {row['schedule']:<10}  "
            if row["why_not"] is not None:
                lines.append(f"{head}not possible: {row['why_not']}")
                continue
            gain = row["speedup_over_dp"]
            lines.append(
                f"{head}{row['period_s'] * 1e3:>9.3f} ms  "
                + (f"{'-':>7}" if gain is None else f"{gain:>6.2f}×")
                + f"  {row['utilisation']:>6.1%}  {row['fill_s'] * 1e3:>9.3f} ms  "
                + f"{row['bytes_per_step'] / 1e6:>8.2f} MB  {_shape(row)}"
            )
        return "\n".join(lines)


def _name(row: Row) -> str:
    return row[0] if isinstance(row, tuple) else row.schedule


def _entry(row: Row, base: float | None) -> dict[str, Any]:
    if isinstance(row, tuple):
        return {"simulated": True, "schedule": row[0], "devices": row[1], "why_not": row[2]}
    gain = base / row.period_s if base is not None and row.period_s > 0 else None
    return {**row.to_dict(), "speedup_over_dp": gain, "why_not": None}


def _shape(row: dict[str, Any]) -> str:
    """Blocks × devices of each stage, cut where it would not fit a line."""
    if row["stages"] is None:
        return "-"
    cells = [f"{s['last'] - s['first'] + 1}×{s['devices']}" for s in row["stages"]]
    return (
        " ".join(cells) if len(cells) <= 8 else " ".join([*cells[:7], f"… ({len(cells)} stages)"])
    )
