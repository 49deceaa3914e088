"""Teachers are trained here once and kept: nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from shorthaul import atomic
from torch import Tensor, nn


def workdir(given: Path | str | None) -> Path:
    """Where trained teachers are kept: the given folder, ``PIPE_BD_CACHE``, or the user's cache."""
    if given is not None:
        return Path(given)
    named = os.environ.get("PIPE_BD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipe_bd"


def cached(
    folder: Path | str | None, name: str, recipe: Mapping[str, Any], make: Callable[[], nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict of a trained teacher, from the cache if it holds a whole one of this recipe.

    Args:
        folder: see :func:`workdir`.
        name: of the model.
        recipe: everything its weights depend on.
        make: trains it.

    Returns:
        The state dict, and the record beside it: recipe and SHA-256 of the weights.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    weights = workdir(folder) / f"{name}-{key}.safetensors"
    note = weights.with_suffix(".json")
    if weights.is_file() and note.is_file():
        record: dict[str, Any] = atomic.read_json(note)
        raw = weights.read_bytes()
        if hashlib.sha256(raw).hexdigest() == record.get("sha256"):
            return safetensors.torch.load(raw), record
        # A damaged copy is not an error: the recipe makes the same teacher again.
    with torch.random.fork_rng(devices=[]):
        state = {k: v.detach().clone().contiguous() for k, v in make().state_dict().items()}
    raw = safetensors.torch.save(state)
    record = {"recipe": dict(recipe), "sha256": hashlib.sha256(raw).hexdigest()}
    atomic.write_bytes(weights, raw)
    atomic.write_json(note, record)
    return state, record


def cosine(step: int, steps: int, warmup: int = 10) -> float:
    """Learning-rate factor: up over ``warmup`` steps, then like a cosine to zero at ``steps``."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(1, steps)))
