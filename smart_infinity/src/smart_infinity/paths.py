"""Where the presets and the claims lie, installed or in the repository."""

from __future__ import annotations

from pathlib import Path


def resource(name: str) -> Path:
    """Path of ``configs``, ``claims.toml`` or a file below them.

    A wheel carries them inside the package; the repository, which an editable install uses,
    keeps them beside ``src`` as every artifact of the house does.
    """
    package = Path(__file__).parent
    for folder in (package, package.parents[1]):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is missing from the smart_infinity package: install it again")
