"""The engine's errors as the house's: one line and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shorthaul.errors import EnvironmentLack, Fault, ShorthaulError, UserError


class Corrupt(Fault):
    """A file is damaged; the message names file and place (exit code 1)."""


class NoSpace(UserError):
    """The disk is full; nothing acknowledged is lost (exit code 2)."""


class Closed(UserError):
    """The index has been closed (exit code 2)."""


class Stale(UserError):
    """Opened readonly, and another process has changed the index since (exit code 2)."""


_KINDS: dict[str, type[ShorthaulError]] = {
    "bad_input": UserError,
    "environment": EnvironmentLack,
    "corrupt": Corrupt,
    "io": Fault,
    "no_space": NoSpace,
    "closed": Closed,
}


@contextmanager
def translated() -> Iterator[None]:
    """Raise the engine's errors as the house's: `UserError`, `Corrupt`, `NoSpace` and so on."""
    from navis import _core

    try:
        yield
    except _core.Error as error:
        raise _KINDS[error.kind](str(error)) from None
