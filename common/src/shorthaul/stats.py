"""Comparing two things on a machine that is never quiet: interleave, pair, take medians."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def median(values: Sequence[float]) -> float:
    """Give the median; nothing has none (ValueError)."""
    if not values:
        raise ValueError("median of nothing")
    return float(statistics.median(values))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Bound the median by order statistics, which assume no distribution.

    With few values (under six for 95 %) no pair of them reaches the confidence; the interval is
    then the whole range.
    """
    ordered, n = sorted(values), len(values)
    below, cut = 0.0, 0
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n
        if 1 - 2 * below < confidence:
            break
        cut = k
    return float(ordered[cut]), float(ordered[n - 1 - cut])


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Give `median`, `low` and `high` (95 %) of `a[i] / b[i]`; a ValueError when there is none.

    Measurements taken side by side share the machine's mood, so their ratio is steadier than the
    ratio of the medians.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"pairs needed: {len(a)} against {len(b)} measurements")
    if not all(b):
        raise ValueError("a measurement of zero has no ratio")
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    low, high = median_interval(ratios)
    return {"median": median(ratios), "low": low, "high": high}


def noise(a1: Sequence[float], a2: Sequence[float]) -> dict[str, float]:
    """Give the machine's A/A noise: the paired ratio of one system against itself.

    To `paired_ratio`'s keys comes `spread`, the farthest of them from 1: a difference between
    systems below it says nothing.
    """
    ratio = paired_ratio(a1, a2)
    return {**ratio, "spread": max(abs(value - 1) for value in ratio.values())}


def interleave(
    runners: Mapping[str, Callable[[], T]], repetitions: int, *, warmup: int = 0
) -> dict[str, list[T]]:
    """Run A B A B …, so that drift falls on all alike; results of `warmup` rounds are dropped."""
    if repetitions < 1:
        raise ValueError(f"repetitions {repetitions}: at least 1")
    results: dict[str, list[T]] = {name: [] for name in runners}
    for turn in range(warmup + repetitions):
        for name, runner in runners.items():
            result = runner()
            if turn >= warmup:
                results[name].append(result)
    return results
