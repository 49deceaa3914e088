"""Asynchronous file I/O: io_uring where the kernel grants it, a pool of threads where not.

The C++ side is `shorthaul/uring.hpp`; this is its thin Python face. Transfers are between a `File`
and flat arrays of uint8; with O_DIRECT offset, size and memory are multiples of `ALIGNMENT`, and
`buffer()` makes such memory. A request's array is kept alive until its completion is handed out. A
ring belongs to one thread at a time. Results are the same with both backends.

    file, ring, page = File("index.bin"), Ring(depth=64), buffer(4096)
    ring.read(file, 8192, page, tag=7)
    (done,) = ring.submit_and_wait(1)  # done.tag == 7; done.error is 0, or an errno
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from shorthaul import _uring, logs
from shorthaul._uring import ALIGNMENT, Backend, Completion, File, Mode, buffer
from shorthaul.errors import EnvironmentLack

__all__ = [
    "ALIGNMENT", "Backend", "Buffer", "Completion", "Counters", "File", "Mode", "Ring", "buffer",
    "cmake_dir", "is_available", "unavailable_reason",
]  # fmt: skip

Buffer = NDArray[np.uint8]
_told: set[str] = set()


class Counters(NamedTuple):
    """What a ring did; `shorthaul/uring.hpp` defines the fields."""

    reads: int
    writes: int
    syncs: int
    read_bytes: int
    write_bytes: int
    continued: int
    submits: int
    waits: int


class Ring(_uring.Ring):
    """A queue of reads, writes and syncs, `depth` in flight at most (one more is a ValueError).

    Args:
        depth: Requests queued or in flight at most.
        backend: `automatic` takes io_uring, or the threads with one logged `reason`; the
            environment variable SHORTHAUL_IO=uring|posix decides instead. `uring` is an OSError
            where it is refused.
        posix_threads: Threads of the fallback.
    """

    def __init__(
        self, depth: int = 256, backend: Backend = Backend.automatic, posix_threads: int = 4
    ) -> None:
        super().__init__(depth, backend, posix_threads)
        if backend is Backend.automatic and self.reason and self.reason not in _told:
            _told.add(self.reason)
            logs.get(__name__).info("files are read by threads, not by io_uring: %s", self.reason)

    @property
    def counters(self) -> Counters:
        """The counts so far; they stay as they are."""
        return Counters(*self._counters())


def is_available() -> bool:
    """Tell whether this process may use io_uring."""
    return _uring.availability()[0]


def unavailable_reason() -> str:
    """Tell why this process may not use io_uring; empty where it may."""
    return _uring.availability()[1]


def cmake_dir() -> Path:
    """Give the folder of `uring.cmake`, which another package's CMakeLists.txt includes."""
    here = Path(__file__).resolve().parent
    for folder in (here / "cpp", here.parents[1] / "cpp"):  # installed; this repository
        if (folder / "uring.cmake").is_file():
            return folder
    raise EnvironmentLack(f"no uring.cmake beside {here}; reinstall shorthaul-common")
