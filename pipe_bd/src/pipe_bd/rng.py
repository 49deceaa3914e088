"""Randomness keyed by (seed, block, candidate, step), never by process.

A schedule decides *when* and *where* a block takes a step. If dropout, augmentation or path
sampling drew from a process's running stream, the schedule would change the numbers. Here every
draw comes from a generator whose seed is derived from what is computed, so any schedule gives the
same bits (notes, section 1.2, condition 3).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed that depends on every key, in order.

    Args:
        seed: the run's seed.
        *keys: integers or strings, e.g. ``("student", "block3", "narrow", 17)``.
    """
    # The repr of a tuple of strings and integers tells any two tuples apart.
    text = repr((seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def borrowed() -> Iterator[None]:
    """Lend torch's CPU, numpy's and Python's global generators; all are put back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def reseed(seed: int) -> None:
    """Seed torch's CPU, numpy's and Python's global generators."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@dataclass
class Moment:
    """Where a run stands inside the current forward pass; read by modules that sample."""

    seed: int = 0
    block: str = ""
    candidate: str = ""
    step: int = 0


_now = Moment()


def now() -> Moment:
    """The (block, candidate, step) whose forward pass is running."""
    return _now


def step_generator(purpose: str = "path") -> torch.Generator:
    """A CPU generator shared by all members of a group at this (block, candidate, step).

    A supernet samples its path with this one: every row range of the batch must take the same path.
    Dropout draws from torch's default generator instead, which also depends on the row range.
    """
    generator = torch.Generator()
    generator.manual_seed(derive(_now.seed, purpose, _now.block, _now.candidate, _now.step))
    return generator


@contextmanager
def moment(seed: int, block: str, candidate: str, step: int, row: int) -> Iterator[None]:
    """Seed torch's default generators for one forward and backward pass.

    Args:
        seed: the run's seed.
        block: block name.
        candidate: candidate name, "" for the teacher.
        step: global step of this block.
        row: first row of this rank's range; 0 for a whole batch.
    """
    previous = (_now.seed, _now.block, _now.candidate, _now.step)
    _now.seed, _now.block, _now.candidate, _now.step = seed, block, candidate, step
    torch.manual_seed(derive(seed, "dropout", block, candidate, step, row))
    try:
        yield
    finally:
        _now.seed, _now.block, _now.candidate, _now.step = previous
