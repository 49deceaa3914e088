"""The walls stop what they are there to stop, and let the rest through."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("walls", ROOT / "ci" / "walls.py")
assert spec
assert spec.loader
walls = importlib.util.module_from_spec(spec)
spec.loader.exec_module(walls)


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("pipe_bd/src/pipe_bd/a.py", "import navis", "artifact pipe_bd imports artifact navis"),
        ("pipe_bd/tests/test_a.py", "from navis.index import x", "imports artifact navis"),
        ("common/src/shorthaul/a.py", "def f():\n    import pipe_bd", "common imports artifact"),
        ("pipe_bd/src/pipe_bd/a.py", "import shorthaul, pipe_bd.plan\nfrom . import x", None),
        ("ci/report.py", "import pipe_bd", None),
        ("common/src/shorthaul/a.py", "def f(:", "invalid syntax"),
    ],
)
def test_imports(name: str, source: str, fault: str | None) -> None:
    found = list(walls.import_faults(name, source))
    assert (fault is None) == (found == [])
    assert fault is None or fault in found[0]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a/CMakeLists.txt", "add_compile_options(-march=native)", "-march=native"),
        ("a/CMakeLists.txt", "# never -march=native", None),
        ("docs/a.md", "We do without -ffast-math.", None),
        ("a/x.py", "root = '/home/me/data'", "somebody's machine"),
        ("a/x.md", "see https://example.org/work/of/art and runs/work/x", None),
        ("a/x.py", "# TODO: later", "an open end"),
        ("a/x.py", "# TODO(#12): later", None),
    ],
)
def test_text(name: str, text: str, fault: str | None) -> None:
    found = list(walls.text_faults(name, text))
    assert (fault is None) == (found == [])
    assert fault is None or fault in found[0]
