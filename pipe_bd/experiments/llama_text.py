"""A small Llama trained on Python's documentation, its feed-forward layers halved and distilled."""

from __future__ import annotations

import torch
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from pipe_bd.api import distill
from pipe_bd.export import export_hf, student_model
from pipe_bd.losses import normalised_error
from pipe_bd.models import text
from pipe_bd.stitch import block_errors, stitch


def run(context: Context) -> Summary:
    """Teacher, student as cut out of it, student after distillation; bits per held-out byte."""
    torch.set_num_threads(1)
    s = context.settings
    rows, held = text.byte_rows(s["tokens"])
    held = held[: s["held_rows"]]
    teacher = text.train_teacher(
        rows,
        width=s["width"],
        layers=s["layers"],
        steps=s["teacher_steps"],
        seed=context.seed,
        folder=context.workdir,
    )
    task = text.distillation(teacher, rows, steps=s["steps"], ffn=s["ffn"], seed=context.seed)
    bits = {
        "teacher": text.bits_per_byte(teacher, held),
        "student before": text.bits_per_byte(stitch(task), held),
    }
    before = block_errors(task, held[:64], normalised_error)
    context.run.metric(**{k.replace(" ", "_"): v for k, v in bits.items()})
    distill(task, schedule="dpu", devices=2, seed=context.seed)
    bits["student after"] = text.bits_per_byte(stitch(task), held)
    after = block_errors(task, held[:64], normalised_error)
    # Raises a Fault unless the folder, read back, gives the student's logits bit by bit.
    folder = export_hf(task, context.workdir / "student", overwrite=True)
    size = sum(p.stat().st_size for p in folder.iterdir())
    layers = [p.name for p in task.pairs]
    falls = {n: 1 - after[n]["student"] / before[n]["student"] for n in layers}
    lost = bits["student before"] - bits["teacher"]
    count = {
        "teacher": sum(p.numel() for p in teacher.parameters()),
        "student": sum(p.numel() for p in student_model(task).parameters()),
    }
    named = {k.replace(" ", "_"): v for k, v in bits.items()}
    metrics = {
        "bits_per_byte": named,
        "recovered": (bits["student before"] - bits["student after"]) / lost,
        "over_teacher": bits["student after"] / bits["teacher"],
        "least_fall": min(falls.values()),
        "fall": falls,
        "parameters": count,
        "exported_bytes": size,
    }
    context.run.metric(**named)
    figures = [
        Figure(
            "bits_per_byte",
            "Distillation gives back what halving the feed-forward layers took",
            "bars",
            list(bits),
            "model",
            "bits per held-out byte",
            [Series("Llama on text", list(bits.values()))],
            note=(
                "Every tenth row of the text is held out. The student before is the teacher with "
                "the weaker half of its feed-forward channels removed."
            ),
        ),
        Figure(
            "error_per_layer",
            "Normalised MSE of each layer on held-out rows",
            "bars",
            list(layers),
            "layer",
            "Σ(student − teacher)² / Σ teacher²",
            [
                Series("before", [before[n]["student"] for n in layers]),
                Series("after", [after[n]["student"] for n in layers]),
            ],
            log_y=True,
        ),
    ]
    table = Table(
        "bits_per_byte",
        "Held-out text",
        ["model", "bits per byte", "parameters"],
        [
            [k, round(v, 4), count["teacher" if k == "teacher" else "student"]]
            for k, v in bits.items()
        ],
    )
    return Summary(metrics, figures, [table])


EXPERIMENT = Experiment(
    id="llama_text",
    title="A Llama's feed-forward layers halved: distillation gives the loss back",
    source="ours; the task of Puzzle's blockwise local distillation (ICML 2025), small",
    run=run,
    scales={
        "smoke": {
            "width": 64,
            "layers": 2,
            "tokens": 64,
            "ffn": 0.5,
            "teacher_steps": 60,
            "steps": 30,
            "held_rows": 64,
        },
        "small": {
            "width": 128,
            "layers": 4,
            "tokens": 96,
            "ffn": 0.5,
            "teacher_steps": 1000,
            "steps": 300,
            "held_rows": 200,
        },
        "paper": {
            "width": 512,
            "layers": 12,
            "tokens": 256,
            "ffn": 0.5,
            "teacher_steps": 10_000,
            "steps": 2000,
            "held_rows": 200,
        },
    },
    minutes={"smoke": 0.3, "small": 4, "paper": 600},
    needs={"paper": "a GPU, or a day of two CPU cores"},
)
