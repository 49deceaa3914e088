"""Fashion-MNIST end to end: a depthwise-separable student learns block by block, without labels."""

from __future__ import annotations

import time
from collections import Counter

import torch
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from pipe_bd.api import clone, distill
from pipe_bd.blocks import Task
from pipe_bd.models import fashion
from pipe_bd.stitch import block_errors, stitch, teacher_of
from pipe_bd.verify import compare


def _parameters(task: Task, student: bool) -> int:
    model = stitch(task) if student else teacher_of(task)
    return sum(p.numel() for p in model.parameters())


def run(context: Context) -> Summary:
    """Teacher with labels; student without, by dpu on two devices and again sequentially."""
    torch.set_num_threads(1)
    s = context.settings
    data = fashion.load(s["images"], s["test_images"])
    start = time.perf_counter()
    blocks = fashion.train_teacher(
        data,
        width=s["width"],
        epochs=s["teacher_epochs"],
        seed=context.seed,
        folder=context.workdir,
    )
    teacher_s = time.perf_counter() - start
    steps = s["student_epochs"] * (s["images"] // s["batch"])
    task = fashion.build_fashion(
        data, blocks, batch=s["batch"], steps=steps, lr=s["lr"], seed=context.seed
    )
    reference = clone(task)

    def accuracy(model: torch.nn.Module) -> float:
        return fashion.evaluate(model, data.test, data.test_labels)

    teacher, before = accuracy(teacher_of(task)), accuracy(stitch(task))
    context.run.metric(teacher=teacher, before=before, teacher_s=teacher_s)
    reads = Counter(data.train_labels.reads) + Counter(data.test_labels.reads)
    result = distill(task, schedule="dpu", devices=2, seed=context.seed)
    distill(reference, schedule="sequential", seed=context.seed)
    read = Counter(data.train_labels.reads) + Counter(data.test_labels.reads) - reads
    after, sequential = accuracy(stitch(task)), accuracy(stitch(reference))
    errors = {
        b: e["student"] for b, e in block_errors(task, fashion.pixels(data.test[:1000])).items()
    }
    bitwise, _ = compare(reference, task)
    context.run.metric(after=after, sequential=sequential, wall_s=result.wall_s)
    metrics = {
        "teacher_accuracy": teacher,
        "student_before": before,
        "student_after": after,
        "gap_points": teacher - after,
        "labels_read_by_blocks": sum(read.values()),
        "labels_read_by_teacher": data.train_labels.reads["teacher"],
        "accuracy_sequential_minus_dpu": sequential - after,
        "bitwise_equal_to_sequential": bitwise,
        "parameters": {"teacher": _parameters(task, False), "student": _parameters(task, True)},
        "relative_error": errors,
        "steps": steps,
    }
    figures = [
        Figure(
            "accuracy",
            "The student comes close to its teacher without seeing a label",
            "bars",
            ["teacher", "student before", "student after"],
            "model",
            "test accuracy, %",
            [Series("Fashion-MNIST", [teacher, before, after])],
            note=(
                f"{s['images']} training images, {s['teacher_epochs']} teacher and "
                f"{s['student_epochs']} student epochs. The paper's compression half was never "
                "released; it has no value of this to compare with."
            ),
        ),
        Figure(
            "error_per_block",
            "What each student block still gets wrong",
            "bars",
            list(errors),
            "block",
            "MSE / variance of the teacher's output, 1000 test images",
            [Series("student", list(errors.values()))],
        ),
    ]
    rows = [
        ["teacher", round(teacher, 2), metrics["parameters"]["teacher"], "yes"],
        ["student before", round(before, 2), metrics["parameters"]["student"], "no"],
        ["student, dpu on 2 devices", round(after, 2), metrics["parameters"]["student"], "no"],
        ["student, sequential", round(sequential, 2), metrics["parameters"]["student"], "no"],
    ]
    table = Table(
        "accuracy", "Fashion-MNIST", ["model", "test accuracy, %", "parameters", "labels"], rows
    )
    return Summary(metrics, figures, [table])


EXPERIMENT = Experiment(
    id="fashion_mnist",
    title="Fashion-MNIST: blockwise student within 5 points of its teacher, no labels used",
    source="ours; the paper's compression task (section V) on data that Debian carries",
    run=run,
    scales={
        "smoke": {
            "images": 1024,
            "test_images": 500,
            "width": 8,
            "batch": 32,
            "lr": 1e-2,
            "teacher_epochs": 2,
            "student_epochs": 1,
        },
        "small": {
            "images": 12_000,
            "test_images": 10_000,
            "width": 16,
            "batch": 32,
            "lr": 1e-2,
            "teacher_epochs": 3,
            "student_epochs": 3,
        },
        "paper": {
            "images": 60_000,
            "test_images": 10_000,
            "width": 32,
            "batch": 32,
            "lr": 1e-2,
            "teacher_epochs": 10,
            "student_epochs": 10,
        },
    },
    minutes={"smoke": 0.3, "small": 3, "paper": 240},
    needs={"paper": "hours of two CPU cores, or a GPU"},
)
