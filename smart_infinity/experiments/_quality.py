"""What compressed gradients cost in quality: the runs that the quality experiments compare.

Every run is a process of its own with one thread; several run at a time, which changes no number.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Variant:
    """How gradients go down.

    Attributes:
        name: In tables and metrics.
        ratio: Share of each tile's entries that is sent; None: all of them.
        feedback: Whether what was not sent is added to the next gradient.
        dense_steps: Steps that are sent whole before.
        momentum: Of what is sent, see `TopK`.
        torch: Whether torch's own optimizer takes the steps.
    """

    name: str
    ratio: float | None = None
    feedback: bool = True
    dense_steps: int = 0
    momentum: float = 0.0
    torch: bool = False


FEEDBACK, MOMENTUM, COLD = " + feedback", " + feedback + momentum", ", no warm-up"
DENSE = (Variant("torch, dense", torch=True), Variant("dense"))


def percent(ratio: float) -> str:
    """Give a share as the variants' names have it."""
    return f"{100 * ratio:g} %"


def variants(ratios: Sequence[float], dense_steps: int, cold: Sequence[float]) -> list[Variant]:
    """Give torch, dense, and of each ratio top-k without feedback, with it, and with momentum.

    Of `cold` ratios the first two also without a warm-up.
    """
    found = list(DENSE)
    for ratio in ratios:
        name = f"top {percent(ratio)}"
        found += [
            Variant(name, ratio, feedback=False, dense_steps=dense_steps),
            Variant(name + FEEDBACK, ratio, dense_steps=dense_steps),
            Variant(name + MOMENTUM, ratio, dense_steps=dense_steps, momentum=0.9),
        ]
    for ratio in cold:
        name = f"top {percent(ratio)}"
        found += [
            Variant(name + COLD, ratio, feedback=False),
            Variant(name + FEEDBACK + COLD, ratio),
        ]
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        losses: Of every step.
        quality: The figure that is compared: held-out loss, or accuracy in percent.
        digest: SHA-256 of the trained parameters.
        link_bytes: Sent down in all, headers included; 0 for torch.
        parameters: Of the model.
    """

    losses: list[float]
    quality: float
    digest: str
    link_bytes: int
    parameters: int


def configuration(settings: dict[str, Any], schedule: dict[str, Any]) -> Any:
    """Give a run's configuration; it has one thread."""
    import torch

    from smart_infinity import models, training

    torch.set_num_threads(1)
    return training.Config(
        models.ModelConfig(**settings["model"]), training.TrainConfig(**schedule),
        tokens=settings.get("tokens", "bytes"),
    )  # fmt: skip


def prepared(settings: dict[str, Any], schedule: dict[str, Any], seed: int) -> tuple[Any, Any, Any]:
    """Give a run's configuration, its text and the model to begin with; it has one thread."""
    from smart_infinity import models, training

    config = configuration(settings, schedule)
    text = training.data(config, settings["data"], seed)
    return config, text, models.build(config.model, text.vocabulary, seed)


def train(
    model: Any,
    config: Any,
    variant: Variant,
    folder: Path,
    loop: Callable[[Any], dict[str, Any]],
) -> tuple[dict[str, Any], int]:
    """Train with a variant's optimizer; gives what `loop` gave and the bytes sent down."""
    from smart_infinity import SmartOptimizer, TopK, training

    if variant.torch:
        return loop(training.reference_for(model, config)), 0
    compress = None
    if variant.ratio is not None:
        compress = TopK(
            variant.ratio, error_feedback=variant.feedback, warmup=variant.dense_steps,
            momentum=variant.momentum,
        )  # fmt: skip
    with SmartOptimizer(
        model.named_parameters(), devices=[folder], compress=compress, lr=config.train.lr,
        weight_decay=config.train.weight_decay, max_norm=config.train.max_norm or None,
    ) as optimizer:  # fmt: skip
        result = loop(optimizer)
        (counts,) = optimizer.array.counts()
    sent = counts["link"]["sent"]["gradient"]
    return result, sent["header_bytes"] + sent["payload_bytes"]


def side_by_side(
    work: Callable[..., Any], jobs: Mapping[tuple[str, int], tuple[Any, ...]], processes: int | None
) -> Iterator[tuple[tuple[str, int], Any]]:
    """Run jobs and give each with its outcome, in order.

    `work` gets a job's arguments and a path for what it stores. `processes` is how many run at a
    time: None, as many as there are cores; 1, in this process.
    """
    with tempfile.TemporaryDirectory(prefix="quality-") as folder, contextlib.ExitStack() as stack:
        placed = {
            key: (*arguments, Path(folder) / str(number))
            for number, (key, arguments) in enumerate(jobs.items())
        }
        if processes == 1:
            yield from ((key, work(*arguments)) for key, arguments in placed.items())
            return
        spawn = multiprocessing.get_context("spawn")
        pool = stack.enter_context(
            ProcessPoolExecutor(processes or os.cpu_count(), mp_context=spawn)
        )
        running = {key: pool.submit(work, *arguments) for key, arguments in placed.items()}
        for key, future in running.items():
            yield key, future.result()


def digest(model: Any) -> str:
    """Give what names the parameters' values."""
    import hashlib

    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().numpy().tobytes())
    return found.hexdigest()


def summarised(
    outcomes: Mapping[tuple[str, int], Outcome], seeds: Sequence[int], lower_is_better: bool
) -> tuple[dict[str, Any], list[list[Any]]]:
    """Give metrics and a table's rows: variant, mean, per seed, difference to dense, bytes.

    Of the means over seeds: `..._lost` is against dense gradients, by ratio; `..._is_worse_by` the
    most that feedback loses against the same top-k without, below 0 where it never does.
    """
    names = list(dict.fromkeys(name for name, _ in outcomes))
    mean = {n: fmean(outcomes[n, seed].quality for seed in seeds) for n in names}
    sign = 1 if lower_is_better else -1
    lost = {n: sign * (mean[n] - mean["dense"]) for n in names}
    rows = []
    for name in names:
        runs = [outcomes[name, seed] for seed in seeds]
        sent = fmean(run.link_bytes / run.parameters / len(run.losses) for run in runs)
        rows.append([
            name, round(mean[name], 4), *(round(run.quality, 4) for run in runs),
            round(lost[name], 4), round(sent, 3) if sent else None,
        ])  # fmt: skip
    same = all(
        outcomes["dense", seed].losses == outcomes["torch, dense", seed].losses
        and outcomes["dense", seed].digest == outcomes["torch, dense", seed].digest
        for seed in seeds
    )
    plain = [n for n in names if n + FEEDBACK in mean]
    metrics: dict[str, Any] = {
        "dense_differs_from_torch": int(not same),
        "mean": mean,
        "lost": lost,
    }
    for key, suffix in (("feedback", FEEDBACK), ("momentum", MOMENTUM)):
        worse = [lost[n + suffix] - lost[n] for n in plain]
        metrics[f"{key}_is_worse_by"] = max(worse)
        metrics[f"{key}_lost"] = [lost[n + suffix] for n in plain]
    metrics["dropped_lost"] = [lost[n] for n in plain]
    metrics["warm_up_saves"] = [
        lost[n] - lost[n.removesuffix(COLD)] for n in names if n.endswith(COLD)
    ]
    return metrics, rows
