"""The engine of navis; navis.Index is its public face."""

from typing import Any

class Error(RuntimeError):
    kind: str

def __getattr__(name: str) -> Any: ...
