"""``pipe-bd plan``: the best block-to-device plan for a profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shorthaul.cli import Common, emit


@dataclass(kw_only=True)
class Plan(Common):
    """Choose stages and group sizes with the lowest period; --json writes the plan file."""

    profile: Path
    """Profile to plan for (pipe-bd profile writes one; `example` is one that ships with us)."""
    devices: int
    """Devices available; some stay idle where that is no slower."""
    memory_gb: float | None = None
    """Memory per device in units of 1e9 bytes; no limit by default."""
    reference: bool = False
    """Search with the plain Python planner instead of the C++ one (slow; same plan)."""

    def run(self) -> None:
        """Plan, explain, write."""
        from pipe_bd import planner
        from pipe_bd.paths import profile_path
        from pipe_bd.profile import Profile

        chosen = planner.plan(
            Profile.load(profile_path(self.profile)),
            self.devices,
            None if self.memory_gb is None else self.memory_gb * 1e9,
            reference=self.reference,
        )
        emit(chosen.to_dict(), self.json, planner.explain(chosen))
