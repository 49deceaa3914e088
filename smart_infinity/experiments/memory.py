"""Memory does not grow with the model, and a state larger than memory is trained within a limit."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from shorthaul.errors import EnvironmentLack, Fault
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import keep
from smart_infinity.experiments._cgroup import MemoryLimit, unlimited

MIB = 2**20
STATE = 12  # bytes per parameter of AdamW's state: master and two moments
DISK = 2 * STATE  # which lies on disk in two extents
CHILD = Path(__file__).with_name("_limited_child.py")


def _need(context: Context, size: float, what: str) -> None:
    """Refuse to begin what the disk has no room for (EnvironmentLack)."""
    free = shutil.disk_usage(context.workdir).free
    if free < size * 1.02 + 64 * MIB:
        raise EnvironmentLack(
            f"{what} needs {size / 1e9:.1f} GB below {context.workdir}, where {free / 1e9:.1f} GB "
            "are free: give --root on another disk"
        )


def _benched(context: Context, params: int) -> dict[str, Any]:
    """Bench so many parameters in a process of its own, whose peak memory is nobody else's."""
    s = context.settings
    folder = context.workdir / f"bench-{params}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [
        sys.executable, "-m", "smart_infinity.cli", "bench", "--params", str(params), "--storage",
        str(folder), "--devices", str(s["devices"]), "--steps", str(s["steps"]), "--json", "-",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    shutil.rmtree(folder)
    if done.returncode:
        raise Fault(f"a bench of {params:,} parameters: {done.stderr.strip().splitlines()[-1:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _within(limit: int, argument: str, notes: list[str]) -> dict[str, Any]:
    """Run the child within a limit, or watched where none can be set; what it said and took."""
    command = [sys.executable, str(CHILD), argument]
    try:
        with MemoryLimit(limit) as group:
            done = group.run(command)
            counted: dict[str, Any] = {**group.counted(), "enforced": True}
    except EnvironmentLack as error:
        note = f"the memory limit was not enforced, only compared with what was taken: {error}"
        if note not in notes:
            notes.append(note)
        done = unlimited(command)
        counted = {"limit": limit, "met": None, "killed": None, "enforced": False}
    said = json.loads(done.stdout) if done.returncode == 0 else {}
    found = {"code": done.returncode, "error": done.stderr[-2000:], **counted, **said}
    if not found["enforced"]:
        # Of all processes; what they share counts more than once, page cache not at all.
        found["peak"] = found.get("resident")
    return found


def _limited(context: Context, notes: list[str]) -> dict[str, Any]:
    """Train within a memory limit what has a state several times as large; torch beside it."""
    s = context.settings
    limit = s["limit_mib"] * MIB
    width = s["width"]
    layers = math.ceil(s["state_over_limit"] * limit / STATE / width**2)
    _need(context, layers * width**2 * (DISK + 2), "a state larger than the memory limit")
    folders = [context.workdir / f"limited-{d}" for d in range(s["devices"])]
    given = {
        "width": width, "layers": layers, "folders": [str(folder) for folder in folders],
        "tile": 1 << 16, "steps": s["limited_steps"],
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name in ("smart", "torch"):
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        found[name] = one = _within(limit, json.dumps({**given, "optimizer": name}), notes)
        error = one.pop("error")
        context.run.metric(limited=name, **one)
        if name == "smart" and one["code"]:
            raise Fault(f"training within {s['limit_mib']} MiB failed: {error}")
        if name == "smart":
            whole = keep.inspect(folders)
            one["steps_on_disk"] = keep.consistent(whole)
            one["damaged"] = sum(len(device.faults) for device in whole)
    return found


def run(context: Context) -> Summary:
    """Benches of rising size; then a training run within a limit, and torch's within the same."""
    s = context.settings
    notes: list[str] = []
    _need(context, max(s["params"]) * DISK, f"a bench of {max(s['params']):,} parameters")
    reports = {}
    for params in s["params"]:
        reports[params] = report = _benched(context, params)
        context.run.metric(params=params, rss=report["peak_rss_bytes"])
    limited = _limited(context, notes)
    host = [report["peak_rss_bytes"]["host"] for report in reports.values()]
    device = [max(report["peak_rss_bytes"]["devices"]) for report in reports.values()]
    metrics: dict[str, Any] = {
        "host_spread": _spread(host),
        "device_spread": _spread(device),
        "host_mib": [size / MIB for size in host],
        "device_mib": [size / MIB for size in device],
        "largest_over_smallest": max(s["params"]) / min(s["params"]),
    }
    tables = [Table(
        "memory", "Peak resident memory by model",
        ["parameters", "on disk, GB", "host, MiB", "of these grown since before the bench",
         "device, MiB"],
        [[params, round(params * DISK / 1e9, 2), round(h / MIB, 1),
          round(report["peak_rss_bytes"]["host_growth"] / MIB, 1), round(d / MIB, 1)]
         for (params, report), h, d in zip(reports.items(), host, device, strict=True)],
        "Each bench in processes of its own: Python and numpy are in the figures, 8 tiles of "
        f"262,144 parameters in a device's memory, {s['devices']} device(s).",
    )]  # fmt: skip
    metrics["limited"] = _judged(s, limited)
    tables.append(_table(limited))
    figure = Figure(
        "memory", "Peak resident memory by model", "lines", list(s["params"]), "parameters", "MiB",
        [Series("host", [size / MIB for size in host]),
         Series("device", [size / MIB for size in device])],
        log_x=True,
    )  # fmt: skip
    return Summary(metrics, [figure], tables, notes)


def _spread(values: list[int]) -> float:
    """The farthest of them from their median, as a share of it."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)


def _judged(s: dict[str, Any], limited: dict[str, Any]) -> dict[str, Any]:
    ours, torchs = limited["smart"], limited["torch"]
    finite = all(math.isfinite(loss) for loss in ours["losses"])
    return {
        "enforced": ours["enforced"],
        "state_over_limit": ours["params"] * STATE / ours["limit"],
        "finished": ours["steps_on_disk"] == s["limited_steps"] and finite,
        "peak_over_limit": ours["peak"] / ours["limit"],
        "killed": ours["killed"],
        "damaged": ours["damaged"],
        "landed_over_params": ours["landed_bytes"] / ours["params"] / s["limited_steps"],
        "torch_was_killed": None if torchs["killed"] is None else torchs["killed"] > 0,
        "params": ours["params"],
    }


def _table(limited: dict[str, Any]) -> Table:
    rows = [
        [name, one["limit"] / MIB, None if one["peak"] is None else round(one["peak"] / MIB, 1),
         one["met"], one["killed"], len(one.get("losses", []))]
        for name, one in limited.items()
    ]  # fmt: skip
    ours = limited["smart"]
    how = (
        "Host and devices are in one memory cgroup, page cache included."
        if ours["enforced"] else
        "No limit was set here: the peak is the sum of all processes' own."
    )  # fmt: skip
    note = (
        f"{ours['params']:,} bfloat16 parameters; AdamW's float32 state is "
        f"{ours['params'] * STATE / MIB:,.0f} MiB, {ours['params'] * STATE / ours['limit']:.1f} × "
        f"the limit, and twice that on disk. {how} torch's AdamW keeps its moments in bfloat16 "
        "here: with float32 masters and moments it would need twice as much."
    )
    columns = ["optimizer", "limit, MiB", "peak, MiB", "times the limit was met", "killed",
               "steps done"]  # fmt: skip
    return Table("memory_limit", "Training within a memory limit", columns, rows, note)


EXPERIMENT = Experiment(
    id="memory",
    title="Memory is the same for any model, and a state 4 × the memory limit is trained",
    source="Smart-Infinity, internal data transfer handler; notes, check 6; Must show 5",
    run=run,
    scales={
        "smoke": {
            "params": [4_000_000, 8_000_000, 16_000_000], "devices": 1, "steps": 1,
            "limit_mib": 512, "state_over_limit": 2, "width": 2048, "limited_steps": 2,
        },
        "small": {
            "params": [50_000_000, 100_000_000, 200_000_000, 400_000_000, 800_000_000],
            "devices": 1, "steps": 1,
            "limit_mib": 2048, "state_over_limit": 4, "width": 2048, "limited_steps": 2,
        },
    },
    minutes={"smoke": 1, "small": 6},
    gigabytes={"smoke": 2.4, "small": 20},
    needs={"small": "19.7 GB of free disk for a state of 800 million parameters"},
)  # fmt: skip
