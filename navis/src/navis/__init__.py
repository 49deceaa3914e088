"""Vector search on SSD that inserts while it searches, and loses nothing.

`navis.Index` is the whole of it: create or build one, open it, search, insert, delete. Searches
take a `navis.Filter` where only some vectors may be found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Filter", "Index", "__version__"]

if TYPE_CHECKING:
    from navis.filters import Filter
    from navis.index import Index


def __getattr__(name: str) -> Any:
    # A command that only prints help loads neither the engine nor faiss.
    if name == "Index":
        from navis.index import Index

        return Index
    if name == "Filter":
        from navis.filters import Filter

        return Filter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
