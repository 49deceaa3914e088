"""``smart-infinity plan``: step time, memory and wear of a setup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError


@dataclass(kw_only=True)
class Plan(Common):
    """Forecast an optimizer step from measured or given rates (a model, not a measurement)."""

    params: float
    """Parameters; 7e9 is 7 billion."""
    devices: int = 1
    """Devices."""
    storage: Path | None = None
    """Folder whose disk is measured (a gigabyte written); else give rates, or --paper."""
    link_rate: float = 0.0
    """GB/s of the link that all devices share, each way; 0: no limit."""
    read_rate: float = 0.0
    """GB/s that one device reads."""
    write_rate: float = 0.0
    """GB/s that one device writes."""
    paper: tyro.conf.FlagCreatePairsOff[bool] = False
    """The paper's SmartSSDs: its device-scaling curve, simulated."""
    moments: str = "float32"
    """How moments are stored: float32, bfloat16 or blocks8."""
    param_dtype: str = "float32"
    """Type parameters come up in."""
    grad_dtype: str = "float32"
    """Type gradients go down in."""
    ratio: float = 0.01
    """Share of entries that top-k sends."""
    tbw: float = 600.0
    """Rated endurance of a drive, terabytes written."""
    steps_per_day: float = 0.0
    """For days until a drive is worn out."""

    def run(self) -> None:
        """Forecast and show."""
        from smart_infinity import planner
        from smart_infinity.compress import TopK

        rates, source = self._rates()
        serial = self.paper
        common: dict[str, Any] = {
            "params": self.params, "devices": self.devices, "moment_type": self.moments,
            "serial": serial,
        }  # fmt: skip
        types: dict[str, Any] = {"grad_dtype": self.grad_dtype, "param_dtype": self.param_dtype}
        topk = TopK(self.ratio)
        setups = {
            "host": planner.Setup(placement="host", **common),
            "device, gradients ahead": planner.Setup(ahead=True, landed=True, **types, **common),
            "device": planner.Setup(**types, **common),
            f"device, top {100 * self.ratio:g} %": planner.Setup(
                compress=topk, param_dtype=self.param_dtype, **common
            ),
        }
        rows = {name: self._row(name, setup, rates) for name, setup in setups.items()}
        host = rows["host"]["step_s"]
        for row in rows.values():
            row["over_host"] = host / row["step_s"] if row["step_s"] else None
        curve = planner.compare(setups, rates, list(range(1, 11))) if self.paper else None
        result = {"rates": rates, "source": source, "setups": rows, "curve_1_to_10": curve}
        emit(result, self.json, self._table(rows, source))

    def _rates(self) -> tuple[Any, str]:
        from smart_infinity import planner, rates

        for name in ("link_rate", "read_rate", "write_rate"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {value:g}: use 0 or more")
        media = bool(self.read_rate or self.write_rate)
        if media + self.paper + (self.storage is not None) > 1:
            raise UserError("--paper, --storage and --read-rate with --write-rate: give one")
        given = planner.Rates(
            link_down=self.link_rate * 1e9, link_up=self.link_rate * 1e9,
            media_read=self.read_rate * 1e9, media_write=self.write_rate * 1e9,
        )  # fmt: skip
        if self.paper:
            return planner.PAPER, "the paper's constants, simulated"
        if self.storage is not None:
            if not self.storage.is_dir():
                wrong = "is a file" if self.storage.exists() else "there is no such folder"
                raise UserError(f"--storage {self.storage}: {wrong}")
            found = rates.measure(self.storage)
            link = {"link_down": given.link_down, "link_up": given.link_up}
            return planner.Rates(**{**vars(found), **link}), f"measured on {self.storage}"
        if not (self.read_rate and self.write_rate):
            raise UserError("give --storage, or --read-rate and --write-rate, or --paper")
        return given, "as given"

    def _row(self, name: str, setup: Any, rates: Any) -> dict[str, Any]:
        from smart_infinity import planner, wear

        found = planner.forecast(setup, rates)
        needs = planner.needs(setup)
        worn = wear.wear(
            self.params, devices=self.devices, tbw=self.tbw, moment_type=self.moments,
            landed=4.0 if setup.landed or setup.placement == "host" else 0.0,
            steps_per_day=self.steps_per_day or None,
        )  # fmt: skip
        return {
            "step_s": found.total_s, "offload_s": found.offload_s, "update_s": found.update_s,
            "bound_by": found.bound_by, "parts": dict(found.parts),
            "link_bytes_per_param": found.link_bytes_per_param,
            "saturates_at": planner.saturation(setup, rates),
            "disk_bytes_each": needs.disk_each, "device_memory_bytes": needs.device_memory_each,
            "host_memory_bytes": needs.host_memory, "written_bytes_a_step": worn.bytes_per_step,
            "steps_to_tbw": worn.steps, "days_to_tbw": worn.days,
        }  # fmt: skip

    def _table(self, rows: dict[str, dict[str, Any]], source: str) -> str:
        lines = [
            f"{self.params:g} parameters on {self.devices} device(s); rates: {source}",
            f"{'':<26} {'step':>9} {'of host':>8} {'bound by':>9} {'link':>8} {'saturates':>10} "
            f"{'disk each':>10} {'steps to TBW':>13}",
        ]
        for name, row in rows.items():
            ratio = f"{row['over_host']:.2f}x" if row["over_host"] else "-"
            lines.append(
                f"{name:<26} {row['step_s']:>7.2f} s {ratio:>8} {row['bound_by']:>9} "
                f"{row['link_bytes_per_param']:>6.2f} B {row['saturates_at']:>10} "
                f"{row['disk_bytes_each'] / 1e9:>7.1f} GB {row['steps_to_tbw']:>13,.0f}"
            )
        return "\n".join(lines)
