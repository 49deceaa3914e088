"""A link slowed to a rate: token buckets that all devices of a host share.

It stands in for the one path between a host and its storage devices; whoever measures with it says
that the link is emulated.
"""

from __future__ import annotations

import threading
import time


class Bucket:
    """Lets bytes through at a rate; callers wait their turn.

    A pause saves nothing up but for two milliseconds, in which a caller gets the next bytes ready
    while a real link would still carry the last; and as much as its sleep has overrun.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.rate = bytes_per_s
        self._lock = threading.Lock()
        self._next = 0.0
        self._overrun = 0.0

    def take(self, count: int) -> None:
        """Wait until so many bytes have passed."""
        if self.rate <= 0:
            return
        with self._lock:
            since = time.monotonic() - 0.002 - self._overrun
            self._next = max(self._next, since) + count / self.rate
            self._overrun = 0.0
            until = self._next
        delay = until - time.monotonic()
        if delay > 0:
            time.sleep(delay)
            self._overrun = time.monotonic() - until


class Shaper:
    """Both directions of the shared link, in bytes a second; 0 is unlimited."""

    def __init__(self, down: float = 0.0, up: float = 0.0) -> None:
        self.down, self.up = Bucket(down), Bucket(up)

    @property
    def active(self) -> bool:
        """Whether anything is slowed."""
        return self.down.rate > 0 or self.up.rate > 0
