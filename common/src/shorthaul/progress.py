"""One progress bar: on a terminal, and nowhere else."""

import os
import sys
from typing import Any


def bar(
    total: int | None, description: str, *, disable: bool | None = None, initial: int = 0
) -> Any:
    """Make a tqdm bar: a context manager with `update(n)` and `set_postfix(**values)`.

    With `disable` None it shows only on a terminal, on rank 0, and unless `SHORTHAUL_QUIET` is set.
    `initial` counts steps done before a resumed run.
    """
    from tqdm import tqdm

    if disable is None:
        quiet = bool(os.environ.get("SHORTHAUL_QUIET"))
        disable = quiet or os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty()
    return tqdm(total=total, desc=description, disable=disable, initial=initial, leave=False)
