"""A memory cgroup (version 1) around a process and all it starts; page cache is charged too."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from shorthaul.errors import EnvironmentLack

ROOT = Path("/sys/fs/cgroup/memory")


class MemoryLimit(contextlib.AbstractContextManager["MemoryLimit"]):
    """A limit in bytes, of memory and swap alike.

    Raises:
        EnvironmentLack: No such cgroups here, or no right to make one; the message says which.
    """

    def __init__(self, limit: int) -> None:
        if not (ROOT / "memory.limit_in_bytes").exists():
            raise EnvironmentLack(f"no memory cgroup of version 1 is mounted at {ROOT}")
        self.limit = limit
        self.path = ROOT / f"smart-infinity-{os.getpid()}-{time.monotonic_ns()}"

    def __enter__(self) -> MemoryLimit:
        try:
            self.path.mkdir()
            self._write("memory.limit_in_bytes", self.limit)
            if (self.path / "memory.memsw.limit_in_bytes").exists():
                self._write("memory.memsw.limit_in_bytes", self.limit)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise EnvironmentLack(f"a memory cgroup cannot be made: {error.strerror}") from error
        return self

    def __exit__(self, *error: object) -> None:
        for _ in range(100):  # its last processes may be on their way out
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.05)

    def _write(self, name: str, value: int) -> None:
        (self.path / name).write_text(str(value))

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command within the limit; its output is captured."""
        # The shell enters the group and becomes the command: nothing of it is charged elsewhere.
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.path)]
        return unlimited([*enter, *command])

    def counted(self) -> dict[str, int]:
        """Give `peak` bytes charged at once, how often the limit was met, and what was killed."""
        control = dict(
            line.split() for line in (self.path / "memory.oom_control").read_text().splitlines()
        )
        return {
            "limit": int((self.path / "memory.limit_in_bytes").read_text()),
            "peak": int((self.path / "memory.max_usage_in_bytes").read_text()),
            "met": int((self.path / "memory.failcnt").read_text()),
            "killed": int(control.get("oom_kill", 0)),
        }


def unlimited(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command without a limit; its output is captured."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1800,
    )  # fmt: skip
