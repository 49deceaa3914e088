"""One progress bar: on a terminal, and nowhere else."""

import os
import sys
from typing import Any


def bar(
    total: int | None, description: str, *, disable: bool | None = None, initial: int = 0
) -> Any:
    """Make a tqdm bar that is silent in logs, in pipes and on ranks other than 0.

    Args:
        total: Number of steps, or None when unknown.
        description: Words in front of the bar.
        disable: True or False decides; None shows the bar only on a terminal, on rank 0, and when
            `SHORTHAUL_QUIET` is unset.
        initial: Steps already done, for resumed work.

    Returns:
        The bar: a context manager with `update(n)` and `set_postfix(**values)`.
    """
    from tqdm import tqdm

    if disable is None:
        quiet = bool(os.environ.get("SHORTHAUL_QUIET"))
        disable = quiet or os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty()
    return tqdm(total=total, desc=description, disable=disable, initial=initial, leave=False)
