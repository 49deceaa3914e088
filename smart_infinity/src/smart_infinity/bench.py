"""Steps without a model: the optimizer alone.

Gradients come from a buffer and parameters go into one: the host's memory does not grow with
the number of parameters.
"""

from __future__ import annotations

import math
import resource
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError
from shorthaul.progress import bar

from smart_infinity import formulas, kinds, wire
from smart_infinity.array import DeviceArray, StateOptions, plan
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import Compressor, TopK
from smart_infinity.flow import Flow, NearStorage, OnHost
from smart_infinity.layout import BYTES, DEFAULT_TILE, DTYPES, Parameter, Tile, check_tile
from smart_infinity.shaper import Shaper
from smart_infinity.worker import resident_bytes

_MOST_PARAMS, _MOST_DEVICES = 1 << 40, 256  # each device is a process
_JOB_FRAMES = {
    "down": ("gradient", "land", "run", "read", "write"),
    "up": ("parameters", "landed", "state", "written"),
}


@dataclass(frozen=True)
class Config:
    """What a bench runs.

    Attributes:
        params: Elements.
        placement: `device` or `host`.
        ahead: Gradients go down before the step, as a backward pass would send them.
        link_rate: Bytes a second and direction of the shared link; 0 for none (else emulated).
        each: Options of each device, in place of `options`, where they are not alike.
        weights: Shares of the devices, see `DeviceArray`.
    """

    params: int
    devices: int = 1
    placement: str = "device"
    optimizer: str = "adamw"
    compress: TopK | None = None
    grad_dtype: str = "float32"
    param_dtype: str = "float32"
    moments: str = "float32"
    tile: int = DEFAULT_TILE
    ahead: bool = False
    link_rate: float = 0.0
    options: DeviceOptions = field(default_factory=DeviceOptions)
    each: Sequence[DeviceOptions] = ()
    weights: Sequence[float] | Literal["measured"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.params <= _MOST_PARAMS:
            raise UserError(f"--params {self.params}: use 1 to {_MOST_PARAMS}")
        if not 1 <= self.devices <= _MOST_DEVICES:
            raise UserError(f"--devices {self.devices}: use 1 to {_MOST_DEVICES}")
        check_tile(self.tile)
        if self.placement not in ("device", "host"):
            raise UserError(f"--placement {self.placement}: use device or host")
        if self.placement == "host" and self.compress is not None:
            raise UserError("--compress with --placement host: the baseline sends all")
        if self.moments not in kinds.MOMENTS:
            raise UserError(f"--moments {self.moments}: use {', '.join(kinds.MOMENTS)}")
        if not 0 <= self.link_rate < math.inf:
            raise UserError(f"--link-rate {self.link_rate}: use 0 or more")
        for name in (self.grad_dtype, self.param_dtype):
            if name not in DTYPES:
                raise UserError(f"type {name!r}: use {', '.join(DTYPES)}")


class Bench:
    """An open array of devices and what steps it; a context manager that removes what it made.

    With `addresses` the devices are those that others serve there, with new folders, in place of
    `folders`; they and their folders stay.
    """

    def __init__(
        self,
        config: Config,
        folders: Sequence[Path],
        *,
        addresses: Sequence[str] = (),
        token: str | None = None,
    ) -> None:
        self.config = config
        if addresses and len(addresses) != config.devices:
            raise UserError(f"{len(addresses)} addresses for {config.devices} devices")
        self.folders = [
            folders[d % len(folders)] / f"bench-{d}"
            for d in range(0 if addresses else config.devices)
        ]
        self.kind = kinds.optimizer(config.optimizer)
        self.defaults = kinds.merged(
            self.kind, {"momentum": 0.9} if config.optimizer == "sgd" else {}
        )
        self.step_number = 0
        self._gradients: dict[str, npt.NDArray[np.uint8]] = {}
        self._out = np.empty(4 * config.tile, np.uint8)
        rng = np.random.default_rng(config.seed)
        self._floats = rng.standard_normal(2 * config.tile, np.float32) * 1e-3
        self.compressor = Compressor(config.compress) if config.compress is not None else None
        self.baseline_rss = resident_bytes()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._check_space(folders)
        self.array = DeviceArray(
            addresses or self.folders, [Parameter("flat", (config.params,), config.param_dtype)],
            self.kind, momentum=bool(self.kind.moments(self.defaults)),
            options=config.each or config.options, weights=config.weights,
            state=StateOptions(config.moments, config.tile), resume=False,
            slot_bytes=self._slot_bytes, shaper=Shaper(config.link_rate, config.link_rate),
            token=token,
        )  # fmt: skip
        near = config.placement == "device"
        self.flow: Flow = NearStorage(self.array) if near else OnHost(self.array)

    def _check_space(self, folders: Sequence[Path]) -> None:
        """Refuse what no disk here can hold, before a layout of it is made."""
        if not self.folders:
            return
        moments = len(self.kind.moments(self.defaults))
        each = 4 + moments * formulas.MOMENT_BYTES[self.config.moments]
        needed = 2 * each * self.config.params
        disks = {folder.stat().st_dev: shutil.disk_usage(folder).free for folder in folders}
        if needed > sum(disks.values()):
            raise UserError(
                f"--storage {', '.join(map(str, folders))}: needs {int(needed)} bytes, there are "
                f"{sum(disks.values())} free; give another directory, or more of them"
            )

    def _slot_bytes(self, tile: int) -> tuple[int, int]:
        down, up = 4 * tile, 4 * tile
        if self.config.compress is not None:
            down = max(down, self.config.compress.bytes(tile))
        if self.config.placement == "host":
            state = 4 * (1 + len(self.kind.arrays)) * tile
            down, up = state, state + 4 * tile
        return down, up

    def _fill(self, tile: Tile, area: memoryview) -> tuple[int, int]:
        # Another place in the same noise every time: no two tiles have the same gradient.
        at = (tile.index * 4099 + self.step_number * 65537) % self.config.tile
        gradient = self._floats[at : at + tile.elements]
        if self.compressor is not None:
            values = DTYPES.index(self.compressor.topk.values)
            return self.compressor.encode(tile, gradient, area), wire.TOPK | values
        name = self.config.grad_dtype
        if name == "float32":
            np.frombuffer(area, np.float32, tile.elements)[:] = gradient
        else:
            from smart_infinity import _core

            length = tile.elements * BYTES[name]
            _core.from_float(_core.Dtype[name], gradient, area[:length])
        return tile.elements * BYTES[name], DTYPES.index(name)

    def _take(self, tile: Tile, area: memoryview) -> None:
        length = tile.elements * BYTES[tile.dtype]
        self._out[:length] = np.frombuffer(area, np.uint8, length)

    def step(self) -> dict[str, float]:
        """Take a step and give its phases in seconds; all of it is durable at the end."""
        self.step_number += 1
        tiles = self.array.layout.tiles
        body = plan([kinds.settings(self.defaults)], [self.step_number], np.zeros(1, np.uint16))
        begin = time.perf_counter()
        if self.config.ahead or self.config.placement == "host":
            self.flow.offload(tiles, self._fill)
            self.array.wait_idle()
        offloaded = time.perf_counter()
        self.flow.begin(self.step_number, body)
        ahead = self.config.ahead or self.config.placement == "host"
        self.flow.update(tiles, None if ahead else self._fill, self._take)
        if self.array.failure is not None:
            raise self.array.failure
        updated = time.perf_counter()
        self.array.commit(self.step_number, {}, wait=True)
        end = time.perf_counter()
        return {
            "offload_s": offloaded - begin,
            "update_s": updated - offloaded,
            "durable_s": end - updated,
            "total_s": end - begin,
        }

    def close(self) -> None:
        """End the devices and remove their folders."""
        try:
            self.array.close()
        finally:
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def per_step(before: dict[str, Any], after: dict[str, Any], steps: int) -> dict[str, Any]:
    """Give what one device counted between two snapshots, per step, by direction and kind."""
    down = _moved(before["link"]["sent"], after["link"]["sent"], steps)
    up = _moved(before["link"]["received"], after["link"]["received"], steps)
    engine = {
        key: (after["device"]["engine"][key] - value) / steps
        for key, value in before["device"]["engine"].items()
    }
    io = {
        key: (after["device"]["io"][key] - before["device"]["io"].get(key, 0)) / steps
        for key in ("read_bytes", "write_bytes", "rchar", "wchar")
        if key in after["device"]["io"]
    }
    return {"down": down, "up": up, "engine": engine, "io": io}


def _moved(before: dict[str, Any], after: dict[str, Any], steps: int) -> dict[str, float]:
    moved: dict[str, float] = {}
    for kind, counts in after.items():
        old = before.get(kind, {"header_bytes": 0, "payload_bytes": 0})
        count = sum(counts[key] - old[key] for key in ("header_bytes", "payload_bytes"))
        if count:
            moved[kind] = count / steps
    return moved


def run(config: Config, folders: Sequence[Path], steps: int, *, warmup: int = 1) -> dict[str, Any]:
    """Run a bench and give what the command's JSON holds; see docs/bench.md."""
    if steps < 1:
        raise UserError(f"--steps {steps}: use 1 or more")
    with Bench(config, folders) as bench:
        for _ in range(warmup):
            bench.step()
        before = bench.array.counts()
        host_before = host_io()
        phases = []
        with bar(steps, "steps") as progress:
            for _ in range(steps):
                phases.append(bench.step())
                progress.update(1)
        after = bench.array.counts(config.options.trace)
        return summary(bench, phases, before, after, host_before)


def host_io() -> dict[str, int]:
    """Give this process's `/proc/self/io`, as far as the kernel tells."""
    found = {}
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            found[name] = int(value)
    except OSError:
        pass
    return found


def summary(
    bench: Bench,
    phases: Sequence[dict[str, float]],
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    host_before: dict[str, int],
) -> dict[str, Any]:
    """Put phases and counts together."""
    config, steps, n = bench.config, len(phases), bench.config.params
    each = [per_step(b, a, steps) for b, a in zip(before, after, strict=True)]
    by_kind: dict[str, dict[str, float]] = {"down": {}, "up": {}}
    for device in each:
        for direction in ("down", "up"):
            for kind, count in device[direction].items():
                by_kind[direction][kind] = by_kind[direction].get(kind, 0.0) + count
    jobs = {
        direction: sum(by_kind[direction].get(kind, 0.0) for kind in kinds_)
        for direction, kinds_ in _JOB_FRAMES.items()
    }
    control = sum(sum(kinds_.values()) for kinds_ in by_kind.values()) - sum(jobs.values())
    sizes = [tile.elements for tile in bench.array.layout.tiles]
    expected = formulas.link_bytes(
        sizes, placement=config.placement, grad_dtype=config.grad_dtype,
        param_dtype=config.param_dtype, compress=config.compress,
        moments=bench.array.arrays - 1, ahead=config.ahead,
    )  # fmt: skip
    engine = {key: sum(d["engine"][key] for d in each) for key in each[0]["engine"]}
    median = {key: statistics.median(p[key] for p in phases) for key in phases[0]}
    host_after = host_io()
    report: dict[str, Any] = {
        "params": n,
        "devices": config.devices,
        "placement": config.placement,
        "compress": None if config.compress is None else vars(config.compress).copy(),
        "grad_dtype": config.grad_dtype,
        "param_dtype": config.param_dtype,
        "moments": config.moments,
        "steps": steps,
        "phases": list(phases),
        "seconds": median,
        "params_per_s": n / median["total_s"],
        "link_bytes_per_param": (jobs["down"] + jobs["up"]) / n,
        "link_bytes": {"down": jobs["down"], "up": jobs["up"], "control": control},
        "link_bytes_by_kind": by_kind,
        "link_bytes_expected": {"down": expected.down, "up": expected.up},
        "control_bytes_per_param": control / n,
        "media_bytes_per_param": {
            "read": engine["read_bytes"] / n,
            "write": engine["write_bytes"] / n,
            "meta": engine["meta_bytes"] / n,
        },
        "kernel_bytes_per_param": {
            "read": sum(d["io"].get("read_bytes", math.nan) for d in each) / n,
            "write": sum(d["io"].get("write_bytes", math.nan) for d in each) / n,
        },
        "host_media_bytes": {
            key: (host_after.get(key, 0) - host_before.get(key, 0)) / steps
            for key in ("read_bytes", "write_bytes")
        },
        "peak_rss_bytes": {
            "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "host_growth": resident_bytes() - bench.baseline_rss,
            "devices": [a["device"]["peak_rss_bytes"] for a in after],
        },
        "device_cpu_s": [
            (a["device"]["cpu_s"] - b["device"]["cpu_s"]) / steps
            for b, a in zip(before, after, strict=True)
        ],
        "kernel_s": engine["kernel_s"],
        "sum_s": engine["sum_s"],
        "emulated": emulated(config),
        "direct": [d.ready.get("direct") for d in bench.array.devices],
        "io": [d.ready.get("io") or "io_uring" for d in bench.array.devices],
    }
    if config.options.trace:
        report["trace"] = [a["device"].get("trace", []) for a in after]
    return report


def emulated(config: Config) -> str | None:
    """Say in words what stands in for hardware, or None."""
    said = []
    if config.link_rate > 0:
        said.append(f"link shaped to {config.link_rate / 1e6:g} MB/s each way by token buckets")
    whose = {"each device": config.options}
    if config.each:
        whose = {f"device {d}": options for d, options in enumerate(config.each)}
    for who, options in whose.items():
        if options.read_rate or options.write_rate:
            said.append(
                f"{who}'s media slowed to {options.read_rate / 1e6:g} MB/s reads and "
                f"{options.write_rate / 1e6:g} MB/s writes by token buckets"
            )
    return "; ".join(said) or None


def table(report: dict[str, Any]) -> str:
    """Give a report as text."""
    seconds, link = report["seconds"], report["link_bytes_by_kind"]
    n = report["params"]
    lines = [
        f"{report['params']:,} parameters on {report['devices']} device(s), {report['placement']} "
        f"placement: {report['params_per_s'] / 1e6:.1f} M parameters/s",
        f"  step {seconds['total_s']:.3f} s: gradients ahead {seconds['offload_s']:.3f}, update "
        f"{seconds['update_s']:.3f}, durable {seconds['durable_s']:.3f}",
        f"  link {report['link_bytes_per_param']:.4f} B/param "
        f"(formula {sum(report['link_bytes_expected'].values()) / n:.4f}): "
        + ", ".join(
            f"{kind} {count / n:.4f} {direction}"
            for direction in ("down", "up")
            for kind, count in link[direction].items()
            if kind in _JOB_FRAMES[direction]
        ),
        "  media "
        + ", ".join(f"{k} {v:.3f}" for k, v in report["media_bytes_per_param"].items())
        + " B/param; by the kernel's count "
        + ", ".join(f"{k} {v:.3f}" for k, v in report["kernel_bytes_per_param"].items()),
        f"  peak memory: host {report['peak_rss_bytes']['host'] / 2**20:.0f} MiB, devices "
        + ", ".join(f"{b / 2**20:.0f}" for b in report["peak_rss_bytes"]["devices"])
        + " MiB",
    ]
    if report["emulated"]:
        lines.append(f"  emulated: {report['emulated']}")
    return "\n".join(lines)
