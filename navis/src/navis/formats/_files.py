"""What every format needs: names in errors, optional packages, files that are whole or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from shorthaul.errors import EnvironmentLack, UserError


def need(module: str, package: str, what: str) -> Any:
    """Import a module that only `what` needs.

    Raises:
        EnvironmentLack: It is not installed; the message names its package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EnvironmentLack(
            f"{what} needs {package}, which is not installed; pip install {package}"
        ) from error


def size_of(path: Path) -> int:
    """Bytes of a file that must exist and hold something."""
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if size == 0:
        raise UserError(f"{path}: empty (0 bytes); write it again")
    return size


def head(path: Path, count: int, what: str = "its header") -> bytes:
    """First `count` bytes of a file; a shorter file is a UserError."""
    size = size_of(path)
    if size < count:
        raise UserError(
            f"{path}: truncated in {what}: {size} bytes, at least {count} expected; copy it again"
        )
    return part(path, 0, count)


def part(path: Path, start: int, count: int) -> bytes:
    """Bytes [start, start + count) of a file, or fewer where it ends."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def expect_size(path: Path, expected: int, why: str) -> None:
    """Check that a file is exactly as long as its header says."""
    actual = size_of(path)
    if actual < expected:
        raise UserError(
            f"{path}: truncated: {actual} bytes, {expected} expected for {why}; copy it again"
        )
    if actual > expected:
        raise UserError(
            f"{path}: {actual - expected} trailing bytes: {actual} bytes, {expected} expected for "
            f"{why}; check that the suffix names the right type"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what was written there replaces it, durably.

    Unlike `shorthaul.atomic.write_bytes`, the content need not fit in memory. A failure leaves
    `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
