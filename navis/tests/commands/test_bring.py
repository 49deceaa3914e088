"""`navis import-diskann` as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def source(tmp_path: Path, base: Any) -> Path:
    """A disk index whose nodes know their neighbours in a ring and some far ones."""
    import struct

    vectors = np.ascontiguousarray(base[:300])
    n, d, degree = 300, 48, 10
    steps = np.array([1, 2, 3, 7, 20, 50, -1, -2, -7, -50])
    lists = (np.arange(n)[:, None] + steps) % n
    size = 4 * d + 4 + 4 * degree
    per = 4096 // size
    nodes = [
        v.tobytes() + struct.pack(f"<{1 + degree}I", degree, *row)
        for v, row in zip(vectors, lists.tolist(), strict=True)
    ]
    body = b"".join(b"".join(nodes[i : i + per]).ljust(4096, b"\0") for i in range(0, n, per))
    fields = [n, d, 1, size, per, 0, 0, 0, 4096 + len(body), 0, 4096, 1]
    head = struct.pack("<2i", 96, 1) + struct.pack(f"<{len(fields)}Q", *fields)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "ann_disk.index").write_bytes(head.ljust(4096, b"\0") + body)
    (folder / "ann_metadata.bin").write_bytes(struct.pack("<4Q", 0, 0, n, d))
    return folder


def test_import_then_search(run: Any, source: Path, query_file: Path) -> None:
    ix = source.parent / "ix"
    found = run("import-diskann", source / "ann", ix, "--layout", "selective")
    assert (found["vectors"], found["dim"], found["edges"]) == (300, 48, 3000)
    assert (found["metric"], found["layout"], found["codes"]) == ("l2", "selective", "ours")
    assert run("verify", ix)["faults"] == []
    (row,) = run("search", ix, query_file, "--L", "60")["rows"]
    assert row["expansions"] > 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none", "ix"], "cannot be read"),
        (["theirs", "theirs"], "not empty"),
        (["theirs", "ix", "--metric", "cosine"], "made for l2"),
        (["theirs", "ix", "--dtype", "int16"], "--dtype"),
        (["theirs", "ix", "--code-bytes", "99"], "99 bytes per code"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, source: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(source.parent)
    assert says in run("import-diskann", *words, code=2)
    assert not Path("ix").exists()
