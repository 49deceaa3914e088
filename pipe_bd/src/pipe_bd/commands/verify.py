"""``pipe-bd verify``.

Every schedule against the sequential reference, bit by bit and count by count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shorthaul.cli import Common, emit
from shorthaul.errors import Fault, UserError


@dataclass(kw_only=True)
class Verify(Common):
    """Run every schedule and every composition of the devices, and compare students and counts."""

    model: str = "toy-vgg"
    """toy-vgg, toy-gpt, toy-bn, or another known model."""
    world: int = 2
    """Ranks."""
    steps: int = 8
    """Batches."""
    batch: int = 10
    """Rows per batch; 10 makes ragged shards of three."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    dtype: Literal["float32", "float64"] = "float32"
    """Element type; data-parallel forms must agree to 1e-6 or 1e-12."""

    def run(self) -> None:
        """Print a table, write JSON; a schedule that differs is a fault."""
        from pipe_bd.models import build
        from pipe_bd.verify import verify

        if self.world < 1:
            raise UserError(f"--world {self.world}: use 1 or more")
        task = build(
            self.model,
            seed=self.seed,
            batch=self.batch,
            steps=self.steps,
            dtype=self.dtype,
            optimizer=self.optimizer,
        )
        verdicts = verify(task, self.world, self.threads)
        document = {
            "model": self.model,
            "world": self.world,
            "steps": self.steps,
            "batch": self.batch,
            "optimizer": self.optimizer,
            "dtype": self.dtype,
            **{
                kind: {name: v.to_dict() for name, v in table.items()}
                for kind, table in verdicts.items()
            },
        }
        lines = [
            f"{self.model}, {self.world} ranks, {self.steps} steps, {self.optimizer}, {self.dtype}"
        ]
        failed = []
        for table in verdicts.values():
            for name, v in table.items():
                equal = "bitwise equal" if v.bitwise else f"differs by {v.max_abs_diff:.1e}"
                counts = "counts exact" if not v.miscounts else f"counts differ: {v.miscounts}"
                lines.append(f"  {'ok  ' if v.passed else 'FAIL'}  {name:<10} {equal:<22} {counts}")
                failed += [] if v.passed else [name]
        emit(document, self.json, "\n".join(lines))
        if failed:
            raise Fault(f"{self.model}: not equal to the sequential reference: {', '.join(failed)}")
