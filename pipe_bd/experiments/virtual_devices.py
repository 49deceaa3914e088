"""TR against DPU over the number of devices, on virtual ones.

Real processes and tensors, sleep for compute.
"""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median

from pipe_bd.bench import Entry, bench
from pipe_bd.models import virtual
from pipe_bd.plan import Plan
from pipe_bd.profile import BlockProfile, LinkProfile, Profile
from pipe_bd.simulator import simulate

MARK = "virtual devices: compute is sleep; processes, tensors and gloo are real"


def equal_blocks(blocks: int, teacher_s: float, student_s: float, kilobytes: int) -> Profile:
    """A profile of equal blocks on free links."""
    rows = tuple(
        BlockProfile(
            name=f"block{i}",
            teacher_s={1: teacher_s},
            student_s={1: student_s},
            allreduce_s={1: 0.0},
            update_s=0.0,
            activation_bytes=kilobytes * 1024,
            memory_bytes={1: 0},
            max_group=1,
        )
        for i in range(blocks)
    )
    return Profile(batch=16, link=LinkProfile(0.0, 1e12), blocks=rows)


def run(context: Context) -> Summary:
    """One process group per number of devices; TR and DPU interleaved in it."""
    s = context.settings
    teacher, student = s["teacher_ms"] / 1e3, s["student_ms"] / 1e3
    stage = teacher + student
    counts = list(s["devices"])
    measured: dict[str, list[float]] = {"tr": [], "dpu": []}
    simulated: dict[str, list[float]] = {"tr": [], "dpu": []}
    spreads = []
    for n in counts:
        profile = equal_blocks(n, teacher, student, s["kilobytes"])
        task = virtual.task(profile, s["steps"] + 2 * n)
        plan = Plan.even(n, n)
        entries = [Entry(name, name, plan) for name in ("tr", "dpu")]
        result = bench(task, n, entries, s["repetitions"], profile=profile, warm_up=False)
        context.run.metric(devices=n, **result.to_dict())
        for name in measured:
            measured[name].append(median(result.period_s[name]))
            simulated[name].append(simulate(profile, name, n, plan=plan, steps=64).period_s)
        spreads.append(max(result.period_s["dpu"]) / min(result.period_s["dpu"]))
    jitter = _jitter(context, stage)
    over = [p / stage for p in measured["dpu"]]
    ratio = [t / d for t, d in zip(measured["tr"], measured["dpu"], strict=True)]
    alpha = teacher / stage
    metrics: dict[str, Any] = {
        "devices": counts,
        "period_ratio": {
            "tr_over_dpu": dict(zip(map(str, counts), ratio, strict=True)),
            "at_most_devices": max(ratio),
        },
        "dpu_over_slowest_stage": {
            "worst": max(over),
            "by_devices": dict(zip(map(str, counts), over, strict=True)),
        },
        "jitter": jitter,
        "simulator_error": {
            "dpu": {
                str(n): abs(sim / real - 1)
                for n, sim, real in zip(counts, simulated["dpu"], measured["dpu"], strict=True)
            }
        },
    }
    figure = Figure(
        "tr_dpu",
        "Period by number of devices: a barrier pays the pipeline's fill on every step",
        "lines",
        list(counts),
        "devices",
        "ms per step",
        [
            *(Series(k, [p * 1e3 for p in v], kind="virtual") for k, v in measured.items()),
            *(Series(k, [p * 1e3 for p in v], kind="simulated") for k, v in simulated.items()),
        ],
        note=f"Teacher {s['teacher_ms']} ms and student {s['student_ms']} ms per block, "
        f"{s['kilobytes']} KB boundaries. {MARK}.",
    )
    rows = [
        [
            n,
            round(measured["tr"][i] * 1e3, 1),
            round(measured["dpu"][i] * 1e3, 1),
            round(ratio[i], 2),
            round(1 + alpha * (n - 1), 2),
            round(over[i], 3),
        ]
        for i, n in enumerate(counts)
    ]
    columns = ["devices", "TR ms", "DPU ms", "TR/DPU", "1 + α(N−1)", "DPU / slowest stage"]
    table = Table("periods", "Virtual devices", columns, rows, MARK)
    notes = [f"Worst spread of DPU's repetitions: {max(spreads):.3f}."]
    return Summary(metrics, [figure], [table], notes, emulated=MARK)


def _jitter(context: Context, stage: float) -> dict[str, Any]:
    """DPU under random block times, by queue depth."""
    s = context.settings
    n = s["jitter_devices"]
    profile = equal_blocks(n, s["teacher_ms"] / 1e3, s["student_ms"] / 1e3, s["kilobytes"])
    task = virtual.task(profile, s["jitter_steps"], jitter=0.3)
    plan = Plan.even(n, n)
    entries = [Entry(f"depth {d}", "dpu", plan, depth=d) for d in (1, 2, 4)]
    result = bench(task, n, entries, 1, profile=profile, warm_up=False)
    periods = {k: median(v) / stage for k, v in result.period_s.items()}
    context.run.metric(jitter=0.3, **result.to_dict())
    return {
        "devices": n,
        "over_mean_slowest_stage": {k.replace("depth ", ""): v for k, v in periods.items()},
        "depth4_over_depth1": periods["depth 4"] / periods["depth 1"],
    }


EXPERIMENT = Experiment(
    id="virtual_devices",
    title="Decoupled updates remove the pipeline fill that a barrier costs on every step",
    source="Pipe-BD, section IV (teacher relaying, decoupled parameter update)",
    run=run,
    scales={
        "smoke": {
            "devices": [2, 4],
            "teacher_ms": 20,
            "student_ms": 40,
            "kilobytes": 256,
            "steps": 12,
            "repetitions": 1,
            "jitter_devices": 4,
            "jitter_steps": 30,
        },
        "small": {
            "devices": [2, 4, 8, 16],
            "teacher_ms": 100,
            "student_ms": 200,
            "kilobytes": 768,
            "steps": 12,
            "repetitions": 3,
            "jitter_devices": 8,
            "jitter_steps": 100,
        },
    },
    minutes={"smoke": 0.5, "small": 11},
    gigabytes={"small": 4},
)
