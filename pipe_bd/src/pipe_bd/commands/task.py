"""Which model a command works on: flags shared by train, profile, bench and trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shorthaul.errors import UserError

if TYPE_CHECKING:
    from pipe_bd.blocks import Task


@dataclass(kw_only=True)
class ModelFlags:
    """A model by name, or a Hugging Face directory with text to distil on."""

    model: str = "toy-gpt"
    """toy-gpt, toy-vgg, toy-bn, toy-library, gpt12, gpt12-library, vgg6, fashion or text."""
    hf: Path | None = None
    """Directory of a Llama, Qwen or GPT-2 family model instead of --model."""
    text: Path | None = None
    """Text file to distil on, with --hf; Python's documentation when absent."""
    student: str = "ffn=0.5"
    """The student's shape with --hf, e.g. "ffn=0.5,kv_heads=2"."""
    tokens: int = 64
    """Tokens per row, with --hf."""
    steps: int = 20
    """Batches."""
    batch: int | None = None
    """Rows per batch; the model's usual one when absent."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """SGD with momentum, or AdamW, for the toy models."""

    def describe(self, seed: int) -> dict[str, Any]:
        """What :func:`pipe_bd.models.build` needs to make the task again."""
        options: dict[str, Any] = {"seed": seed, "steps": self.steps, "batch": self.batch}
        if self.hf is None and self.model in ("fashion", "text"):
            return {"model": self.model, "options": options}
        if self.hf is None:
            return {"model": self.model, "options": {**options, "optimizer": self.optimizer}}
        text = None if self.text is None else str(self.text.resolve())
        extra = {
            "directory": str(self.hf.resolve()),
            "text": text,
            "student": self.student,
            "tokens": self.tokens,
        }
        return {"model": "hf", "options": {**options, **extra}}

    def build(self, seed: int) -> Task:
        """The task."""
        from pipe_bd import models

        if self.hf is not None and not self.hf.is_dir():
            raise UserError(
                f"--hf {self.hf} is not a directory: give the folder that holds config.json"
            )
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: use 1 or more")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch {self.batch}: use 1 or more")
        if self.tokens < 1:
            raise UserError(f"--tokens {self.tokens}: use 1 or more")
        described = self.describe(seed)
        try:
            return models.build(described["model"], **described["options"])
        except (RuntimeError, MemoryError) as error:
            if self.batch is None:
                raise
            reason = str(error).splitlines()[0][:160]
            raise UserError(f"--batch {self.batch} cannot be made here: {reason}") from error
