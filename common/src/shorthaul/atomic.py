"""Files that are either whole or absent, whatever dies while they are written."""

import contextlib
import dataclasses
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shorthaul.errors import UserError


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace a file by `data`, durably; missing parent folders are created.

    A failure (OSError) leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: it creates with mode 0600, and results are meant to be read by others.
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path | str, text: str) -> None:
    """Replace a text file (UTF-8) durably; see `write_bytes`."""
    write_bytes(path, text.encode())


def plain(obj: Any) -> Any:
    """Turn dataclasses, paths, sets, numpy values and tensors into what JSON can hold.

    A number that is not finite becomes None: JSON has no NaN, and strict readers refuse it. A
    value without a JSON form is a TypeError.
    """
    if obj is None or isinstance(obj, bool | str | int):
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    if isinstance(obj, set | frozenset):
        return [plain(value) for value in sorted(obj)]
    if isinstance(obj, Path):
        return str(obj)
    if hasattr(obj, "tolist"):  # numpy and torch, neither of which is imported for this
        return plain(obj.tolist())
    raise TypeError(f"{type(obj).__name__} has no JSON form")


def write_json(path: Path | str, obj: Any) -> None:
    """Replace a JSON file durably; `obj` is made plain first (see `plain`)."""
    write_text(path, json.dumps(plain(obj), indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; one that is missing or not JSON is a UserError that names it."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
