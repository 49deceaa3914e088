"""Per-block checkpoints, written in the background, atomic and checksummed.

Blocks do not depend on each other, so each has files of its own and ranks need not agree on a step:
a resumed run starts its relay at the earliest step any block still needs, and a block that is
further on only passes its teacher output along.

Layout of a checkpoint folder (format version 1)::

    manifest.json               format, version, fingerprint of the run, block names
    block-0003/step-00000120.ckpt   one line of JSON {format, version, block, step, bytes, sha256},
    newline, torch archive
"""

from __future__ import annotations

import hashlib
import io
import json
import queue
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from shorthaul import atomic
from shorthaul.errors import UserError

FORMAT, VERSION, KEEP = "pipe-bd-block", 1, 2


def _folder(root: Path, index: int) -> Path:
    return root / f"block-{index:04d}"


def _path(root: Path, index: int, step: int) -> Path:
    return _folder(root, index) / f"step-{step:08d}.ckpt"


def _steps(root: Path, index: int) -> list[int]:
    names = [
        re.fullmatch(r"step-(\d+)\.ckpt", p.name) for p in _folder(root, index).glob("step-*.ckpt")
    ]
    return sorted(int(m.group(1)) for m in names if m)


def prepare(
    root: Path, fingerprint: Mapping[str, Any], blocks: Sequence[str], resume: bool
) -> None:
    """Make or check the manifest of a checkpoint folder; called by one rank.

    Raises:
        UserError: the folder holds another run, is of a newer format, holds checkpoints that a new
            run would overwrite, or is to be resumed and empty.
    """
    path = root / "manifest.json"
    for leftover in root.glob("block-*/.*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    expected: dict[str, Any] = {
        "format": "pipe-bd-checkpoint",
        "version": VERSION,
        "fingerprint": dict(fingerprint),
        "blocks": list(blocks),
    }
    if not resume:
        if any(root.glob("block-*/step-*.ckpt")):
            raise UserError(
                f"{root} already holds checkpoints: pass resume (--resume) to continue, or "
                "another folder"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, expected)
        except OSError as error:
            raise UserError(f"cannot write checkpoints in {root}: {_reason(error)}") from error
        return
    if not path.exists():
        raise UserError(f"nothing to resume: {path} does not exist")
    found = atomic.read_json(path)
    if not isinstance(found, dict) or found.get("format") != expected["format"]:
        raise UserError(f"{path} is not a pipe-bd checkpoint manifest")
    _check_version(path, found.get("version"))
    if found.get("blocks") != expected["blocks"]:
        raise UserError(
            f"{path} holds blocks {found.get('blocks')}, this run has {expected['blocks']}: "
            "resume with the same model"
        )
    fingerprint_then = found.get("fingerprint")
    if not isinstance(fingerprint_then, dict):
        raise UserError(f"{path} is damaged: it has no fingerprint of its run")
    for key, value in expected["fingerprint"].items():
        if fingerprint_then.get(key) != value:
            raise UserError(
                f"{path}: {key} was {fingerprint_then.get(key)!r}, now it is {value!r}: "
                f"resume with the same {key}"
            )


def _check_version(path: Path, version: Any) -> None:
    if not isinstance(version, int):
        raise UserError(f"{path} is damaged: its format version is {version!r}")
    if version > VERSION:
        raise UserError(
            f"{path} has format version {version}, this program knows {VERSION}: update pipe-bd"
        )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)


def write(root: Path, index: int, step: int, state: Mapping[str, Any]) -> None:
    """Write one block's checkpoint, then drop all but the newest two.

    The order matters: a file is removed only when newer ones are complete on disk.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "block": index,
        "step": step,
        "bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    path = _path(root, index, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, json.dumps(header).encode() + b"\n" + payload)
    for old in _steps(root, index)[:-KEEP]:
        _path(root, index, old).unlink(missing_ok=True)


def read(path: Path, index: int | None = None) -> dict[str, Any]:
    """One block's checkpoint.

    Args:
        path: the file.
        index: the block it must be of; None takes any.

    Raises:
        UserError: the file is unreadable, damaged, of a newer format or of another block.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {_reason(error)}") from error
    head, newline, payload = raw.partition(b"\n")
    advice = "delete it to fall back to the checkpoint before it"
    try:
        header = json.loads(head)
        version, size, digest = header["version"], header["bytes"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path} is corrupted (unreadable header): {advice}") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is not a pipe-bd block checkpoint")
    _check_version(path, version)
    if index is not None and header.get("block") != index:
        raise UserError(f"checkpoint {path} is of block {header.get('block')}, not {index}")
    if not newline or len(payload) != size or hashlib.sha256(payload).hexdigest() != digest:
        raise UserError(
            f"checkpoint {path} is corrupted ({len(payload)} of {size} bytes, checksum differs or "
            f"short): {advice}"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def newest(root: Path, index: int) -> dict[str, Any] | None:
    """The newest checkpoint of a block, None when it has none."""
    path = newest_path(root, index)
    return None if path is None else read(path, index)


def newest_path(root: Path, index: int) -> Path | None:
    """Where the newest checkpoint of a block lies, None when it has none."""
    steps = _steps(root, index)
    return _path(root, index, steps[-1]) if steps else None


def load_students(root: Path, step: int | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Trained weights of every block: {block: {candidate: state_dict}}.

    Args:
        root: the checkpoint folder.
        step: where every block must stand; None takes each block's newest.

    Raises:
        UserError: the folder is no checkpoint, a file is damaged, or a block has none or stands
            elsewhere.
    """
    manifest = atomic.read_json(root / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("blocks"), list):
        raise UserError(f"{root / 'manifest.json'} is not a pipe-bd checkpoint manifest")
    students = {}
    for index, name in enumerate(manifest["blocks"]):
        steps = _steps(root, index)
        if not steps:
            raise UserError(f"{root} holds no checkpoint of block {name!r}: finish the run first")
        if step is not None and steps[-1] != step:
            raise UserError(
                f"{root}: block {name!r} stands at step {steps[-1]}, the finished run ended at "
                f"{step}: finish it with --resume"
            )
        state = read(_path(root, index, steps[-1]), index)
        students[name] = {candidate: saved["module"] for candidate, saved in state.items()}
    return students


class Writer:
    """Writes checkpoints on a thread of its own.

    At most two wait, then training waits for the disk.

    A failure to write surfaces at the next :meth:`submit` or at :meth:`close`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._queue: queue.Queue[tuple[int, int, dict[str, Any]] | None] = queue.Queue(maxsize=2)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    write(self.root, *item)
            except Exception as error:  # a thread that died would leave submit() waiting
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise UserError(
                f"cannot write a checkpoint in {self.root}: {_reason(self._error)}; the "
                "checkpoints before it are intact"
            ) from self._error

    def submit(self, index: int, step: int, state: dict[str, Any]) -> None:
        """Queue one block's state."""
        self._raise()
        self._queue.put((index, step, state))

    def close(self) -> None:
        """Wait until all is on disk."""
        self._queue.put(None)
        self._thread.join()
        self._raise()
