"""``smart-infinity wear``: bytes written, and a drive's endurance."""

from __future__ import annotations

from dataclasses import dataclass

from shorthaul.cli import Common, emit


@dataclass(kw_only=True)
class Wear(Common):
    """Say how many bytes a step writes, and after how many steps a drive is worn out."""

    params: float
    """Parameters; 7e9 is 7 billion."""
    optimizer: str = "adamw"
    """adamw, adam, adagrad or sgd (with momentum)."""
    moments: str = "float32"
    """How moments are stored: float32, bfloat16 or blocks8."""
    devices: int = 1
    """Drives."""
    tbw: float = 600.0
    """Rated endurance of a drive, terabytes written."""
    landed: float = 0.0
    """Bytes per parameter of gradients that wait on the drive for their step."""
    steps_per_day: float = 0.0
    """For the number of days."""

    def run(self) -> None:
        """Calculate and show."""
        from smart_infinity import kinds, wear

        kind = kinds.optimizer(self.optimizer)
        found = wear.wear(
            self.params,
            devices=self.devices,
            tbw=self.tbw,
            moments=len(kind.arrays),
            moment_type=self.moments,
            landed=self.landed,
            steps_per_day=self.steps_per_day or None,
        )
        text = (
            f"{found.bytes_per_param:g} B per parameter and step, {found.bytes_per_step / 1e9:.3g} "
            f"GB a step on {self.devices} drive(s)\n"
            f"a drive of {self.tbw:g} TBW bears {found.steps:,.0f} steps"
        )
        if found.days is not None:
            text += f", {found.days:,.1f} days at {self.steps_per_day:g} steps a day"
        emit(found, self.json, text)
