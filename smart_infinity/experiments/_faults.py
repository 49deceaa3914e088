"""Disks that fail on request: a library preloaded into devices spoils their calls on one file.

The library is compiled here. Devices use pread and pwrite then, since what io_uring does passes no
library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shorthaul.errors import EnvironmentLack

SOURCE = Path(__file__).with_name("_faults.c")
EMULATED = "errors of a disk, and short transfers, by a library preloaded into the device"


@dataclass(frozen=True)
class Fault:
    """What goes wrong: calls of a kind, after so many that do not, with an error or short.

    Attributes:
        call: read, write or sync.
        code: The error's number; 0: half of the bytes move, again and again.
    """

    call: str
    after: int
    code: int


FAULTS = {
    "a write fails: EIO": Fault("write", 0, errno.EIO),
    "a later write fails: EIO": Fault("write", 7, errno.EIO),
    "a write finds no space: ENOSPC": Fault("write", 2, errno.ENOSPC),
    "a read fails: EIO": Fault("read", 0, errno.EIO),
    "a later read fails: EIO": Fault("read", 5, errno.EIO),
    "the sync of prepare fails: EIO": Fault("sync", 0, errno.EIO),
    "the sync of commit fails: EIO": Fault("sync", 1, errno.EIO),
    "every read is short": Fault("read", 0, 0),
    "every write is short": Fault("write", 0, 0),
}


def library(folder: Path) -> Path:
    """Compile the library into a folder.

    Raises:
        EnvironmentLack: There is no compiler, or it failed.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise EnvironmentLack("no C compiler: apt-get install gcc")
    made = folder.absolute() / "faults.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentLack(f"{compiler} failed: {done.stderr.strip().splitlines()[-1:]}")
    return made


class Spoiler:
    """Devices started within `armed` have the fault in them; `begin` lets it happen."""

    def __init__(self, library: Path, fault: Fault, file: Path, trigger: Path) -> None:
        self.library, self.fault = library, fault
        self.file, self.trigger = file.absolute(), trigger.absolute()

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Let devices that are started here obey."""
        self.trigger.unlink(missing_ok=True)
        given = {
            "LD_PRELOAD": str(self.library),
            "SHORTHAUL_IO": "posix",
            "SMART_FAULTS_FILE": str(self.file),
            "SMART_FAULTS_TRIGGER": str(self.trigger),
            "SMART_FAULTS_CALL": self.fault.call,
            "SMART_FAULTS_AFTER": str(self.fault.after),
            "SMART_FAULTS_ERRNO": str(self.fault.code),
        }
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def begin(self) -> None:
        """Let it happen from now on."""
        self.trigger.touch()

    @property
    def spoiled(self) -> int:
        """How many calls were spoiled."""
        return self.trigger.stat().st_size if self.trigger.exists() else 0
