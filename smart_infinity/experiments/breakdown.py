"""Figure 3: what a step on the host's side is made of, and by how many devices it gets no faster.

Twice: with one tile at a time, where parts follow each other and add up, as they do in DeepSpeed's
swapper (notes, section 4); and with everything at once, by number of devices.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import bench
from smart_infinity.client import DeviceOptions
from smart_infinity.experiments import _emulation, _spans
from smart_infinity.experiments._emulation import HOST, Machine
from smart_infinity.shaper import Bucket

MACHINE = Machine()
PARTS = (
    "gradients down", "gradients written", "state and gradients read", "state and gradients up",
    "update on the host", "state down", "state written", "all else",
)  # fmt: skip
UPDATE = "update on the host"


class _Clocked:
    """Notes the seconds of another object's calls."""

    def __init__(self, inner: Any, method: str) -> None:
        self.spent = 0.0
        self._call = getattr(inner, method)
        setattr(self, method, self._clocked)

    def _clocked(self, *args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return self._call(*args)
        finally:
            self.spent += time.perf_counter() - begin


def _parts(context: Context, machine: Machine | None) -> list[dict[str, float]]:
    """Seconds of each part of each step on one device, one tile at a time; `total` of all."""
    s = context.settings
    serial: dict[str, Any] = {"slots": 1, "window": 1, "trace": True}
    options = DeviceOptions(landing_bytes=0, **serial) if machine is None else machine.options(
        **serial
    )  # fmt: skip
    config = bench.Config(
        params=s["tiles"] * s["tile"], tile=s["tile"], placement="host", options=options,
        link_rate=0.0 if machine is None else machine.link, seed=context.seed,
    )  # fmt: skip
    folder = context.workdir / "serial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found = []
    with bench.Bench(config, [folder]) as one:
        flow: Any = one.flow
        step = flow.steppers[0] = _Clocked(flow.steppers[0], "run")
        link, buckets = one.array.devices[0].link, dict.fromkeys(("down", "up"), 0.0)
        clocked = {}
        if link.shaper is not None:
            for way in buckets:
                bucket: Bucket = getattr(link.shaper, way)
                clocked[way] = _Clocked(bucket, "take")
                setattr(link.shaper, way, clocked[way])
        one.step()
        one.array.counts(trace=True)
        for _ in range(s["rounds"]):
            begun = {way: bucket.spent for way, bucket in clocked.items()}
            stepped = step.spent
            phases = one.step()
            spans = one.array.counts(trace=True)[0]["device"]["trace"]
            up = clocked["up"].spent - begun["up"] if clocked else 0.0
            down = clocked["down"].spent - begun["down"] if clocked else 0.0
            # Gradients and state go down at one rate, by their bytes.
            ahead = 4 / 16 * down
            reads, writes = _spans.of(spans, "read"), _spans.of(spans, *_spans.WRITES)
            parts = {
                "gradients down": ahead,
                "gradients written": max(phases["offload_s"] - ahead, 0.0),
                "state and gradients read": _spans.length(reads),
                "state and gradients up": up,
                UPDATE: step.spent - stepped,
                "state down": down - ahead,
                "state written": _spans.length(writes),
            }
            parts["all else"] = max(phases["total_s"] - sum(parts.values()), 0.0)
            found.append({**parts, "total": phases["total_s"]})
    shutil.rmtree(folder)
    name = "this disk" if machine is None else "slowed"
    for one_step in found:
        context.run.metric(machine=name, **one_step)
    return found


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    return {part: stats.median([step[part] for step in steps]) for part in (*PARTS, "total")}


def run(context: Context) -> Summary:
    """One tile at a time on the slowed machine and on this one, then everything at once."""
    s = context.settings
    slowed, here = _parts(context, MACHINE), _parts(context, None)
    parts = {"slowed": _medians(slowed), "this disk": _medians(here)}
    commit = _emulation.commit_s(context)
    found = {
        devices: _emulation.measure(
            context, [HOST], machine=MACHINE, params=s["tiles"] * s["tile"], devices=devices,
            tile=s["tile"], rounds=s["rounds"], commit_s=commit,
        )[HOST.name]
        for devices in s["devices"]
    }  # fmt: skip
    phases = {
        devices: {
            key: stats.median([phase[key] for phase in one.phases])
            for key in ("offload_s", "update_s", "durable_s")
        }
        for devices, one in found.items()
    }
    fewest, most = min(found), max(found)
    metrics: dict[str, Any] = {
        "parts": {name: dict(each) for name, each in parts.items()},
        "not_computing": {
            name: stats.median([1 - step[UPDATE] / step["total"] for step in steps])
            for name, steps in (("slowed", slowed), ("this_disk", here))
        },
        "speedup": [found[fewest].median / one.median for one in found.values()],
        "speedup_most": found[fewest].median / found[most].median,
        "phases": {str(devices): each for devices, each in phases.items()},
        "over_said": [one.over_said for one in found.values()],
        "link_bytes_off": sum(one.bytes_off for one in found.values()),
    }
    if 4 in found and most > 4:
        metrics["most_over_four"] = found[most].median / found[4].median
    names = list(parts)
    devices: list[str | float] = [str(count) for count in found]
    labels = {"offload_s": "gradients ahead", "update_s": "update", "durable_s": "until durable"}
    figures = [
        Figure(
            "fig3", "Parts of a step on the host, one tile at a time", "stacked", list(names),
            "machine",
            "share of the step",
            [Series(part, [each[part] / each["total"] for each in parts.values()])
             for part in PARTS],
            "One device. The paper: 88 % of the time is storage transfer.",
        ),
        Figure(
            "fig3_devices", "Phases of a step on the host, everything at once", "stacked", devices,
            "devices", "s",
            [Series(label, [each[key] for each in phases.values()])
             for key, label in labels.items()],
            "The paper: no faster beyond four SSDs.",
        ),
    ]  # fmt: skip
    tables = [
        Table(
            "parts", "Seconds of a step on the host, one tile at a time",
            ["part", *names], [[part, *(round(each[part], 4) for each in parts.values())]
                               for part in (*PARTS, "total")],
        ),
        Table(
            "phases", "Seconds of a step on the host, everything at once",
            ["devices", *labels.values(), "step", "time model", "times as fast as with one"],
            [[d, *_emulation.rounded([each[key] for key in labels]), round(found[d].median, 3),
              round(found[d].said.total_s, 3), round(found[fewest].median / found[d].median, 2)]
             for d, each in phases.items()],
        ),
    ]  # fmt: skip
    notes = [
        "Forward and backward pass, which the paper's figure has too, are not run: devices are "
        "stepped without a model.",
    ]
    return Summary(
        metrics, figures, tables, notes,
        emulated=f"{MACHINE} (`this disk`: nothing slowed)",
    )  # fmt: skip


EXPERIMENT = Experiment(
    id="breakdown",
    title="What a step on the host's side is made of",
    source="Smart-Infinity, figure 3",
    run=run,
    scales={
        "smoke": {"tiles": 32, "tile": 1 << 15, "devices": [1, 4], "rounds": 3},
        "small": {"tiles": 96, "tile": 1 << 15, "devices": [1, 2, 3, 4, 6, 8], "rounds": 5},
        "paper": {"tiles": 768, "tile": 1 << 15, "devices": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
                  "rounds": 5},
    },
    minutes={"smoke": 0.3, "small": 2, "paper": 20},
    gigabytes={"smoke": 0.1, "small": 0.5, "paper": 2},
)  # fmt: skip
