"""What a step writes to a drive, by two counters, against what `smart-infinity wear` says."""

from __future__ import annotations

import math
from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import bench, kinds
from smart_infinity.client import DeviceOptions
from smart_infinity.layout import BYTES
from smart_infinity.wear import Wear, wear

# A model and a drive to show what the figures mean.
MODEL, TERABYTES = 7e9, 600.0


def _row(context: Context, kind: str, moments: str, landed: str | None) -> dict[str, Any]:
    """Bench one way to store the state; `landed` is the type of gradients that wait on disk."""
    s = context.settings
    config = bench.Config(
        params=s["params"], devices=s["devices"], tile=s["tile"], optimizer=kind, moments=moments,
        grad_dtype=landed or "float32", ahead=landed is not None, seed=context.seed,
        options=DeviceOptions(landing_bytes=0),
    )  # fmt: skip
    report = bench.run(config, [context.workdir], s["steps"])
    arrays = len(kinds.OPTIMIZERS[kind].arrays)
    on_disk = 0.0 if landed is None else float(BYTES[landed])
    said = _said(s["params"], arrays, moments, on_disk)
    big = _said(MODEL, arrays, moments, on_disk)
    media, kernel = report["media_bytes_per_param"], report["kernel_bytes_per_param"]
    counted = (media["write"] + media["meta"]) * s["params"]
    found = {
        "kind": kind,
        "moments": moments,
        "landed": landed or "in memory",
        "said": said.bytes_per_step,
        "counted": counted,
        "kernel": kernel["write"] * s["params"],
        "bytes_per_param": said.bytes_per_param,
        "steps_of_drive": big.steps,
    }
    context.run.metric(**found)
    return found


def _said(params: float, arrays: int, moments: str, landed: float) -> Wear:
    return wear(params, tbw=TERABYTES, moments=arrays, moment_type=moments, landed=landed)


def run(context: Context) -> Summary:
    """Every optimizer with every type of moments; then gradients that wait on the disk."""
    rows = [
        _row(context, kind, moments, None)
        for kind in context.settings["kinds"]
        for moments in kinds.MOMENTS
    ]
    rows += [_row(context, "adamw", "float32", landed) for landed in ("float32", "bfloat16")]
    counted = [row["counted"] / row["said"] for row in rows]
    kernel = [row["kernel"] / row["said"] for row in rows]
    metrics: dict[str, Any] = {
        "measured": len(rows),
        "counted_over_said": [min(counted), max(counted)],
        # Without /proc/PID/io there is nothing to compare: NaN, which no claim accepts.
        "kernel_over_said": [math.nan] if any(map(math.isnan, kernel)) else
        [min(kernel), max(kernel)],
        "bytes_per_param": {
            f"{row['kind']} {row['moments']} {row['landed']}": row["bytes_per_param"]
            for row in rows
        },
    }  # fmt: skip
    table = Table(
        "endurance", "Bytes written a step",
        ["optimizer", "moments", "gradients wait", "B/param said", "counted / said",
         "kernel's count / said", f"steps a drive of {TERABYTES:g} TB bears, 7 billion parameters"],
        [[row["kind"], row["moments"], row["landed"], round(row["bytes_per_param"], 4),
          round(row["counted"] / row["said"], 5), round(row["kernel"] / row["said"], 5),
          round(row["steps_of_drive"])] for row in rows],
        f"{context.settings['params']:,} parameters on {context.settings['devices']} devices; "
        "tables, notes and heads of commits are in both counts. What a drive writes beyond what it "
        "is given is not in them.",
    )  # fmt: skip
    adam = [row for row in rows if row["kind"] == "adamw"]
    names: list[str | float] = [
        row["moments"] + ("" if row["landed"] == "in memory" else f", {row['landed']} landed")
        for row in adam
    ]
    figure = Figure(
        "endurance", "Bytes written per parameter and step, AdamW", "bars", names, "moments",
        "B per parameter",
        [Series("kernel's count", [row["kernel"] / context.settings["params"] for row in adam]),
         Series("smart-infinity wear", [row["bytes_per_param"] for row in adam],
                kind="predicted")],
    )  # fmt: skip
    return Summary(metrics, [figure], [table])


EXPERIMENT = Experiment(
    id="endurance",
    title="Bytes written per step are those that wear says",
    source="notes, check 22 and section 5.3; Must show 13",
    run=run,
    scales={
        "smoke": {"params": 1 << 21, "devices": 2, "tile": 1 << 18, "steps": 2,
                  "kinds": ["adamw", "adagrad"]},
        "small": {"params": 1 << 24, "devices": 2, "tile": 1 << 18, "steps": 3,
                  "kinds": ["adamw", "adam", "adagrad", "sgd"]},
    },
    minutes={"smoke": 0.3, "small": 2},
    gigabytes={"small": 0.5},
)  # fmt: skip
