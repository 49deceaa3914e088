"""Training language models on text, with the optimizer's state on devices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from shorthaul.errors import UserError
from shorthaul.progress import bar

from smart_infinity import corpora, models
from smart_infinity.compress import TopK
from smart_infinity.models import ModelConfig
from smart_infinity.optimizer import SmartOptimizer


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        steps: Optimizer steps in all, those before a resume included.
        warmup: Steps the learning rate rises for; it falls as a cosine to a tenth after.
        accumulate: Batches a step.
        max_norm: Gradients are clipped to it; 0 is not at all.
        evaluate: Steps between evaluations on the last 2 % of the text; 0 is at the end only.
    """

    steps: int = 200
    batch: int = 8
    accumulate: int = 1
    lr: float = 3e-4
    weight_decay: float = 0.01
    warmup: int = 20
    max_norm: float = 1.0
    evaluate: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} = {getattr(self, name)}: use 1 or more")
        for name in ("lr", "weight_decay", "warmup", "max_norm", "evaluate"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} = {getattr(self, name)}: use 0 or more")

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class StateConfig:
    """How the optimizer's state is kept."""

    optimizer: str = "adamw"
    moments: str = "float32"
    tile: int = 1 << 18
    offload: str = "step"
    compress: str = "none"
    values: str = "float32"
    error_feedback: bool = True
    dense_steps: int = 0


@dataclass(frozen=True)
class Config:
    """A training run, as a TOML preset gives it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    state: StateConfig = field(default_factory=StateConfig)
    tokens: str = "bytes"


@dataclass
class Data:
    """A text, tokenized."""

    train: corpora.Batches
    held_out: corpora.Batches
    vocabulary: int
    digest: str


def data(config: Config, source: str, seed: int) -> Data:
    """Read and tokenize a text; its last fiftieth is held out."""
    text = corpora.load(source)
    tokenizer = corpora.Tokenizer(config.tokens, text)
    tokens = tokenizer.encode(text)
    cut = len(tokens) - max(len(tokens) // 50, config.model.context + 2)
    context, batch = config.model.context, config.train.batch
    return Data(
        corpora.Batches(tokens[:cut], context, batch, seed),
        corpora.Batches(tokens[cut:], context, batch, seed + 1),
        tokenizer.vocabulary,
        corpora.digest(text),
    )


def optimizer_for(
    model: torch.nn.Module, config: Config, devices: Sequence[str | Path], **options: Any
) -> SmartOptimizer:
    """Make the optimizer of a run; an existing state in the devices' folders is resumed."""
    s, t = config.state, config.train
    compress = None
    if s.compress != "none":
        kind, _, ratio = s.compress.partition(":")
        if kind != "topk":
            raise UserError(f"state.compress = {s.compress!r}: write none or topk:0.01")
        try:
            compress = TopK(float(ratio), s.values, s.error_feedback, s.dense_steps)
        except ValueError:
            raise UserError(f"state.compress = {s.compress!r}: write topk:0.01") from None
    more: dict[str, Any] = {"weight_decay": t.weight_decay}
    if s.optimizer == "sgd":
        more["momentum"] = 0.9
    return SmartOptimizer(
        model.named_parameters(), devices=devices, optimizer=s.optimizer, lr=t.lr,
        moments=s.moments, tile=s.tile, offload=s.offload, compress=compress,
        max_norm=t.max_norm or None, accumulation_steps=t.accumulate, **more, **options,
    )  # fmt: skip


def evaluate(model: Any, config: Config, held_out: corpora.Batches, batches: int = 8) -> float:
    """Give the loss on held-out text, in nats a token; the same batches every time."""
    model.eval()
    with torch.no_grad():
        found = [
            float(models.loss(model, config.model, torch.from_numpy(held_out[i]), i))
            for i in range(batches)
        ]
    model.train()
    return sum(found) / len(found)


OnStep = Callable[[int, dict[str, float]], None]


def train(
    model: Any,
    optimizer: Any,
    config: Config,
    text: Data,
    *,
    seed: int = 0,
    start: int = 0,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Train from step `start`; everything random depends on seed and step alone."""
    t = config.train
    losses: list[float] = []
    held_out: dict[int, float] = {}
    phases: list[dict[str, float]] = []
    begin = time.perf_counter()
    with bar(t.steps, "training", initial=start) as progress:
        for step in range(start, t.steps):
            for group in optimizer.param_groups:
                group["lr"] = t.rate(step)
            optimizer.zero_grad()
            torch.manual_seed((seed * 1_000_003 + step) % 2**31)  # dropout
            total = 0.0
            for part in range(t.accumulate):
                number = step * t.accumulate + part
                windows = torch.from_numpy(text.train[number])
                loss = models.loss(model, config.model, windows, number) / t.accumulate
                loss.backward()
                total += float(loss)
            optimizer.step()
            losses.append(total)
            phases.append(dict(getattr(optimizer, "phases", {})))
            said = {"loss": total, "lr": t.rate(step)}
            if (t.evaluate and (step + 1) % t.evaluate == 0) or step + 1 == t.steps:
                held_out[step + 1] = said["held_out"] = evaluate(model, config, text.held_out)
            if on_step is not None:
                on_step(step + 1, said)
            progress.set_postfix(loss=f"{total:.4f}")
            progress.update(1)
    seconds = time.perf_counter() - begin
    tokens = (t.steps - start) * t.accumulate * t.batch * config.model.context
    return {
        "start": start,
        "steps": t.steps,
        "losses": losses,
        "held_out": held_out,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "optimizer_s": sum(p.get("total_s", 0.0) for p in phases),
    }
