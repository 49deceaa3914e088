"""Where the claims, the experiments' presets and the list of peers lie, installed or here."""

from __future__ import annotations

from pathlib import Path


def resource(name: str) -> Path:
    """Path of ``claims.toml``, ``configs`` or a file below it.

    A wheel carries them inside the package; the repository, which an editable install uses,
    keeps them beside ``src`` as every artifact of the house does.
    """
    package = Path(__file__).parent
    for folder in (package, package.parents[1]):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is missing from the navis package: install it again")
