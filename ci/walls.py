"""The walls between packages and the things no file here may contain; prints one line per fault.

Checked over tracked and about-to-be-tracked files:

* imports point one way: artifact -> shorthaul -> third parties;
* bindings.cpp is the only C++ file that knows pybind11;
* no flag that ties a binary to this machine or changes its arithmetic;
* no path of somebody's machine;
* no open end without the number of its issue.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# The seven, built or not: a package may not import one of these unless it is that one.
ARTIFACTS = ("pipe_bd", "navis", "smart_infinity", "grinnder", "granndis", "optimus_cc", "peeraid")

# Files that name what they forbid.
TEXT_EXEMPT = {"ci/walls.py", "ci/tests/test_walls.py", "ci/lint"}

FLAGS = re.compile(r"-march=native|-mtune=native|-ffast-math|-Ofast")
PATHS = re.compile(r"(?<![\w.\-/])/(?:work|opt|root|home)/[\w.]")
OPEN_ENDS = re.compile(r"\b(?:TODO|FIXME|XXX)\b(?!\(#\d+\))")
COMMENT = re.compile(r"\s*(?:#|//|\*)")
PYBIND = re.compile(r"^\s*#\s*include\s*[<\"]pybind11/", re.MULTILINE)

RULES = (
    (FLAGS, "a flag that ties the binary to this machine or changes its arithmetic"),
    (PATHS, "a path of somebody's machine"),
    (OPEN_ENDS, "an open end without its issue; write it with (#N)"),
)


def files(root: Path) -> list[str]:
    """The repository's files, relative to `root`; those git ignores are left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [name for name in listed.splitlines() if (root / name).is_file()]


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def import_faults(name: str, source: str) -> Iterator[str]:
    """Imports in one Python file that go through a wall."""
    package = name.partition("/")[0]
    if package != "common" and package not in ARTIFACTS:
        return
    try:
        modules = list(imported(source))
    except SyntaxError as error:
        yield f"{name}:{error.lineno}: {error.msg}"
        return
    for line, module in modules:
        if module in ARTIFACTS and module != package:
            whose = "common" if package == "common" else f"artifact {package}"
            yield f"{name}:{line}: {whose} imports artifact {module}"


def text_faults(name: str, text: str) -> Iterator[str]:
    """Forbidden words in one file."""
    if name in TEXT_EXEMPT:
        return
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in RULES:
            if pattern is FLAGS and (name.endswith(".md") or COMMENT.match(line)):
                continue  # prose may say why we do without
            if found := pattern.search(line):
                yield f"{name}:{number}: {found.group(0)}: {what}"


def faults(root: Path) -> Iterator[str]:
    """Every fault under `root`."""
    for name in files(root):
        path = root / name
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield from text_faults(name, text)
        if name.endswith(".py"):
            yield from import_faults(name, text)
        if path.suffix in {".cpp", ".hpp", ".h", ".cc", ".cu"} and path.name != "bindings.cpp":
            if PYBIND.search(text):
                yield f"{name}: includes pybind11; only bindings.cpp may"


def main() -> int:
    """Prints the faults of the repository this file is in."""
    found = list(faults(Path(__file__).resolve().parents[1]))
    print("\n".join(found) if found else "the walls stand")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
