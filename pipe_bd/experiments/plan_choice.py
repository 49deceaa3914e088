"""Does AHD choose well? Every plan of two devices is run.

And the chosen one compared with the best.
"""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median

from pipe_bd.bench import Entry, bench
from pipe_bd.experiments._shared import CPU_NOTE, OPTIMIZER
from pipe_bd.models import build
from pipe_bd.plan import Plan, all_plans
from pipe_bd.planner import period
from pipe_bd.profile import Profile


def run(context: Context) -> Summary:
    """Profile, plan, then measure all plans interleaved."""
    s = context.settings
    metrics: dict[str, Any] = {}
    figures, tables, noises = [], [], []
    for model, steps in s["models"].items():
        task = build(model, seed=context.seed, steps=steps, optimizer=OPTIMIZER[model])
        plans = {p.shape(): p for p in all_plans(len(task.pairs), 2)}
        entries = [Entry(name, "ahd", plan) for name, plan in plans.items()]
        result = bench(
            task,
            2,
            [Entry("chosen", "ahd"), *entries, Entry("chosen again", "ahd")],
            s["repetitions"],
            trials=s["trials"],
        )
        context.run.metric(model=model, **result.to_dict())
        chosen = Plan.from_dict(result.plans["chosen"]).shape()
        profile = Profile.from_dict(result.profile)
        cpu = {name: median(result.cpu_s[name]) for name in plans}
        predicted = {name: period(profile, plan) for name, plan in plans.items()}
        best = min(cpu, key=lambda name: cpu[name])
        noises.append(result.noise("chosen", "chosen again"))
        metrics[model] = {
            "chosen": chosen,
            "stages": len(plans[chosen].stages),
            "widest_group": max(g.devices for g in plans[chosen].stages),
            "best": best,
            "chosen_over_best": cpu[chosen] / cpu[best],
            "plans_measured": len(plans),
        }
        names = sorted(plans, key=lambda name: cpu[name])
        figures.append(
            Figure(
                f"plans_{model}",
                f"{model}: every plan of two devices; AHD chose {chosen}",
                "bars",
                list(names),
                "plan (blocks x devices per stage)",
                "ms per step, busiest rank",
                [
                    Series("ahd", [cpu[n] * 1e3 for n in names]),
                    Series("planner", [predicted[n] * 1e3 for n in names], kind="predicted"),
                ],
                note=CPU_NOTE,
            )
        )
        rows = [
            [
                n,
                round(cpu[n] * 1e3, 2),
                round(predicted[n] * 1e3, 2),
                "chosen" if n == chosen else "",
            ]
            for n in names
        ]
        columns = ["plan", "CPU ms/step, busiest rank", "planner's prediction, ms", ""]
        tables.append(Table(f"plans_{model}", f"All plans of {model}", columns, rows))
    return Summary(metrics, figures, tables, noise=max(noises, key=lambda n: n["spread"]))


EXPERIMENT = Experiment(
    id="plan_choice",
    title="AHD's plan by model, against all plans",
    source="Pipe-BD, section IV (automatic hybrid distribution) and its table of chosen schedules",
    run=run,
    scales={
        "smoke": {"models": {"vgg6": 3}, "repetitions": 1, "trials": 3},
        "small": {"models": {"vgg6": 12, "gpt12": 8}, "repetitions": 5, "trials": 7},
    },
    minutes={"smoke": 0.5, "small": 7},
)
