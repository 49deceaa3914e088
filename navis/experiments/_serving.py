"""The server as others meet it: `navis serve` in a process of its own, and wrk in front of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from shorthaul.errors import EnvironmentLack, Fault


@dataclass
class Process:
    """The command, serving.

    Attributes:
        child: Its process.
        url: Where it listens.
        about: What it said with `--json`.
    """

    child: subprocess.Popen[str]
    url: str
    about: dict[str, Any]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and give the exit code."""
        self.child.send_signal(number)
        return self.child.wait(120)

    def said(self) -> str:
        """Give what it wrote on its standard error; after its end."""
        assert self.child.stderr
        return self.child.stderr.read()


@contextmanager
def serving(index: Path, *flags: Any, **environment: str) -> Iterator[Process]:
    """Serve an index at a free port while the block runs, then kill what is left."""
    with TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        words = ["serve", index, "--port", 0, "--json", ready, *flags]
        child = subprocess.Popen(
            [sys.executable, "-m", "navis.cli", *map(str, words)],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while not ready.exists():
                if child.poll() is not None:
                    raise Fault(f"navis serve ended: {child.communicate()[1]}")
                time.sleep(0.02)
            about = json.loads(ready.read_text())
            yield Process(child, about["url"], about)
        finally:
            child.kill()
            child.communicate()


def wrk(
    url: str, bodies: Sequence[bytes], media_type: str, seconds: int, token: str | None = None
) -> dict[str, Any]:
    """Post bodies of equal length in turn, from eight connections.

    Returns:
        `requests`, `per_s`, `p50_ms`, `p99_ms`, `max_ms`, `wrong` (answers that are not 200), and
        `broken`: connections refused or broken, and answers that took more than 20 s.
    """
    program = shutil.which("wrk")
    if program is None:
        raise EnvironmentLack("wrk is not installed; Debian and Ubuntu: apt-get install wrk")
    script = str(Path(__file__).with_name("_wrk.lua"))
    with NamedTemporaryFile() as file:
        file.write(b"".join(bodies))
        file.flush()
        words = [program, "-t1", "-c8", f"-d{seconds}s", "--timeout", "20s", "-s", script, url]
        words += ["--", file.name, str(len(bodies[0])), media_type]
        done = subprocess.run(
            words + ([token] if token else []),
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["broken"] = sum(found.pop(kind) for kind in ("connect", "read", "write", "timeout"))
    return found
