"""Tasks by name, for the command line, the experiments and `pipe-bd export`."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from shorthaul.errors import UserError

from pipe_bd.blocks import Task
from pipe_bd.models import toys

DTYPES = {"float32": torch.float32, "float64": torch.float64}

# Real data and their own optimizers; imported when asked for (the last needs transformers).
_REAL = {
    "fashion": ("pipe_bd.models.fashion", "fashion_task"),
    "text": ("pipe_bd.models.text", "text_task"),
}
_FROM_DIRECTORY = {"hf": ("pipe_bd.models.text", "hf_task")}


def names() -> list[str]:
    """Every model that needs no more than its name."""
    return [*toys.TOYS, *_REAL]


def build(
    name: str,
    *,
    seed: int = 0,
    batch: int | None = None,
    steps: int = 8,
    dtype: str = "float32",
    optimizer: str = "sgd",
    **options: Any,
) -> Task:
    """Make a task.

    Args:
        name: one of :func:`names`, or "hf" with a ``directory``.
        seed: of weights and data.
        batch: rows per batch; None takes the model's usual one.
        steps: batches.
        dtype: "float32" or "float64", for the toys.
        optimizer: "sgd" (momentum 0.9) or "adamw", for the toys.
        **options: of the model.

    Raises:
        UserError: an unknown name, type or optimizer.
    """
    made_by = {**_REAL, **(_FROM_DIRECTORY if "directory" in options else {})}
    if name not in toys.TOYS and name not in made_by:
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown model {name!r}: {hint}choose one of {', '.join(names())}")
    if name in made_by:
        module, function = made_by[name]
        task: Task = getattr(import_module(module), function)(
            seed=seed, batch=batch, steps=steps, **options
        )
        return task
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if optimizer not in toys.OPTIMIZERS:
        raise UserError(
            f"unknown optimizer {optimizer!r}: choose one of {', '.join(toys.OPTIMIZERS)}"
        )
    if options:
        raise UserError(f"model {name!r} takes no {', '.join(options)}")
    toy = toys.TOYS[name]
    return toy.build(name, toys.Setting(seed, batch or toy.batch, steps, DTYPES[dtype], optimizer))
