"""Figure 16: link bytes and step time by compression ratio, each against our own dense flow.

Compression shortens a step only where the gradients' way down is what the step waits for. With
float32 parameters as much comes up as dense gradients take down, and both ways of the link work at
once; so a second setting has 16-bit parameters and half the link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.experiments import _emulation
from smart_infinity.experiments._emulation import AHEAD, OURS, Found, Machine, System, top


@dataclass(frozen=True)
class Case:
    """A link, and the type parameters come up in."""

    name: str
    machine: Machine
    param_dtype: str


CASES = (
    Case("float32 parameters, 50 MB/s", Machine(), "float32"),
    Case("bfloat16 parameters, 25 MB/s", Machine(link=25e6), "bfloat16"),
)


def _measure(context: Context, case: Case, systems: list[System]) -> dict[str, Found]:
    s = context.settings
    return _emulation.measure(
        context, systems, machine=case.machine, params=s["tiles"] * s["tile"],
        devices=s["devices"], tile=s["tile"], rounds=s["rounds"],
        commit_s=_emulation.commit_s(context), again=OURS, param_dtype=case.param_dtype,
    )  # fmt: skip


def run(context: Context) -> Summary:
    """Dense and every ratio by turns, in both settings."""
    ratios = context.settings["ratios"]
    tops = {ratio: top(ratio) for ratio in ratios}
    systems = [AHEAD, OURS, *tops.values()]
    found = {case.name: _measure(context, case, systems) for case in CASES}
    full, half = (found[case.name] for case in CASES)
    least = tops[min(ratios)]
    gain = {
        name: {f"{100 * ratio:g}": _emulation.ratio(one[OURS.name], one[system.name])
               for ratio, system in tops.items()}
        for name, one in found.items()
    }  # fmt: skip
    metrics: dict[str, Any] = {
        "link_bytes_per_param": {
            "float32": [full[one.name].report["link_bytes_per_param"] for one in tops.values()],
            "bfloat16": [half[one.name].report["link_bytes_per_param"] for one in tops.values()],
        },
        "least_link_bytes": {
            "float32": full[least.name].report["link_bytes_per_param"],
            "bfloat16": half[least.name].report["link_bytes_per_param"],
        },
        "link_bytes_off": _emulation.bytes_off(found.values()),
        "dense_over_topk": {
            "float32": gain[CASES[0].name][f"{100 * min(ratios):g}"],
            "bfloat16_half_link": gain[CASES[1].name][f"{100 * min(ratios):g}"],
        },
        "gain": gain,
        "over_said": [one[system.name].over_said for one in found.values() for system in systems],
    }
    noise = stats.noise(full[OURS.name].seconds, full["again"].seconds)
    x: list[str | float] = ["dense, ahead", "dense", *(f"{100 * ratio:g} %" for ratio in ratios)]
    series = []
    for name, one in found.items():
        each = [one[system.name] for system in systems]
        series += [
            Series(
                name, [f.median for f in each], low=[min(f.seconds) for f in each],
                high=[max(f.seconds) for f in each],
            ),
            Series(name, [f.said.total_s for f in each], kind="predicted"),
        ]  # fmt: skip
    figures = [
        Figure(
            "fig16", "Seconds a step by ratio", "lines", x, "entries sent", "s", series,
            "The paper: GPT-2 of 4.0 billion parameters on ten devices 14.9 s an iteration at "
            "10 %, 12.3 at 1 %, flat below 2 %.",
        ),
        Figure(
            "fig16_bytes", "Link bytes per parameter and step by ratio", "bars", x, "entries sent",
            "B per parameter",
            [Series(name, [one[system.name].report["link_bytes_per_param"] for system in systems])
             for name, one in found.items()],
        ),
    ]  # fmt: skip
    table = Table(
        "ratios", "Link bytes and seconds of a step",
        ["setting", "entries sent", "link B/param", "measured", "time model", "dense / this",
         "bound by (model)"],
        [[name, sent, round(one[system.name].report["link_bytes_per_param"], 4),
          round(one[system.name].median, 3), round(one[system.name].said.total_s, 3),
          round(stats.paired_ratio(one[OURS.name].seconds, one[system.name].seconds)["median"], 2),
          one[system.name].said.bound_by]
         for name, one in found.items() for sent, system in zip(x, systems, strict=True)],
    )  # fmt: skip
    notes = [
        "`dense` is our flow, gradients with the step; `dense, ahead` is the paper's, in which "
        "they wait on the media. What compression gains over the latter includes that they do not.",
    ]
    emulated = (
        f"{CASES[0].machine.devices}; the link they share slowed to 50 MB/s each way, in the "
        "second setting to 25 MB/s, by token buckets"
    )
    return Summary(metrics, figures, [table], notes, emulated=emulated, noise=noise)


EXPERIMENT = Experiment(
    id="ratios",
    title="Link bytes and step time by compression ratio",
    source="Smart-Infinity, figure 16",
    run=run,
    scales={
        "smoke": {"tiles": 32, "tile": 1 << 15, "devices": 4, "rounds": 3, "ratios": [0.1, 0.01]},
        "small": {"tiles": 192, "tile": 1 << 15, "devices": 4, "rounds": 7,
                  "ratios": [0.1, 0.05, 0.02, 0.01]},
        "paper": {"tiles": 1536, "tile": 1 << 15, "devices": 4, "rounds": 7,
                  "ratios": [0.1, 0.05, 0.02, 0.01]},
    },
    minutes={"smoke": 0.3, "small": 2.5, "paper": 18},
    gigabytes={"smoke": 0.3, "small": 3, "paper": 20},
)  # fmt: skip
