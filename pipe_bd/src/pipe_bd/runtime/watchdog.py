"""Signs of life between ranks.

A rank that dies or is stopped ends all others, by name, within the deadline.

On one machine torchrun already ends the others when a process exits. This covers what it cannot
see: a stopped rank, and ranks under another machine's agent. It uses a store and a thread of its
own, so it beats while the main thread computes or waits; a module that computes forever is not
missed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from shorthaul import atomic

from pipe_bd.runtime.world import World

EXIT_LOST = 1
BEAT_S = 1.0


def _end(rank: int, role: str, why: str) -> None:
    """Leave at once; the launcher, where there is one, says the line once for all ranks."""
    folder = os.environ.get("SHORTHAUL_ERROR_DIR")
    if folder is None:
        sys.stderr.write(f"pipe-bd: error: lost rank {rank} ({role}): {why}\n")
        sys.stderr.flush()
    else:
        entry = {
            "rank": rank,
            "kind": "Lost",
            "message": f"{why} ({role})",
            "exit_code": EXIT_LOST,
            "at": time.time(),
            "trace": "",
        }
        path = Path(folder) / f"rank{rank}.json"
        with contextlib.suppress(OSError):
            if not path.exists():  # it may have said itself why it left
                atomic.write_json(path, entry)
    os._exit(EXIT_LOST)


class Watchdog:
    """Beats for this rank and watches the others until :meth:`close`.

    Args:
        world: the ranks.
        roles: what each rank does, for the message, e.g. "stage 1: blocks 4-6".
        deadline_s: silence after which a rank counts as lost.
        end: called with the lost rank, its role and why; by default it says so and exits the
            process at once.
    """

    def __init__(
        self,
        world: World,
        roles: list[str],
        deadline_s: float,
        end: Callable[[int, str, str], None] = _end,
    ) -> None:
        self.world, self.roles, self.deadline_s, self.end = world, roles, deadline_s, end
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if world.size == 1:
            return
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        wait = timedelta(seconds=max(5.0, deadline_s / 2))
        port = [0]
        if world.rank == 0:  # first, on a port the system picks: nobody has to try again
            self._store = dist.TCPStore(host, 0, None, True, timeout=wait, wait_for_workers=False)
            port = [self._store.port]
        dist.broadcast_object_list(port, src=0, group=world.control())
        if world.rank != 0:
            self._store = dist.TCPStore(host, port[0], None, False, timeout=wait)
        self._store.set(f"beat/{world.rank}", "0")
        world.barrier()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        me, size = self.world.rank, self.world.size
        keys = [f"beat/{r}" for r in range(size)]
        seen = [(b"", time.monotonic()) for _ in range(size)]
        beat = 0
        while not self._stop.wait(BEAT_S):
            beat += 1
            try:
                self._store.set(keys[me], str(beat))
                values = self._store.multi_get(keys)
            except (RuntimeError, dist.DistError):
                if not self._stop.is_set():
                    self.end(0, self.roles[0], "its connection closed")
                return
            now = time.monotonic()
            for r, value in enumerate(values):
                if value != seen[r][0]:
                    seen[r] = (value, now)
                elif r != me and now - seen[r][1] > self.deadline_s:
                    self.end(r, self.roles[r], f"no sign of life for {self.deadline_s:.0f} s")
                    return

    def abandon(self) -> None:
        """Stop beating without a word to the others: this rank failed and will not go on."""
        self._stop.set()

    def close(self) -> None:
        """Stop beating; every rank must call it, so that silence is not taken for death."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        # Rank 0 holds the store: it leaves last.
        self.world.barrier()
