"""Flags shared by the verbs that open an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from navis.index import Index


@dataclass(kw_only=True)
class SessionFlags:
    """How to open the index."""

    memory_budget: str | None = None
    """Memory for tables, codes, entrance graph, cache, buffers, like 64MiB; else no limit."""
    io: Literal["automatic", "uring", "posix"] = "automatic"
    """io_uring, pread and pwrite, or what the kernel grants."""
    direct: bool = True
    """Files past the system's page cache, where the file system can."""
    cache: Literal["lfu", "lru", "none"] = "lfu"
    """Which edge lists to keep in memory."""
    entrance: Literal["dynamic", "fixed", "none"] = "dynamic"
    """Entrance graph: kept up with inserts, as built, or unused."""
    durability: Literal["sync", "group", "none"] = "sync"
    """When an insert is acknowledged: synced, written, or at once."""
    beam: int = 4
    """Edge lists expanded per step."""
    in_flight: int = 4
    """Traversals per thread."""

    def session(self, **more: Any) -> dict[str, Any]:
        """Options of `Index.open`."""
        from navis.checks import byte_count

        return {
            "memory_budget": byte_count(self.memory_budget, "--memory-budget"),
            "io": self.io,
            "direct": self.direct,
            "cache": self.cache,
            "entrance": self.entrance,
            "durability": self.durability,
            "beam": self.beam,
            "in_flight": self.in_flight,
            **more,
        }

    def open(self, path: Path, **more: Any) -> Index:
        """Open an index with these flags."""
        from navis.index import Index

        return Index.open(path, **self.session(**more))


IndexPath = Annotated[Path, tyro.conf.Positional]
