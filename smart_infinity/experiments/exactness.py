"""Every optimizer against torch's fused kernels: numbers that differ in any bit."""

from __future__ import annotations

import shutil
from typing import Any

from shorthaul.experiments import Context, Experiment, Summary, Table


def run(context: Context) -> Summary:
    """Cases × ways to compute them in lockstep with torch; then torch's other tools."""
    from smart_infinity import against_torch as beside

    s = context.settings
    every = [beside.Setup(*setup) for setup in s["setups"]]
    lacks = {level: beside.lack(level) for level in dict.fromkeys(setup.level for setup in every)}
    notes = [f"{level} was not compared: {why}" for level, why in lacks.items() if why]
    setups = [setup for setup in every if not lacks[setup.level]]
    names = list(beside.CASES) if s["cases"] == "all" else s["cases"]
    rows: list[list[Any]] = []
    by_case: dict[str, int] = {}
    # What was not compared is None: 0 would say that it was, and is equal.
    by_level: dict[str, int | None] = dict.fromkeys(beside.LEVELS)
    compared = 0
    for name in names:
        folder = context.workdir / name
        shutil.rmtree(folder, ignore_errors=True)
        case = beside.CASES[name]
        found = beside.compare(case, setups, s["sizes"], s["steps"], folder, context.seed)
        shutil.rmtree(folder)
        for setup, one in zip(setups, found, strict=True):
            by_case[name] = by_case.get(name, 0) + one.differing
            by_level[setup.level] = (by_level[setup.level] or 0) + one.differing
            compared += one.compared
            rows.append([
                name, setup.level, setup.devices, setup.tile, one.compared, one.parameters,
                one.moments, "; ".join(one.other),
            ])  # fmt: skip
        context.run.metric(case=name, differing=by_case[name])
    tools: dict[str, int] = {}
    for number, name in enumerate((*beside.TOOLS, "bfloat16 with float32 masters")):
        folder = context.workdir / f"tool-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        if name in beside.TOOLS:
            one = beside.tool(name, s["tool_devices"], s["tool_steps"], folder, context.seed)
        else:
            one = beside.masters(s["tool_devices"], s["tool_steps"], folder, context.seed)
        tools[name] = one.differing
        compared += one.compared
        rows.append([
            name, "the best there is", s["tool_devices"], 1024, one.compared, one.parameters,
            one.moments, "; ".join(one.other),
        ])  # fmt: skip
        context.run.metric(tool=name, differing=one.differing)
    metrics = {
        "differing": sum(by_case.values()),
        "differing_tools": sum(tools.values()),
        "compared": compared,
        "comparisons": len(rows),
        "steps": s["steps"],
        "levels": sorted({setup.level for setup in setups}),
        "by_case": by_case,
        "by_level": by_level,
        "at_every_level": sum(found for found in by_level.values() if found is not None),
        "by_tool": tools,
    }
    columns = ["case", "level", "devices", "tile", "numbers compared", "parameters that differ",
               "moments that differ", "else"]  # fmt: skip
    note = (
        f"Tensors of {', '.join(f'{n:,}' for n in s['sizes'])}; two groups, a cosine schedule. "
        f"Parameters are compared after each of {s['steps']} steps, moments after the last; tools "
        f"train a small net for {s['tool_steps']} steps, and losses are compared as well."
    )
    table = Table("exactness", "Bits against torch's fused kernels", columns, rows, note)
    return Summary(metrics, tables=[table], notes=notes)


SIZES = [1, 7, 8, 9, 1023, 4096]

EXPERIMENT = Experiment(
    id="exactness",
    title="Parameters and moments are those of torch's fused kernels, bit for bit",
    source="Smart-Infinity, SmartUpdate; notes, checks 1, 2 and 12; Must show 1",
    run=run,
    scales={
        "smoke": {
            "cases": ["adamw", "adam", "adagrad", "sgd-momentum"], "sizes": SIZES, "steps": 10,
            "setups": [["avx512", 2, 1024], ["avx2", 1, 1024], ["generic", 3, 2048],
                       ["opencl", 2, 4096]],
            "tool_devices": 2, "tool_steps": 6,
        },
        "small": {
            "cases": "all", "sizes": [*SIZES, (1 << 20) + 3], "steps": 100,
            "setups": [["avx512", 3, 1 << 15], ["avx2", 1, 1 << 18], ["generic", 2, 1 << 16],
                       ["opencl", 2, 1 << 17], ["avx2", 4, 1 << 14]],
            "tool_devices": 3, "tool_steps": 20,
        },
    },
    minutes={"smoke": 0.3, "small": 8},
)  # fmt: skip
