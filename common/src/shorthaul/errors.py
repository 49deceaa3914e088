"""Errors that reach a user as one line and an exit code."""


class ShorthaulError(Exception):
    """Base of every error a user is meant to read; line breaks in the message are folded.

    The message says the value that is wrong, then the fix.
    """

    exit_code: int = 1

    def __init__(self, message: str) -> None:
        parts = (line.strip() for line in message.splitlines())
        super().__init__("; ".join(part for part in parts if part))


class Fault(ShorthaulError):
    """Something broke that the user could not have avoided (exit code 1)."""


class UserError(ShorthaulError):
    """The input is wrong (exit code 2)."""

    exit_code = 2


class EnvironmentLack(ShorthaulError):
    """The machine lacks something; the message says how to get it (exit code 3)."""

    exit_code = 3
