"""``navis stats`` and ``navis verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common, emit

from navis.commands.session import SessionFlags


@dataclass(kw_only=True)
class StatsCommand(SessionFlags, Common):
    """Say how large an index is, where its memory goes and what its log holds."""

    index: tyro.conf.Positional[Path]
    """Index folder."""

    def run(self) -> None:
        """Open read-only and print."""
        with self.open(self.index, readonly=True) as index:
            stats = index.stats()
            stats |= {
                "dim": index.dim,
                "dtype": str(index.dtype),
                "metric": index.metric,
                "layout": index.layout,
                "space_amplification": stats["units"] / max(1, stats["units_minimal"]),
            }
        width = max(map(len, stats))
        emit(stats, self.json, "\n".join(f"{name:<{width}}  {stats[name]}" for name in stats))


@dataclass(kw_only=True)
class Verify(SessionFlags, Common):
    """Read every page, list and vector, compare checksums and tables; exit 1 when one is wrong."""

    index: tyro.conf.Positional[Path]
    """Index folder."""

    def run(self) -> None:
        """Verify and print faults."""
        from navis.errors import Corrupt

        with self.open(self.index, readonly=True) as index:
            report = index.verify()
        faults = report["faults"]
        text = (
            f"{report['lists']} lists with {report['edges']} edges on {report['units']} pages, "
            f"{report['vectors']} vectors: {len(faults) or 'no'} fault{'s'[: len(faults) != 1]}"
        )
        advice = []
        if faults:
            advice.append("navis repair makes edge lists anew; a snapshot gives back the rest")
        if report["unreachable"]:
            advice.append(
                f"no path leads to {report['unreachable']} vectors, which only long search lists "
                "find: navis compact joins them to the graph"
            )
        emit(report, self.json, "\n".join([*faults, text, *advice]))
        if faults:
            raise Corrupt(f"{self.index}: {faults[0]}")
