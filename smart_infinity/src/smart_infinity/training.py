"""Training language models on text, with the optimizer's state on devices."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from shorthaul import logs
from shorthaul.errors import UserError
from shorthaul.progress import bar

from smart_infinity import corpora, kinds, models
from smart_infinity.compress import TopK
from smart_infinity.models import ModelConfig
from smart_infinity.optimizer import SmartOptimizer

_log = logs.get(__name__)
_TELL_S = 10.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        steps: Optimizer steps in all, those before a resume included.
        decay: Steps in which the learning rate has risen and fallen; 0: `steps`. Set, it makes a
            run that is stopped early and resumed the same as one that was not.
        warmup: Steps the learning rate rises for; it falls as a cosine to a tenth after.
        accumulate: Batches a step.
        max_norm: Gradients are clipped to it; 0 is not at all.
        evaluate: Steps between evaluations on the last 2 % of the text; 0 is at the end only.
    """

    steps: int = 200
    decay: int = 0
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
        for name in ("decay", "lr", "weight_decay", "warmup", "max_norm", "evaluate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"train.{name} = {getattr(self, name)}: use 0 or more")

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, (self.decay or self.steps) - self.warmup)
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class StateConfig:
    """How the optimizer's state is kept."""

    optimizer: str = "adamw"
    moments: str = "float32"
    tile: int = 1 << 18
    offload: str = "step"
    speculate: bool = False
    compress: str = "none"
    values: str = "float32"
    error_feedback: bool = True
    dense_steps: int = 100


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
    tokenizer: corpora.Tokenizer
    digest: str

    @property
    def vocabulary(self) -> int:
        """Tokens are below it."""
        return self.tokenizer.vocabulary


