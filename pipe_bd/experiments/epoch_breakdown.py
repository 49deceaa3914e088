"""Where each rank's time goes: the paper's epoch break-down."""

from __future__ import annotations

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from pipe_bd.bench import Entry, bench
from pipe_bd.models import build

PARTS = ("data", "teacher", "student", "update", "communication", "idle")
# Pipe-BD's poster, NAS on CIFAR-10, seconds per epoch.
PAPER_DP = {"data": 2.4, "teacher": 7.2, "student": 19.9}
PAPER_IDLE = [0.0, 2.3, 0.9, 4.8]
PAPER_RANKS = [10.0, 10.3, 10.2, 10.5]


def run(context: Context) -> Summary:
    """One interleaved bench; the last repetition's shares per rank."""
    s = context.settings
    task = build(s["model"], seed=context.seed, steps=s["steps"], optimizer="sgd")
    entries = [Entry(name, name) for name in s["schedules"]]
    result = bench(task, 2, entries, s["repetitions"])
    context.run.metric(**result.to_dict())
    columns: dict[str, dict[str, float]] = {}
    for name in s["schedules"]:
        for rank, row in enumerate(result.shares[name]):
            waits = ("recv_wait", "send_wait", "allreduce_wait", "barrier")
            columns[f"{name}, rank {rank}"] = {
                **{k: row[k] for k in ("data", "teacher", "student", "update")},
                "communication": sum(row[w] for w in waits),
                "idle": row["idle"],
            }
    per_step = {c: {k: v / s["steps"] * 1e3 for k, v in row.items()} for c, row in columns.items()}
    dp_teacher = sum(v["teacher"] for c, v in per_step.items() if c.startswith("dp,"))
    dpu_teacher = sum(v["teacher"] for c, v in per_step.items() if c.startswith("dpu,"))
    metrics = {"teacher_dp_over_dpu": dp_teacher / dpu_teacher, "ms_per_step": per_step}
    ours = Figure(
        "breakdown",
        f"{s['model']}: milliseconds per step and rank",
        "stacked",
        list(per_step),
        "schedule and rank",
        "ms per step",
        [Series(part, [row[part] for row in per_step.values()]) for part in PARTS],
        note="communication: waiting for a boundary, a gradient sum or a barrier. "
        "data: read on a thread of its own, beside the rest.",
    )
    paper_x: list[str | float] = ["DP", *(f"Pipe-BD, rank {r}" for r in range(4))]
    busy = [None, *(t - i for t, i in zip(PAPER_RANKS, PAPER_IDLE, strict=True))]
    paper = Figure(
        "breakdown_paper",
        "The paper's: seconds per epoch, NAS on CIFAR-10, 4 GPUs",
        "stacked",
        paper_x,
        "schedule and rank",
        "s per epoch",
        [
            *(Series(k, [v, None, None, None, None], kind="paper") for k, v in PAPER_DP.items()),
            Series("busy", busy, kind="paper"),
            Series("idle", [None, *PAPER_IDLE], kind="paper"),
        ],
        note="Read off the authors' poster; its ranks are not split further.",
    )
    rows = [[c, *(round(row[p], 2) for p in PARTS)] for c, row in per_step.items()]
    table = Table("breakdown", "Milliseconds per step", ["schedule, rank", *PARTS], rows)
    return Summary(metrics, [ours, paper], [table])


EXPERIMENT = Experiment(
    id="epoch_breakdown",
    title="Time per rank: data, teacher, student, update, communication, idle",
    source="Pipe-BD, epoch break-down (poster)",
    run=run,
    scales={
        "smoke": {"model": "vgg6", "schedules": ["dp", "dpu"], "steps": 3, "repetitions": 1},
        "small": {
            "model": "gpt12",
            "schedules": ["dp", "ls", "joint", "tr", "dpu", "ahd"],
            "steps": 8,
            "repetitions": 1,
        },
    },
    minutes={"smoke": 0.3, "small": 1.5},
)
