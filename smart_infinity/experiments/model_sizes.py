"""Figures 9 and 10: how much faster a step near the storage is, by number of parameters."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.experiments import _emulation
from smart_infinity.experiments._emulation import AHEAD, ALL, HOST, OURS, TOP, Machine

MACHINE = Machine()
NEAR = (AHEAD, OURS, TOP)


def run(context: Context) -> Summary:
    """All systems at every size."""
    s = context.settings
    commit = _emulation.commit_s(context)
    found = {
        tiles * s["tile"]: _emulation.measure(
            context, ALL, machine=MACHINE, params=tiles * s["tile"], devices=s["devices"],
            tile=s["tile"], rounds=s["rounds"], commit_s=commit,
        )
        for tiles in s["tiles"]
    }  # fmt: skip
    ratios = {
        system.name: [_emulation.ratio(one[HOST.name], one[system.name]) for one in found.values()]
        for system in NEAR
    }
    each = {name: [ratio["median"] for ratio in of] for name, of in ratios.items()}
    metrics: dict[str, Any] = {
        "host_over": {"ahead": each[AHEAD.name], "ours": each[OURS.name], "topk": each[TOP.name]},
        "host_over_ours_least": min(each[OURS.name]),
        "ratios_over_said": [ratio["over_said"] for of in ratios.values() for ratio in of],
        # Over all sizes; 1 where the size changes nothing.
        "spread_over_sizes": {name: max(of) / min(of) for name, of in each.items()},
        "link_bytes_off": _emulation.bytes_off(found.values()),
    }
    sizes: list[str | float] = list(found)
    series = []
    for system in NEAR:
        of = ratios[system.name]
        series += [
            Series(
                system.name, [r["median"] for r in of], low=[r["low"] for r in of],
                high=[r["high"] for r in of],
            ),
            Series(system.name, [r["said"] for r in of], kind="predicted"),
        ]  # fmt: skip
    figure = Figure(
        "fig9", f"Times as fast as the host, {s['devices']} devices", "lines", sizes, "parameters",
        "host / this", series,
        "The paper: whole iterations of GPT-2 with 4.0 to 33 billion parameters on ten devices are "
        "1.60 to 1.66 times as fast with gradients ahead, 1.85 to 1.98 with top-k.", log_x=True,
    )  # fmt: skip
    table = Table(
        "model_sizes", "Seconds a step, and the host's over it",
        ["parameters", "system", "measured", "time model", "host / this", "by the model"],
        [[params, system.name, round(one[system.name].median, 3),
          round(one[system.name].said.total_s, 3),
          round(one[HOST.name].median / one[system.name].median, 2),
          round(one[HOST.name].said.total_s / one[system.name].said.total_s, 2)]
         for params, one in found.items() for system in ALL],
    )  # fmt: skip
    notes = [
        "Parameters are fewer than a thousandth of the paper's, rates about a thirtieth: what "
        "changes with the size is the share of a step that its first and last tile and its commit "
        "take.",
    ]
    return Summary(metrics, [figure], [table], notes, emulated=str(MACHINE))


EXPERIMENT = Experiment(
    id="model_sizes",
    title="Step time near the storage over that on the host, by number of parameters",
    source="Smart-Infinity, figures 9 and 10",
    run=run,
    scales={
        "smoke": {"tiles": [24, 72], "tile": 1 << 15, "devices": 4, "rounds": 3},
        "small": {"tiles": [24, 48, 96, 192, 384, 768], "tile": 1 << 15, "devices": 4,
                  "rounds": 3},
        "paper": {"tiles": [192, 768, 3072], "tile": 1 << 15, "devices": 4, "rounds": 5},
    },
    minutes={"smoke": 0.3, "small": 5, "paper": 14},
    gigabytes={"smoke": 0.3, "small": 5, "paper": 20},
)  # fmt: skip
