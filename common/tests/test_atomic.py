import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shorthaul import atomic
from shorthaul.errors import UserError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(data=st.binary(max_size=4096))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_replaces_the_whole_content(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "deep" / "file"
    atomic.write_bytes(path, b"before, and longer than most")
    atomic.write_bytes(path, data)
    assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_failure_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_others_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic.write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"0" * 200_000)
    code = (
        "import sys; from shorthaul import atomic\n"
        "for n in range(10**9): atomic.write_bytes(sys.argv[1], bytes([48 + n % 10]) * 200_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    first = path.stat().st_ino
    deadline = time.monotonic() + 20
    while path.stat().st_ino == first and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    content = path.read_bytes()
    assert len(content) == 200_000
    assert len(set(content)) == 1


@given(obj=JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_json_round_trip(tmp_path: Path, obj: object) -> None:
    atomic.write_json(tmp_path / "x.json", obj)
    assert atomic.read_json(tmp_path / "x.json") == obj


def test_plain_takes_what_experiments_hold() -> None:
    @dataclasses.dataclass
    class Point:
        x: int
        where: Path

    found = atomic.plain(
        {1: (np.float32(0.5), np.arange(3)), "p": Point(1, Path("a/b")), "s": {2, 1}, "n": np.nan}
    )
    assert found == {"1": [0.5, [0, 1, 2]], "p": {"x": 1, "where": "a/b"}, "s": [1, 2], "n": None}
    assert json.dumps(found, allow_nan=False)


def test_plain_refuses_what_has_no_form() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        atomic.plain({"x": object()})


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_read_json_names_the_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"profile\.json"):
        atomic.read_json(path)