def data(config: Config, source: str, seed: int) -> Data:
    """Read and tokenize a text; its last fiftieth is held out.

    Raises:
        UserError: No such text, or too short a one for windows of the model's context.
        EnvironmentLack: The package that carries it is not installed.
    """
    text = corpora.load(source)
    tokenizer = corpora.Tokenizer(config.tokens, text)
    tokens = tokenizer.encode(text)
    context, batch = config.model.context, config.train.batch
    window = context + 2
    if len(tokens) < 2 * window:
        raise UserError(
            f"--data {source}: {len(tokens):,} tokens; model.context = {context} needs "
            f"{2 * window:,} or more to train on some and hold out others"
        )
    cut = len(tokens) - max(len(tokens) // 50, window)
    return Data(
        corpora.Batches(tokens[:cut], context, batch, seed),
        corpora.Batches(tokens[cut:], context, batch, seed + 1),
        tokenizer,
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
    return SmartOptimizer(
        model.named_parameters(), devices=devices, optimizer=s.optimizer, moments=s.moments,
        tile=s.tile, offload=s.offload, compress=compress, max_norm=t.max_norm or None,
        speculate=s.speculate, accumulation_steps=t.accumulate, **_hyperparameters(config),
        **options,
    )  # fmt: skip


def reference_for(model: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    """Make torch's own optimizer of a run: the reference that ours equals to the bit."""
    classes: dict[str, Any] = {
        "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad,
        "sgd": torch.optim.SGD,
    }  # fmt: skip
    name = kinds.optimizer(config.state.optimizer).name
    made: torch.optim.Optimizer = classes[name](
        model.parameters(), fused=True, **_hyperparameters(config)
    )
    return made


def _hyperparameters(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"lr": config.train.lr, "weight_decay": config.train.weight_decay}
    if config.state.optimizer == "sgd":
        found["momentum"] = 0.9
    return found


# ---------------------------------------------------------------------- going on


def take_up(
    optimizer: SmartOptimizer, config: Config, text: Data, seed: int, *, ended: bool = False
) -> int:
    """Give the step to begin with, and see to it that the state remembers what run it is of.

    Of another model, or other tokens, it cannot go on; of another text, seed or schedule it can,
    but not as one run would have gone on, which is said. With `ended`, one whose last step is done
    is taken up as well.

    Raises:
        UserError: The state is of another model or other tokens, or its steps are done.
    """
    now: dict[str, Any] = {
        **{f"model.{key}": value for key, value in dataclasses.asdict(config.model).items()},
        **{f"train.{key}": value for key, value in dataclasses.asdict(config.train).items()},
        "train.decay": config.train.decay or config.train.steps,
        "tokens": text.tokenizer.digest,
        "text": text.digest,
        "seed": seed,
    }
    for passing in ("train.steps", "train.evaluate", "model.path"):
        del now[passing]
    start, where = optimizer.array.step, optimizer.array.devices[0].address
    before = optimizer.extra.get("run", {}) if start else {}
    other = [key for key, value in now.items() if key in before and before[key] != value]
    for key in other:
        if key == "tokens":
            raise UserError(
                f"{where} was trained on other tokens than these: give the text and tokens it "
                "began with, tokens = 'file:PATH' of the tokenizer.json it was exported with, or a "
                "new --storage"
            )
        if key.startswith("model.") and key != "model.dropout":
            raise UserError(
                f"{where} is of another model: {key} = {before[key]!r}, not {now[key]!r}; give the "
                "--config it was made with, or a new --storage"
            )
    if start > config.train.steps or (start == config.train.steps and not ended):
        raise UserError(
            f"{where} is at step {start} already: give more --steps, or a new --storage"
        )
    if start == config.train.steps:
        return start
    if other:
        changed = ", ".join(f"{key} {_short(before[key])} → {_short(now[key])}" for key in other)
        _log.warning("goes on from step %d, but not as it began: %s", start, changed)
    if start and config.state.compress != "none" and config.state.error_feedback:
        _log.warning("what top-k had left to send at step %d is lost", start)
    optimizer.extra["run"] = now
    return start


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 13 else str(value)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C end a run between two steps: it sets the event; a second one ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(signum: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)
        _log.info("ends after this step; Ctrl-C again ends at once")

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- the loop


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
    """Train from step `start`; everything random depends on seed and step alone.

    `optimizer` is what `optimizer_for` or `reference_for` gave. `on_step` is called with the number
    of steps done and what there is to say of the last one. Ctrl-C ends it after a step; `steps` of
    the result says after which.
    """
    t = config.train
    losses: list[float] = []
    held_out: dict[int, float] = {}
    optimizer_s = 0.0
    clips = hasattr(optimizer, "max_norm") or not t.max_norm  # torch's own leaves it to us
    begin = told = time.perf_counter()
    with interruptible() as asked, bar(t.steps, "training", initial=start) as progress:
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
                total += float(loss.detach())
            if not clips:
                torch.nn.utils.clip_grad_norm_(model.parameters(), t.max_norm)
            stepping = time.perf_counter()
            optimizer.step()
            losses.append(total)
            said = {"loss": total, "lr": t.rate(step)}
            said["optimizer_s"] = time.perf_counter() - stepping
            optimizer_s += said["optimizer_s"]
            last = step + 1 == t.steps or asked.is_set()
            if last or (t.evaluate and (step + 1) % t.evaluate == 0):
                held_out[step + 1] = said["held_out"] = evaluate(model, config, text.held_out)
            if on_step is not None:
                on_step(step + 1, said)
            progress.set_postfix(loss=f"{total:.4f}")
            progress.update(1)
            if progress.disable and time.perf_counter() - told > _TELL_S:  # no terminal: a log
                told = time.perf_counter()
                _log.info("step %d of %d, loss %.4f", step + 1, t.steps, total)
            if last:
                break
    seconds = time.perf_counter() - begin
    tokens = len(losses) * t.accumulate * t.batch * config.model.context
    return {
        "start": start,
        "steps": start + len(losses),
        "losses": losses,
        "held_out": held_out,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "optimizer_s": optimizer_s,
    }
