"""Flags shared by the verbs that open an index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from shorthaul.errors import UserError

if TYPE_CHECKING:
    from navis.index import Index

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size(text: str | None, flag: str) -> int | None:
    """Read `64MiB`, `2GB` or `100000` as bytes; None stays None."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if not found or float(found[1]) <= 0:
        raise UserError(f"{flag} {text!r}: write it like 64MiB or 2GB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


@dataclass(kw_only=True)
class SessionFlags:
    """How to open the index."""

    memory_budget: str | None = None
    """Memory for tables, codes, entrance graph, cache, buffers, like 64MiB; else no limit."""
    io: Literal["automatic", "uring", "posix"] = "automatic"
    """io_uring, pread and pwrite, or what the kernel grants."""
    direct: bool = True
    """Past the page cache; --no-direct: through it, beyond the memory budget."""
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
        return {
            "memory_budget": size(self.memory_budget, "--memory-budget"),
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
