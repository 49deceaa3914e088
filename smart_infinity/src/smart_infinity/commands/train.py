"""``smart-infinity train``: train a language model on text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shorthaul.cli import Common, emit
from shorthaul.errors import EnvironmentLack, UserError


@dataclass(kw_only=True)
class Train(Common):
    """Train a GPT-2 or BERT, its optimizer state on devices; run it again and it goes on."""

    storage: list[str]
    """Folders, one a device; or unix:PATH, tcp:HOST:PORT of devices that are served."""
    config: Path | None = None
    """Preset (TOML): a file, or the name of one that comes along, such as gpt2-small.toml."""
    data: str = "gcide"
    """gcide, kjv, python-doc (Debian packages), or a file or folder of text."""
    steps: int | None = None
    """Steps in all, instead of the preset's."""
    export: Path | None = None
    """Folder for the trained model, in Hugging Face's form."""
    tensorboard: Path | None = None
    """Folder for TensorBoard."""

    def run(self) -> None:
        """Train and say how it went."""
        from shorthaul.cli import load_preset

        from smart_infinity import models, training
        from smart_infinity.paths import resource

        preset = self.config
        if preset is not None and not preset.exists() and preset.name == str(preset):
            try:
                preset = resource(f"configs/{preset.name}")
            except FileNotFoundError:
                known = sorted(p.name for p in resource("configs").glob("*.toml"))
                raise UserError(
                    f"--config {self.config}: no such file; those that come along: "
                    f"{', '.join(known)}"
                ) from None
        config = load_preset(training.Config, preset, {"train.steps": self.steps})
        if self.export is not None and self.export.exists() and any(self.export.iterdir()):
            raise UserError(f"--export {self.export} is not empty")
        writer = self._writer()
        text = training.data(config, self.data, self.seed)
        model = models.build(config.model, text.vocabulary, self.seed)
        count = sum(p.numel() for p in model.parameters())
        with training.optimizer_for(model, config, self.storage) as optimizer:
            start = optimizer.array.step
            if start >= config.train.steps:
                raise UserError(
                    f"{self.storage[0]} is at step {start} already: give more --steps, or a new "
                    "--storage"
                )

            def on_step(step: int, said: dict[str, float]) -> None:
                if writer is not None:
                    for name, value in said.items():
                        writer.add_scalar(name, value, step)

            found = training.train(
                model, optimizer, config, text, seed=self.seed, start=start, on_step=on_step
            )
            optimizer.flush()
            counts = optimizer.array.counts()
        if writer is not None:
            writer.close()
        if self.export is not None:
            model.save_pretrained(self.export)
        result = {
            **found, "parameters": count, "data": self.data, "text_sha256": text.digest,
            "config": config, "devices": counts,
        }  # fmt: skip
        emit(result, self.json, _text(result, self.storage))

    def _writer(self) -> Any:
        if self.tensorboard is None:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EnvironmentLack("--tensorboard: pip install tensorboard") from error
        return SummaryWriter(str(self.tensorboard))


def _text(result: dict[str, Any], storage: list[str]) -> str:
    last = max(result["held_out"], default=0)
    held_out = f", held out {result['held_out'][last]:.4f}" if last else ""
    resumed = f" from step {result['start']}" if result["start"] else ""
    return (
        f"{result['parameters']:,} parameters, {result['steps']} steps{resumed}: loss "
        f"{result['losses'][-1]:.4f}{held_out} nats a token\n"
        f"{result['seconds']:.1f} s, {result['optimizer_s']:.1f} s of them in the optimizer, "
        f"{result['tokens_per_s']:.0f} tokens/s\n"
        f"state in {', '.join(storage)}"
    )
