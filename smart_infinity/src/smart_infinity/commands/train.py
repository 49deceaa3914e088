"""``smart-infinity train``: train a language model on text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shorthaul import logs
from shorthaul.cli import Common, emit, nearest
from shorthaul.errors import EnvironmentLack, UserError

_log = logs.get(__name__)


@dataclass(kw_only=True)
class Train(Common):
    """Train a GPT-2 or BERT, its optimizer state on devices; run it again and it goes on."""

    storage: list[str]
    """Folders, one a device; or unix:PATH, tcp:HOST:PORT of devices that are served."""
    config: Path | None = None
    """Preset (TOML): a file, or the name of one that comes along, such as gpt2-small.toml."""
    data: str = "gcide"
    """gcide, kjv, python-doc (Debian packages), python-topics, or a file or folder of text."""
    steps: int | None = None
    """Steps in all; the learning rate falls over the preset's all the same."""
    export: Path | None = None
    """New folder for the trained model and its tokenizer, in Hugging Face's form."""
    tensorboard: Path | None = None
    """Folder for TensorBoard."""
    token_file: Path | None = None
    """File with the token of devices over TCP, or SMART_INFINITY_TOKEN."""

    def run(self) -> None:
        """Train and say how it went."""
        from smart_infinity import corpora, models, training
        from smart_infinity.commands.device import token

        config = self._config()
        for flag, folder in (("--export", self.export), ("--tensorboard", self.tensorboard)):
            if folder is not None and folder.exists() and not folder.is_dir():
                raise UserError(f"{flag} {folder} is a file: name a folder")
        if self.export is not None and self.export.exists() and any(self.export.iterdir()):
            raise UserError(f"--export {self.export} is not empty: name a new folder")
        secret = token(self.token_file)
        self._writer_class()
        text = training.data(config, self.data, self.seed)
        mask = text.tokenizer.mask
        model = models.build(config.model, text.vocabulary, self.seed, mask=mask)
        count = sum(p.numel() for p in model.parameters())
        with training.optimizer_for(model, config, self.storage, token=secret) as optimizer:
            start = training.take_up(
                optimizer, config, text, self.seed, ended=self.export is not None
            )
            writer = None
            if self.tensorboard is not None:
                # Steps after this one, of a run that was killed, are taken again.
                writer = self._writer_class()(str(self.tensorboard), purge_step=start + 1)

            def on_step(step: int, said: dict[str, float]) -> None:
                if writer is not None:
                    for name, value in said.items():
                        writer.add_scalar(name, value, step)

            try:
                found = training.train(
                    model, optimizer, config, text, seed=self.seed, start=start, on_step=on_step
                )
            finally:
                if writer is not None:
                    writer.close()
            optimizer.flush()
            counts = optimizer.array.counts()
        if found["steps"] < config.train.steps:
            _log.warning("stopped after step %d; run again, it goes on from there", found["steps"])
            raise KeyboardInterrupt
        if self.export is not None:
            model.save_pretrained(self.export)
            text.tokenizer.save(self.export)
        result = {
            **found, "parameters": count, "data": self.data, "text_sha256": text.digest,
            "text_version": corpora.version(self.data, text.digest), "seed": self.seed,
            "config": config, "devices": counts,
        }  # fmt: skip
        emit(result, self.json, _text(result, self.storage))

    def _config(self) -> Any:
        from shorthaul.cli import load_preset

        from smart_infinity import training

        config = load_preset(training.Config, self._preset())
        if self.steps is None:
            return config
        decay = config.train.decay or config.train.steps
        train = dataclasses.replace(config.train, steps=self.steps, decay=decay)
        return dataclasses.replace(config, train=train)

    def _preset(self) -> Path | None:
        from smart_infinity.paths import resource

        if self.config is None or self.config.exists():
            return self.config
        known = {path.name: path for path in sorted(resource("configs").glob("*.toml"))}
        name = str(self.config)
        for candidate in (name, f"{name}.toml"):
            if candidate in known:
                return known[candidate]
        raise UserError(f"--config {name}: no such file or preset{nearest(name, known)}")

    def _writer_class(self) -> Any:
        if self.tensorboard is None:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EnvironmentLack("--tensorboard: pip install tensorboard") from error
        return SummaryWriter


def _text(result: dict[str, Any], storage: list[str]) -> str:
    last = max(result["held_out"], default=0)
    held_out = f", held out {result['held_out'][last]:.4f}" if last else ""
    resumed = f" from step {result['start']}" if result["start"] else ""
    kept = f"state in {', '.join(storage)}"
    if not result["losses"]:
        return f"all {result['steps']} steps were taken before\n{kept}"
    return (
        f"{result['parameters']:,} parameters, {result['steps']} steps{resumed}: loss "
        f"{result['losses'][-1]:.4f}{held_out} nats a token\n"
        f"{result['seconds']:.1f} s, {result['optimizer_s']:.1f} s of them in the optimizer, "
        f"{result['tokens_per_s']:.0f} tokens/s\n{kept}"
    )
