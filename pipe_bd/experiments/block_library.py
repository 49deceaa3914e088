"""Four candidates per block from one teacher pass, against four separate runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median, noise, paired_ratio

from pipe_bd.api import clone, run_here
from pipe_bd.blocks import Task
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import Plan
from pipe_bd.result import Result
from pipe_bd.runtime.spawn import run_ranks
from pipe_bd.verify import compare


def alone(task: Task, name: str) -> Task:
    """The task with one candidate per block."""
    pairs = [replace(p, students={name: p.candidates[name]}) for p in task.pairs]
    return clone(replace(task, pairs=pairs))


def _worker(task: Task, names: list[str], repetitions: int, ranks: int) -> dict[str, Any]:
    options = Options(
        schedule="dpu", devices=ranks, plan=Plan.even(len(task.pairs), ranks), device="cpu"
    )
    times: dict[str, list[float]] = {"shared": [], "separate": [], "separate again": []}
    calls: dict[str, int] = {}
    same = True
    for repetition in range(repetitions):
        shared = clone(task)
        result = run_here(shared, options)
        times["shared"].append(result.busiest_cpu_s)
        calls["shared"] = _calls(result)
        for label in ("separate", "separate again"):
            total, count = 0.0, 0
            for name in names:
                single = alone(task, name)
                one = run_here(single, options)
                total += one.busiest_cpu_s
                count += _calls(one)
                if repetition == 0:
                    same = same and compare(single, alone(shared, name))[0]
            times[label].append(total)
            calls[label] = count
    return {"times": times, "calls": calls, "same": same}


def _calls(result: Result) -> int:
    return int(sum(result.total("teacher_calls").values()))


def run(context: Context) -> Summary:
    """Shared and separate runs in turn, in one process group."""
    torch.set_num_threads(1)
    s = context.settings
    rows, metrics = [], {}
    names_of_models, gains, noises = [], [], []
    for model, steps in s["models"].items():
        task = build(model, seed=context.seed, steps=steps, optimizer="sgd")
        names = list(task.pairs[0].candidates)
        found = run_ranks(_worker, 2, task, names, s["repetitions"], 2)
        context.run.metric(model=model, **found)
        times, calls = found["times"], found["calls"]
        gain = paired_ratio(times["separate"], times["shared"])
        noises.append(noise(times["separate"], times["separate again"]))
        metrics[model] = {
            "candidates": len(names),
            "bitwise_equal_to_alone": found["same"],
            "teacher_calls_per_step": calls["shared"] / steps,
            "teacher_calls_separate_over_shared": calls["separate"] / calls["shared"],
            "cpu_gain": gain["median"],
        }
        names_of_models.append(model)
        gains.append(gain)
        per = 1e3 / steps
        rows.append(
            [
                model,
                len(names),
                round(median(times["shared"]) * per, 1),
                round(median(times["separate"]) * per, 1),
                round(gain["median"], 3),
                calls["shared"] // steps,
                calls["separate"] // steps,
            ]
        )
    columns = [
        "model",
        "candidates",
        "shared ms/step",
        "separate runs ms/step",
        "gain",
        "teacher calls/step, shared",
        "separate",
    ]
    figure = Figure(
        "library",
        "One teacher pass for all candidates against a run per candidate",
        "bars",
        list(names_of_models),
        "model",
        "CPU time of separate runs / of the shared run",
        [
            Series(
                "block library",
                [g["median"] for g in gains],
                low=[g["low"] for g in gains],
                high=[g["high"] for g in gains],
            )
        ],
        note="Theory for m candidates of equal cost: m(T + S)/(T + mS).",
    )
    table = Table("library", "Block library", columns, rows)
    return Summary(metrics, [figure], [table], noise=max(noises, key=lambda n: n["spread"]))


EXPERIMENT = Experiment(
    id="block_library",
    title="All candidates of a block feed on one teacher pass",
    source="ours; the need is Puzzle's (ICML 2025)",
    run=run,
    scales={
        "smoke": {"models": {"toy-library": 4}, "repetitions": 1},
        "small": {"models": {"gpt12-library": 5}, "repetitions": 5},
    },
    minutes={"smoke": 0.2, "small": 4},
)
