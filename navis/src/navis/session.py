"""How an index is opened: `Index.open`'s options, checked, and as the engine takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from shorthaul.errors import UserError

from navis.checks import byte_count, known, known_options, whole

Durability = Literal["sync", "group", "none"]
_DURABILITIES = ("sync", "group", "none")
_POLICIES = ("lfu", "lru", "none")
_ENTRANCES = ("dynamic", "fixed", "none")
_IO = ("automatic", "uring", "posix")


@dataclass(frozen=True, kw_only=True)
class Session:
    """The options of `Index.open`, where they are described.

    Raises:
        UserError: One cannot be used.
    """

    readonly: bool = False
    memory_budget: int | str | None = None
    durability: Durability = "sync"
    window_s: float = 0.05
    io: Literal["automatic", "uring", "posix"] = "automatic"
    direct: bool = True
    cache: Literal["lfu", "lru", "none"] = "lfu"
    entrance: Literal["dynamic", "fixed", "none"] = "dynamic"
    beam: int = 4
    in_flight: int = 4
    share_pages: bool = True
    rerank: bool = True
    pending_bytes: int = 0
    checkpoint_bytes: int = 0
    write_rate: int = 256 << 20

    def __post_init__(self) -> None:
        byte_count(self.memory_budget, "memory_budget")
        known("durability", self.durability, _DURABILITIES)
        known("io", self.io, _IO)
        known("cache", self.cache, _POLICIES)
        known("entrance", self.entrance, _ENTRANCES)
        if not 0 < self.window_s <= 60:
            raise UserError(f"window_s {self.window_s}: use more than 0, at most 60 seconds")
        whole("beam", self.beam, 1, 16)
        whole("in_flight", self.in_flight, 1, 8)
        for name in ("pending_bytes", "checkpoint_bytes", "write_rate"):
            whole(name, getattr(self, name), 0, 2**63 - 1)

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Make one of options given by name; an unknown name is a UserError."""
        known_options(options, (field.name for field in fields(cls)))
        return cls(**options)

    def core(self) -> Any:
        """Give the engine's `OpenOptions`."""
        from navis import _core

        options = _core.OpenOptions()
        options.memory_budget = byte_count(self.memory_budget, "memory_budget") or 0
        options.durability = getattr(_core.Durability, self.durability)
        options.io(self.io)
        options.cache = getattr(_core.CachePolicy, self.cache)
        options.entrance = getattr(_core.Entrance, self.entrance)
        for name in (
            *("readonly", "window_s", "direct", "beam", "in_flight", "share_pages", "rerank"),
            *("pending_bytes", "checkpoint_bytes", "write_rate"),
        ):
            setattr(options, name, getattr(self, name))
        return options
