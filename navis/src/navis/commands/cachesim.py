"""``navis cachesim``: what caches of edge lists of some sizes and policies would have hit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags

if TYPE_CHECKING:
    from navis.traces import Trace


@dataclass(kw_only=True)
class CacheSim(SessionFlags, Common):
    """Replay the edge-list accesses of queries through caches of several sizes and policies.

    Hit ratios are over the second half of the queries; the first half has filled the cache.
    """

    index: tyro.conf.Positional[Path | None] = None
    """Index folder; a recorded trace needs none."""
    queries: str | None = None
    """File of queries to trace."""
    record: Path | None = None
    """Keep their trace in this file."""
    trace: Path | None = None
    """Replay a recorded trace instead."""
    sizes: str = "1,2,5,10"
    """Sizes of the cache, in percent of the edge lists."""
    policies: str = "lfu,lru"
    """Of lfu, lru, none."""
    L: int = 40
    """Search list of the traversals."""
    seek: bool = False
    """Trace the position seeking that inserts of these vectors would do."""

    def run(self) -> None:
        """Trace or read, replay, print the table."""
        import numpy as np

        from navis import traces

        sizes, policies = percents(self.sizes), names(self.policies)
        trace = self._trace()
        rooms = [max(1, round(size / 100 * trace.lists)) for size in sizes]
        rows: list[dict[str, Any]] = [
            {
                "percent": size,
                "entries": row.entries,
                "hit_ratio": row.hit_ratio,
                "hit_ratio_cold": row.cold,
            }
            for size, row in zip(sizes, traces.replay(trace, rooms, policies), strict=True)
        ]
        distinct = len(np.unique(trace.ids))
        found = {
            "lists": trace.lists,
            "traversals": len(trace.counts),
            "accesses": len(trace.ids),
            "distinct": distinct,
            "L": trace.L,
            "seek": trace.seek,
            "rows": rows,
        }
        emit(found, self.json, table(found, policies))

    def _trace(self) -> Trace:
        from navis import traces
        from navis.formats import read_vectors

        if self.trace is not None:
            if self.queries is not None or self.record is not None:
                raise UserError("--trace replays a file: leave out --queries and --record")
            return traces.read(self.trace)
        if self.index is None or self.queries is None:
            raise UserError("give INDEX and --queries, or --trace with a recorded one")
        with self.open(self.index, readonly=True) as index:
            trace = traces.record(index, read_vectors(self.queries), self.L, seek=self.seek)
        if self.record is not None:
            traces.write(self.record, trace)
        return trace


def percents(text: str) -> list[float]:
    """Read `1,2.5,10` as percentages without repetition."""
    try:
        given = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        given = []
    if not given or not all(0 < size <= 100 for size in given):
        raise UserError(f"--sizes {text!r}: write percentages like 1,2.5,10")
    return list(dict.fromkeys(given))


def names(text: str) -> list[str]:
    """Read `lfu,lru` as policies without repetition."""
    from navis.traces import POLICIES

    given = [part.strip() for part in text.split(",") if part.strip()]
    if not given or not set(given) <= set(POLICIES):
        raise UserError(f"--policies {text!r}: use some of {','.join(POLICIES)}")
    return list(dict.fromkeys(given))


def table(found: dict[str, Any], policies: list[str]) -> str:
    """Give policy by size as aligned text."""
    lines = [
        f"{found['accesses']} accesses to {found['distinct']} of {found['lists']} edge lists in "
        f"{found['traversals']} traversals, L {found['L']}",
        "   size  entries" + "".join(f"  {policy:>6}" for policy in policies),
    ]
    for row in found["rows"]:
        ratios = "".join(f"  {row['hit_ratio'][policy]:6.3f}" for policy in policies)
        lines.append(f"{row['percent']:>5g} %  {row['entries']:>7}{ratios}")
    return "\n".join(lines)
