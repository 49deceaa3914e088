"""Arithmetic on a device's trace: what was under way when, and what at the same time.

A span is `[what, tile, begin, end]`, seconds on the monotonic clock; `what` is read, update,
hand_up, write_parameters or write_moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shorthaul import trace

Span = Sequence[Any]
Interval = tuple[float, float]
WRITES = ("write_parameters", "write_moments")


def of(spans: Iterable[Span], *what_of: str) -> list[Interval]:
    """Give the intervals of spans of these kinds."""
    return [(span[2], span[3]) for span in spans if span[0] in what_of]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Join intervals that touch."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Give the seconds that intervals cover, each second once."""
    return sum(end - begin for begin, end in union(intervals))


def both(a: Iterable[Interval], b: Iterable[Interval]) -> float:
    """Give the seconds in which some of `a` and some of `b` are under way."""
    a, b = list(a), list(b)
    return length(a) + length(b) - length([*a, *b])


def together(spans: Sequence[Span]) -> dict[str, float]:
    """Tell how far reads and writes overlap.

    Returns:
        `time`: of the seconds in which the media is read or written, the share in which both are
        under way. `tiles`: the share of tiles during whose reading another tile is written.
    """
    reads, writes = of(spans, "read"), of(spans, *WRITES)
    busy = length([*reads, *writes])
    beside = 0
    named = [(span[1], span[2], span[3]) for span in spans if span[0] in WRITES]
    for span in spans:
        if span[0] == "read":
            beside += any(
                tile != span[1] and begin < span[3] and span[2] < end for tile, begin, end in named
            )
    return {
        "time": both(reads, writes) / busy if busy else 0.0,
        "tiles": beside / len(reads) if reads else 0.0,
    }


def handed_up_first(spans: Sequence[Span], taken: Mapping[int, float]) -> tuple[int, int, int]:
    """Count tiles whose parameters went up before their moments were written.

    Args:
        spans: Of one step.
        taken: When the host had each tile's parameters.

    Returns:
        Tiles that their device had handed up before, tiles that the host had before, tiles in all;
        of a tile whose moments' end the trace lacks, that of its parameters stands in.
    """
    handed = {span[1]: span[3] for span in spans if span[0] == "hand_up"}
    written: dict[int, float] = {}
    for span in spans:
        if span[0] in WRITES:
            written[span[1]] = max(written.get(span[1], 0.0), span[3])
    up = sum(handed[tile] < end for tile, end in written.items())
    had = sum(taken[tile] < end for tile, end in written.items())
    return up, had, len(written)


def in_flight(spans: Iterable[Span], at: float, *what_of: str) -> int:
    """Count spans of these kinds that are under way at a moment."""
    return sum(begin <= at < end for begin, end in of(spans, *what_of))


def write_trace(
    path: Path, devices: Sequence[Sequence[Span]], host: Sequence[tuple[str, float, float]]
) -> None:
    """Write a Chrome trace: the host's spans, and of each device one stream a kind of work."""
    base = min((span[2] for spans in devices for span in spans), default=0.0)
    parts = []
    for number, spans in enumerate(devices, 1):
        tracer = trace.Tracer(number, f"device {number - 1}")
        for what, tile, begin, end in spans:
            # Tiles in flight together would lie over each other in one stream.
            tracer.span(f"tile {tile}", f"{what} {tile % 8}", begin - base, end - base)
        parts.append(path.with_suffix(f".{number}.json"))
        tracer.write(parts[-1])
    tracer = trace.Tracer(0, "host")
    for name, begin, end in host:
        tracer.span(name, "host", begin - base, end - base)
    parts.append(path.with_suffix(".0.json"))
    tracer.write(parts[-1])
    trace.merge(parts, path)
    for part in parts:
        part.unlink()
