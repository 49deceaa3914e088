"""Checkpoints are whole or absent, and say what is wrong with them."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul import atomic
from shorthaul.errors import UserError

from pipe_bd.runtime import checkpoint
from pipe_bd.runtime.checkpoint import Writer, load_students, newest, prepare, read, write

STATE = {"student": {"module": {"w": torch.arange(4.0)}, "steps": 3}}
PRINT = {"seed": 0, "batch": 8}


def path(root: Path, index: int, step: int) -> Path:
    return root / f"block-{index:04d}" / f"step-{step:08d}.ckpt"


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 0, 3, STATE)
    state = newest(tmp_path, 0)
    assert state is not None
    assert torch.equal(state["student"]["module"]["w"], torch.arange(4.0))
    assert newest(tmp_path, 1) is None
    header = json.loads(path(tmp_path, 0, 3).read_bytes().partition(b"\n")[0])
    assert header["format"] == "pipe-bd-block"
    assert header["block"] == 0
    assert header["step"] == 3


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 100):
        write(tmp_path, 1, step, STATE)
        assert len(files(tmp_path)) <= 2
    assert files(tmp_path) == [f"block-0001/step-{s:08d}.ckpt" for s in (10, 100)]


def damage(kind: str) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        head, _, payload = raw.partition(b"\n")
        header = json.loads(head)
        if kind == "bit":
            return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]
        if kind == "short":
            return raw[: len(raw) // 2]
        if kind == "long":
            return raw + b"x"
        if kind == "empty":
            return b""
        if kind == "header":
            return raw[1:]
        if kind == "no newline":
            return head
        if kind == "text":
            return b"not a checkpoint\n"
        if kind == "list":
            return b"[1, 2]\n"
        if kind == "foreign":
            return json.dumps({**header, "format": "other"}).encode() + b"\n" + payload
        if kind == "newer":
            return json.dumps({**header, "version": 2}).encode() + b"\n" + payload
        if kind == "version":
            return json.dumps({**header, "version": "one"}).encode() + b"\n" + payload
        return json.dumps({**header, "block": 5}).encode() + b"\n" + payload

    return change


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bit", "is corrupted .*checksum differs.*delete it to fall back"),
        ("short", "is corrupted"),
        ("long", "is corrupted"),
        ("empty", "is corrupted .unreadable header"),
        ("header", "is corrupted .unreadable header"),
        ("no newline", "is corrupted"),
        ("text", "is corrupted .unreadable header"),
        ("list", "is corrupted .unreadable header"),
        ("foreign", "is not a pipe-bd block checkpoint"),
        ("newer", "has format version 2, this program knows 1: update pipe-bd"),
        ("version", "is damaged: its format version is 'one'"),
        ("block", "is of block 5, not 0"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, message: str) -> None:
    write(tmp_path, 0, 2, STATE)
    write(tmp_path, 0, 4, STATE)
    file = path(tmp_path, 0, 4)
    file.write_bytes(damage(kind)(file.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        newest(tmp_path, 0)
    assert str(file) in str(error.value)
    assert error.value.exit_code == 2
    file.unlink()  # as the message advises
    assert newest(tmp_path, 0) is not None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path(tmp_path, 0, 1).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        newest(tmp_path, 0)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, ("true",))

    write(tmp_path, 0, 1, {"student": Evil()})
    with pytest.raises(Exception, match="Weights only load failed"):
        read(path(tmp_path, 0, 1))


def test_a_new_run_in_a_used_folder_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "run", PRINT, ["a", "b"], resume=False)
    prepare(tmp_path / "run", PRINT, ["a", "b"], resume=False)  # nothing in it yet
    write(tmp_path / "run", 1, 2, STATE)
    for blocks in (["a", "b"], ["a"]):
        with pytest.raises(UserError, match=r"already holds checkpoints: pass resume \(--resume\)"):
            prepare(tmp_path / "run", PRINT, blocks, resume=False)
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(UserError, match="already holds checkpoints"):
        prepare(tmp_path / "run", PRINT, ["a", "b"], resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "nothing to resume: .*manifest.json does not exist"),
        ({"format": "x"}, "manifest.json is not a pipe-bd checkpoint manifest"),
        ({"version": 9}, "manifest.json has format version 9, this program knows 1"),
        ({"version": None}, "manifest.json is damaged: its format version is None"),
        ({"blocks": ["a"]}, r"holds blocks \['a'\], this run has \['a', 'b'\]: resume with the sa"),
        ({"fingerprint": 3}, "manifest.json is damaged: it has no fingerprint"),
        ({"fingerprint": {"seed": 4}}, "seed was 4, now it is 0: resume with the same seed"),
        ({"fingerprint": {"seed": 0}}, "batch was None, now it is 8"),
        ("text", "manifest.json: not JSON"),
        ("[]", "manifest.json is not a pipe-bd checkpoint manifest"),
    ],
)
def test_a_run_that_cannot_be_resumed(tmp_path: Path, change: Any, message: str) -> None:
    prepare(tmp_path, PRINT, ["a", "b"], resume=False)
    manifest = tmp_path / "manifest.json"
    if change is None:
        manifest.unlink()
    elif isinstance(change, str):
        manifest.write_text(change)
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, PRINT, ["a", "b"], resume=True)


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    prepare(tmp_path, PRINT, ["a"], resume=False)
    write(tmp_path, 0, 2, STATE)
    (tmp_path / "block-0000" / ".step-00000004.ckpt.123.abcd.tmp").write_bytes(b"half")
    prepare(tmp_path, PRINT, ["a"], resume=True)
    assert files(tmp_path) == ["block-0000/step-00000002.ckpt", "manifest.json"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoints in .*: Not a directory"):
        prepare(tmp_path / "file" / "run", PRINT, ["a"], resume=False)


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path)
    writer.submit(0, 1, dict(STATE))
    writer.submit(0, 2, dict(STATE))
    writer.close()
    before = {f: (tmp_path / f).read_bytes() for f in files(tmp_path)}
    real = os.fsync

    def full(handle: int) -> None:
        real(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer = Writer(tmp_path)
    for step in (3, 4, 5, 6):  # more than the queue holds: it must not block
        try:
            writer.submit(0, step, dict(STATE))
        except UserError:
            break
    with pytest.raises(UserError, match=r"cannot write a checkpoint in .*: No space left") as error:
        writer.close()
    assert "the checkpoints before it are intact" in str(error.value)
    assert {f: (tmp_path / f).read_bytes() for f in files(tmp_path)} == before


def test_an_unexpected_failure_of_the_writer_surfaces_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(checkpoint, "write", fail)
    writer = Writer(tmp_path)
    done = threading.Event()

    def submit() -> None:
        try:
            for step in range(9):
                writer.submit(0, step, {})
        except UserError:
            done.set()

    threading.Thread(target=submit, daemon=True).start()
    assert done.wait(10), "submit() waits for a writer that has died"
    with pytest.raises(UserError, match="too large"):
        writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.system
def test_a_really_full_disk(tmp_path: Path) -> None:
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted in this container")
    try:
        writer = Writer(disk)
        writer.submit(0, 1, {"w": torch.rand(100, 100)})

        def overfill() -> None:
            for step in range(2, 9):
                writer.submit(0, step, {"w": torch.rand(300, 300)})
            writer.close()

        with pytest.raises(UserError, match="No space left on device"):
            overfill()
        assert files(disk) == ["block-0000/step-00000001.ckpt"]
        assert newest(disk, 0) is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_writer_does_not_see_later_updates(tmp_path: Path) -> None:
    from pipe_bd.runtime.trainer import _to_cpu

    weight = torch.ones(3)
    nested = {"a": [weight, (weight, 3)], "b": None}
    copy = _to_cpu(nested)
    weight.add_(1)
    assert torch.equal(copy["a"][0], torch.ones(3))
    assert torch.equal(copy["a"][1][0], torch.ones(3))
    assert copy["a"][1][1] == 3


def test_students_are_loaded_from_a_finished_run_only(tmp_path: Path) -> None:
    prepare(tmp_path, PRINT, ["a", "b"], resume=False)
    write(tmp_path, 0, 2, STATE)
    with pytest.raises(UserError, match="no checkpoint of block 'b': finish the run first"):
        load_students(tmp_path)
    write(tmp_path, 1, 2, STATE)
    assert sorted(load_students(tmp_path)) == ["a", "b"]
    atomic.write_json(tmp_path / "manifest.json", {"other": 1})
    with pytest.raises(UserError, match="is not a pipe-bd checkpoint manifest"):
        load_students(tmp_path)
    shutil.rmtree(tmp_path / "block-0000")
    with pytest.raises(UserError, match="cannot be read"):
        load_students(tmp_path / "nowhere")
