"""Errors of this package, in the house's classes: one line, and an exit code."""

from __future__ import annotations

from shorthaul.errors import EnvironmentLack, Fault, UserError


class Corrupt(Fault):
    """Stored state is damaged; the message names the file and the tile."""


class DeviceLost(Fault):
    """A device ended or stopped answering; the message names it."""


class NotFinite(UserError):
    """A gradient holds NaN or Inf; the step was not taken."""


def from_core(kind: str, message: str) -> Exception:
    """Turn an error of the C++ core, or of a device, into ours."""
    if kind == "bad_input":
        return UserError(message)
    if kind == "environment":
        return EnvironmentLack(message)
    return Corrupt(message) if kind == "corrupt" else Fault(message)


def kind_of(error: BaseException) -> str:
    """Give the kind that `from_core` turns back into the class of this error."""
    if isinstance(error, UserError):
        return "bad_input"
    if isinstance(error, EnvironmentLack):
        return "environment"
    return "corrupt" if isinstance(error, Corrupt) else "io"
