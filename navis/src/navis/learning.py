"""What an index learns from its vectors: when, the quantizer, and the stop rule's margin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from navis import quantizer
from navis.checks import Array, Ids
from navis.quantizer import Floats

# The quantizer is trained anew when an index has grown to these sizes, each four times the last.
RETRAIN_AT = (256, 1024, 4096, 16384)
CALIBRATE_FROM = 1000  # vectors from which a stop rule is worth calibrating

_MARGINS = (0.5, 1.0)  # searched between; below, the rule would stop nothing
_FINENESS = 0.002


def cuts(before: int, after: int) -> list[int]:
    """Give the sizes between these two at which the quantizer is trained anew."""
    return [size for size in RETRAIN_AT if before < size < after]


def codebooks(
    vectors: Array, metric: str, radius: float, code_bytes: int | None, seed: int
) -> Floats:
    """Train codebooks (subspaces, 256, width) on stored vectors (n, d)."""
    working = quantizer.working_space(vectors, metric, radius)
    return quantizer.train(working, code_bytes or quantizer.default_bytes(working.shape[1]), seed)


def margin(search: Callable[[int, float], Ids], lists: list[int], loss: float) -> float:
    """Bisect for the largest margin whose results differ by at most `loss`, at all list lengths.

    Args:
        search: Gives the ids (n, k) found with a list length and a margin.
        lists: Their lengths.
        loss: Share of the results with margin 0, which reads every candidate, that may be missing.

    Returns:
        The margin; 0 where none is good enough.
    """
    full = {L: search(L, 0.0) for L in lists}

    def lost(margin: float) -> float:
        worst = 0.0
        for L in lists:
            found = search(L, margin)
            same = np.mean([np.isin(f, g).mean() for f, g in zip(full[L], found, strict=True)])
            worst = max(worst, 1.0 - float(same))
        return worst

    low, high = _MARGINS  # the loss grows with the margin
    while high - low > _FINENESS:
        middle = (low + high) / 2
        low, high = (middle, high) if lost(middle) <= loss else (low, middle)
    return low if low > _MARGINS[0] else 0.0
