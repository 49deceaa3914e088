"""``smart-infinity bench``: time steps and count their bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError


@dataclass(kw_only=True)
class BenchCommand(Common):
    """Step a flat parameter on devices, without a model: the optimizer alone."""

    params: int
    """Number of parameters."""
    storage: list[Path]
    """Folders, one a device; with fewer than devices they are used in turn."""
    devices: int = 0
    """Devices; 0: one a folder."""
    placement: str = "device"
    """Where updates happen: device, or host (ZeRO-Infinity's flow with the same engine)."""
    optimizer: str = "adamw"
    """adamw, adam, adagrad or sgd."""
    compress: str = "none"
    """none, or topk:RATIO."""
    compress_values: str = "float32"
    """Type of compressed values: float32, bfloat16 or float16."""
    grad_dtype: str = "float32"
    """Type gradients go down in."""
    param_dtype: str = "float32"
    """Type parameters come up in."""
    moments: str = "float32"
    """How moments are stored: float32, bfloat16 or blocks8."""
    link_rate: float = 0.0
    """Megabytes a second of the shared link, each way; 0: as fast as it goes."""
    media_read_rate: float = 0.0
    """Megabytes a second that each device reads at most; 0: as fast as it goes."""
    media_write_rate: float = 0.0
    """The same for writes."""
    ahead: bool = False
    """Send all gradients before the step, as a backward pass does."""
    landing: int = 1 << 30
    """Bytes of such gradients a device keeps in memory; the rest goes to its disk."""
    steps: int = 5
    """Steps measured, after one that is not."""
    tile: int = 1 << 18
    """Elements of a tile."""
    slots: int = 8
    """Tiles in a device's memory; with 1 nothing overlaps."""
    window: int = 8
    """Tiles on the link."""
    trace: tyro.conf.FlagCreatePairsOff[bool] = False
    """Put when what happened into the JSON."""

    def run(self) -> None:
        """Run and show."""
        from dataclasses import replace

        from smart_infinity import bench
        from smart_infinity.client import DeviceOptions
        from smart_infinity.compress import parse

        if not self.storage:
            raise UserError("--storage: give one or more folders")
        for name in ("link_rate", "media_read_rate", "media_write_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {getattr(self, name)}: use 0 or more megabytes a second")
        for folder in self.storage:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--storage {folder}: {error.strerror}") from error
        topk = parse(self.compress)
        if topk is not None:
            topk = replace(topk, values=self.compress_values)
        options = DeviceOptions(
            slots=self.slots,
            window=self.window,
            landing_bytes=self.landing,
            read_rate=self.media_read_rate * 1e6,
            write_rate=self.media_write_rate * 1e6,
            trace=self.trace,
        )
        config = bench.Config(
            params=self.params,
            devices=self.devices or len(self.storage),
            placement=self.placement,
            optimizer=self.optimizer,
            compress=topk,
            grad_dtype=self.grad_dtype,
            param_dtype=self.param_dtype,
            moments=self.moments,
            tile=self.tile,
            ahead=self.ahead,
            link_rate=self.link_rate * 1e6,
            options=options,
            seed=self.seed,
        )
        report = bench.run(config, self.storage, self.steps)
        emit(report, self.json, bench.table(report))
