"""Vector search on SSD that inserts while it searches, and loses nothing.

`navis.Index` is the whole of it: create or build one, open it, search, insert, delete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Index", "__version__"]

if TYPE_CHECKING:
    from navis.index import Index


def __getattr__(name: str) -> Any:
    # A command that only prints help loads neither the engine nor faiss.
    if name == "Index":
        from navis.index import Index

        return Index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
