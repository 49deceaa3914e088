"""Figure 12: other optimizers; with one array of moments there is less state to keep off the link.

Per parameter and step the host's way moves 32 bytes with two arrays of moments and 24 with one;
near the storage it is 8 with either (notes, section 1.5).
"""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.experiments import _emulation
from smart_infinity.experiments._emulation import AHEAD, ALL, HOST, OURS, TOP, Machine

MACHINE = Machine()
NAMES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD with momentum", "adagrad": "AdaGrad"}
NEAR = (AHEAD, OURS, TOP)


def run(context: Context) -> Summary:
    """All systems with every optimizer."""
    s = context.settings
    commit = _emulation.commit_s(context)
    found = {
        kind: _emulation.measure(
            context, ALL, machine=MACHINE, params=s["tiles"] * s["tile"], devices=s["devices"],
            tile=s["tile"], rounds=s["rounds"], commit_s=commit, optimizer=kind,
        )
        for kind in s["kinds"]
    }  # fmt: skip
    ratios = {
        kind: {system.name: _emulation.ratio(one[HOST.name], one[system.name]) for system in NEAR}
        for kind, one in found.items()
    }
    link = {
        kind: {system.name: one[system.name].report["link_bytes_per_param"] for system in ALL}
        for kind, one in found.items()
    }
    metrics: dict[str, Any] = {
        "host_over": {
            kind: {"ahead": of[AHEAD.name]["median"], "ours": of[OURS.name]["median"],
                   "topk": of[TOP.name]["median"]}
            for kind, of in ratios.items()
        },
        "host_over_ours_least": min(of[OURS.name]["median"] for of in ratios.values()),
        "ratios_over_said": [r["over_said"] for of in ratios.values() for r in of.values()],
        "link_host_over_device": {
            moments: [
                link[kind][HOST.name] / link[kind][OURS.name]
                for kind in found if _emulation.MOMENTS[kind] == count
            ]
            for moments, count in (("two", 2), ("one", 1))
        },
        "link_bytes_off": _emulation.bytes_off(found.values()),
    }  # fmt: skip
    kinds: list[str | float] = [NAMES[kind] for kind in found]
    series = []
    for system in NEAR:
        of = [each[system.name] for each in ratios.values()]
        series += [
            Series(
                system.name, [r["median"] for r in of], low=[r["low"] for r in of],
                high=[r["high"] for r in of],
            ),
            Series(system.name, [r["said"] for r in of], kind="predicted"),
        ]  # fmt: skip
    figure = Figure(
        "fig12", f"Times as fast as the host, {s['devices']} devices", "bars", kinds, "optimizer",
        "host / this", series,
        "The paper, whole iterations on ten devices with top-k: SGD 1.78, AdaGrad 1.80.",
    )  # fmt: skip
    table = Table(
        "optimizers", "Seconds and link bytes a step",
        ["optimizer", "system", "measured", "time model", "host / this", "link B/param",
         "media read", "written"],
        [[NAMES[kind], system.name, round(one[system.name].median, 3),
          round(one[system.name].said.total_s, 3),
          round(one[HOST.name].median / one[system.name].median, 2),
          round(link[kind][system.name], 3),
          round(one[system.name].report["media_bytes_per_param"]["read"], 2),
          round(one[system.name].report["media_bytes_per_param"]["write"], 2)]
         for kind, one in found.items() for system in ALL],
    )  # fmt: skip
    notes = [
        "SGD's momentum is torch's; the paper's kernel has an average of gradients in its place. "
        "Either is one array.",
    ]
    return Summary(metrics, [figure], [table], notes, emulated=str(MACHINE))


EXPERIMENT = Experiment(
    id="optimizers",
    title="Step time with Adam, AdamW, SGD with momentum and AdaGrad",
    source="Smart-Infinity, figure 12; notes, section 1.5",
    run=run,
    scales={
        "smoke": {"tiles": 32, "tile": 1 << 15, "devices": 4, "rounds": 3,
                  "kinds": ["adamw", "adagrad"]},
        "small": {"tiles": 96, "tile": 1 << 15, "devices": 4, "rounds": 5,
                  "kinds": ["adamw", "adam", "sgd", "adagrad"]},
        "paper": {"tiles": 768, "tile": 1 << 15, "devices": 4, "rounds": 7,
                  "kinds": ["adamw", "adam", "sgd", "adagrad"]},
    },
    minutes={"smoke": 0.3, "small": 2, "paper": 12},
    gigabytes={"smoke": 0.2, "small": 1, "paper": 5},
)  # fmt: skip
