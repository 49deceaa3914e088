"""Prints "passed failed skipped" of a JUnit file: ci/junit_counts.py FILE EXIT_CODE."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def counts(file: Path, code: int) -> tuple[int, int, int]:
    """Passed, failed, skipped; a runner that failed without a failed test counts as one failure."""
    if not file.is_file():
        return 0, 1, 0
    passed = failed = skipped = 0
    for case in ET.parse(file).getroot().iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"} or case.get("status") == "fail":
            failed += 1
        elif "skipped" in outcomes or case.get("status") in {"notrun", "disabled"}:
            skipped += 1
        else:
            passed += 1
    if code != 0 and failed == 0:
        failed = 1
    return passed, failed, skipped


if __name__ == "__main__":
    print(*counts(Path(sys.argv[1]), int(sys.argv[2])))
