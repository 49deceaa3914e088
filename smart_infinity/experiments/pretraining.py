"""Pre-training with top-k gradients: what it costs, what feedback and a dense warm-up save.

The paper compresses without feedback and shows fine-tuning only (table IV).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.experiments import _quality as quality
from smart_infinity.experiments._quality import Outcome, Variant


def pretrain(settings: dict[str, Any], variant: Variant, seed: int, folder: Path) -> Outcome:
    """Train a small GPT-2 on bytes of text, and give its loss on what was held out."""
    from smart_infinity import training

    config, text, model = quality.prepared(settings, settings["train"], seed)

    def loop(optimizer: Any) -> dict[str, Any]:
        return training.train(model, optimizer, config, text, seed=seed)

    found, sent = quality.train(model, config, variant, folder, loop)
    return Outcome(
        found["losses"],
        found["held_out"][config.train.steps],
        quality.digest(model),
        sent,
        sum(p.numel() for p in model.parameters()),
    )


def run(context: Context) -> Summary:
    """Variants × seeds, each a run from the same beginning over the same batches."""
    s = context.settings
    seeds = [context.seed + i for i in range(s["seeds"])]
    found = quality.variants(s["ratios"], s["dense_steps"], s["cold"])
    jobs = {(v.name, seed): (s, v, seed) for v in found for seed in seeds}
    outcomes: dict[tuple[str, int], Outcome] = {}
    for (name, seed), outcome in quality.side_by_side(pretrain, jobs, s["processes"]):
        outcomes[name, seed] = outcome
        context.run.metric(variant=name, seed=seed, held_out=outcome.quality, losses=outcome.losses)
    metrics, rows = quality.summarised(outcomes, seeds, lower_is_better=True)
    metrics |= {"dense_steps": s["dense_steps"], "steps": s["train"]["steps"]}
    columns = ["gradients", "held-out loss", *(f"seed {seed}" for seed in seeds),
               "lost to dense", "bytes down a parameter and step"]  # fmt: skip
    note = (
        f"{s['train']['steps']} steps of a GPT-2 of {outcomes['dense', seeds[0]].parameters:,} "
        f"parameters on {s['data']}, in nats a byte. Where there is a warm-up, the first "
        f"{s['dense_steps']} steps are dense. Dense and torch's fused AdamW are compared in every "
        "step's loss and in every parameter's bits."
    )
    table = Table("pretraining", "Pre-training with compressed gradients", columns, rows, note)
    lost = metrics["lost"]
    shares: list[str | float] = [100 * ratio for ratio in s["ratios"]]
    lines = [
        Series(label, [lost[f"top {quality.percent(r)}{suffix}"] for r in s["ratios"]])
        for label, suffix in (
            ("dropped, as the paper", ""),
            ("fed back", quality.FEEDBACK),
            ("fed back, momentum corrected", quality.MOMENTUM),
        )
    ]
    figure = Figure(
        "pretraining", "Loss given away to dense gradients", "lines", shares, "entries sent, %",
        "held-out loss above dense, nats a byte", lines, log_x=True,
    )  # fmt: skip
    return Summary(metrics, tables=[table], figures=[figure])


MODEL = {"family": "gpt2", "layers": 2, "width": 128, "heads": 4, "context": 128}
TRAIN = {"steps": 200, "batch": 8, "lr": 1e-3, "warmup": 20}
SMALL: dict[str, Any] = {
    "model": MODEL, "train": TRAIN, "data": "kjv", "seeds": 3, "processes": None, "dense_steps": 50,
    "ratios": [0.1, 0.05, 0.02, 0.01], "cold": [0.1, 0.01],
}  # fmt: skip

EXPERIMENT = Experiment(
    id="pretraining",
    title="Pre-training with top-k gradients: what they lose, what feedback and a warm-up save",
    source="Smart-Infinity, table IV; notes, checks 14 and section 6; Must show 9",
    run=run,
    scales={
        "smoke": SMALL | {
            "model": MODEL | {"layers": 1, "width": 32, "heads": 2, "context": 32},
            "train": TRAIN | {"steps": 12, "warmup": 2}, "data": "python-topics", "seeds": 1,
            "processes": 1, "dense_steps": 4, "ratios": [0.1], "cold": [0.1],
        },
        "small": SMALL,
        "paper": SMALL | {
            "model": MODEL | {"layers": 6, "width": 384, "heads": 6, "context": 256},
            "train": TRAIN | {"steps": 2000, "batch": 32, "warmup": 100}, "dense_steps": 200,
        },
    },
    minutes={"smoke": 0.5, "small": 8, "paper": 600},
)  # fmt: skip
