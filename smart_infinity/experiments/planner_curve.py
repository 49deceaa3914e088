"""The planner: the paper's device-scaling curve from its constants, and predictions beside steps.

The first part is simulated: arithmetic on the paper's rates. The second measures many small setups
on the slowed machine of `_emulation` and sets what the planner says of each beside it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.compress import TopK
from smart_infinity.experiments import _emulation
from smart_infinity.experiments._emulation import ALL, Machine
from smart_infinity.planner import PAPER, Setup, compare, saturation

GPT2 = 4.0e9  # parameters of the paper's figure 11
# An iteration of the base with six devices or more (figure 9). What the optimizer's part leaves of
# it is taken for forward and backward pass: the one number that is not from rates.
PAPER_ITERATION_S = 23.5
PAPER_OVER_BASE = {"SmartUpdate": 3.63 / 2.25, "SmartUpdate, top 1 %": 4.47 / 2.25}
BASE = "ZeRO-Infinity"
SETUPS = {
    BASE: Setup(GPT2, placement="host", serial=True),
    "SmartUpdate": Setup(GPT2, ahead=True, landed=True, serial=True),
    "SmartUpdate, top 1 %": Setup(GPT2, compress=TopK(0.01), serial=True),
}
DEVICES = list(range(1, 11))


def _paper() -> tuple[dict[str, Any], Figure, Table]:
    curves = compare(SETUPS, PAPER, DEVICES)
    rest = PAPER_ITERATION_S - curves[BASE][-1]
    whole = {name: [second + rest for second in curve] for name, curve in curves.items()}
    speed = {name: [whole[BASE][0] / second for second in curve] for name, curve in whole.items()}
    over_base = {name: speed[name][-1] / speed[BASE][-1] for name in PAPER_OVER_BASE}
    metrics = {
        "saturates_at": {name: saturation(setup, PAPER) for name, setup in SETUPS.items()},
        "base_ten_over_four": curves[BASE][9] / curves[BASE][3],
        # Of the optimizer's part: ten devices over one, of what ten times as many could be.
        "smart_update_scales": curves["SmartUpdate"][0] / curves["SmartUpdate"][9],
        "one_device": curves[BASE][0] / curves["SmartUpdate"][0],
        "forward_and_backward_s": rest,
        "over_base": over_base,
        "over_base_over_paper": [
            over_base[name] / value for name, value in PAPER_OVER_BASE.items()
        ],
        "base_speedup": speed[BASE][-1],
        "optimizer_s": curves,
    }
    figure = Figure(
        "fig11_simulated", "GPT-2, 4.0 billion parameters, at the paper's rates", "lines",
        list(DEVICES), "devices", "times as fast as the base with one",
        [*(Series(name, list(curve), kind="simulated") for name, curve in speed.items()),
         *(Series(name, [None] * 9 + [value], kind="paper")
           for name, value in ((BASE, 2.25), ("SmartUpdate", 3.63),
                               ("SmartUpdate, top 1 %", 4.47)))],
        f"Whole iterations: {rest:.1f} s of forward and backward pass are what the paper's "
        f"{PAPER_ITERATION_S} s leave. The paper's base with one device is faster than its rates "
        "say, so that all of its curve lies lower.",
    )  # fmt: skip
    table = Table(
        "paper", "Ten devices over the base's ten, whole iterations",
        ["system", "simulated", "paper", "simulated / paper"],
        [[name, round(over_base[name], 2), round(value, 2), round(over_base[name] / value, 2)]
         for name, value in PAPER_OVER_BASE.items()],
        "The paper's are read off its figure 11.",
    )  # fmt: skip
    return metrics, figure, table


def _measured(context: Context) -> list[dict[str, Any]]:
    s = context.settings
    commit = _emulation.commit_s(context)
    rows = []
    for link, devices, param_dtype in itertools.product(s["links"], s["devices"], s["types"]):
        machine = replace(Machine(), link=link)
        found = _emulation.measure(
            context, ALL, machine=machine, params=s["tiles"] * s["tile"], devices=devices,
            tile=s["tile"], rounds=s["rounds"], commit_s=commit, param_dtype=param_dtype,
        )  # fmt: skip
        rows += [
            {
                "link": link, "devices": devices, "type": param_dtype, "system": name,
                "seconds": one.median, "said": one.said.total_s, "over_said": one.over_said,
                "bound_by": one.said.bound_by, "bytes_off": one.bytes_off,
            }
            for name, one in found.items()
        ]  # fmt: skip
    return rows


def run(context: Context) -> Summary:
    """The paper's curve, then a grid of small setups."""
    metrics, curve, paper = _paper()
    rows = _measured(context)
    over = [row["over_said"] for row in rows]
    within = sum(abs(value - 1) <= 0.15 for value in over) / len(over)
    found: dict[str, Any] = {
        "paper": metrics,
        "setups": len(rows),
        "over_said": {"median": stats.median(over), "low": min(over), "high": max(over)},
        "worst_over_said": _emulation.worst(over),
        "within_15_percent": within,
        "link_bytes_off": sum(row["bytes_off"] for row in rows),
    }
    numbers: list[str | float] = list(range(1, len(rows) + 1))
    figure = Figure(
        "planner", "Seconds a step, measured and by the planner", "points", numbers,
        "setup (row of the table)", "s",
        [Series("step", [row["seconds"] for row in rows]),
         Series("planner", [row["said"] for row in rows], kind="predicted")],
    )  # fmt: skip
    table = Table(
        "planner", "Seconds a step, measured and by the planner",
        ["setup", "link, MB/s", "devices", "parameters", "system", "measured", "planner",
         "measured / planner", "bound by"],
        [[number, row["link"] / 1e6, row["devices"], row["type"], row["system"],
          round(row["seconds"], 3), round(row["said"], 3), round(row["over_said"], 3),
          row["bound_by"]]
         for number, row in enumerate(rows, 1)],
    )  # fmt: skip
    machine = Machine()
    return Summary(
        found, [curve, figure], [paper, table],
        ["The paper's curve is simulated; only the second figure is measured."],
        emulated=f"{machine.devices}; the link they share slowed by token buckets to the rates in "
        "the table",
    )  # fmt: skip


EXPERIMENT = Experiment(
    id="planner_curve",
    title="The planner at the paper's constants, and beside measured steps",
    source="Smart-Infinity, figure 11; notes, section 1.5",
    run=run,
    scales={
        "smoke": {"tiles": 48, "tile": 1 << 15, "links": [100e6], "devices": [2],
                  "types": ["float32"], "rounds": 3},
        "small": {"tiles": 48, "tile": 1 << 15, "links": [25e6, 50e6, 100e6],
                  "devices": [1, 2, 4], "types": ["float32", "bfloat16"], "rounds": 3},
    },
    minutes={"smoke": 0.2, "small": 5},
    gigabytes={"smoke": 0.2, "small": 0.5},
)  # fmt: skip
