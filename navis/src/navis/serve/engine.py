"""The index and the threads that work on it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from navis.serve.errors import Refused, busy

if TYPE_CHECKING:
    from navis.index import Index

T = TypeVar("T")


class Engine:
    """Runs calls of an index in threads; the engine gives the GIL back while it works.

    Searches and changes have threads of their own, so that inserts which wait for the disk keep no
    search waiting; so do metrics, which are wanted most when everything waits.

    Attributes:
        index: Open; closed by `close`.
        readonly: Changes are refused.
        durability: Of an insert that was answered.
        stopping: No new request is taken.
    """

    def __init__(
        self, index: Index, *, threads: int = 8, readonly: bool = False, durability: str = "sync"
    ) -> None:
        self.index, self.readonly, self.durability = index, readonly, durability
        self.stopping = False
        self._readers = ThreadPoolExecutor(threads, "navis-search")
        self._writers = ThreadPoolExecutor(threads, "navis-change")
        self._watcher = ThreadPoolExecutor(1, "navis-watch")

    async def read(self, work: Callable[[Index], T]) -> T:
        """Give what `work` gives, run in a thread."""
        return await self._run(self._readers, work)

    async def watch(self, work: Callable[[Index], T]) -> T:
        """The same for what must be answered however much there is to do."""
        return await self._run(self._watcher, work)

    async def write(self, work: Callable[[Index], T]) -> T:
        """The same for a change; it returns when the change is acknowledged."""
        self.check_writable()
        return await self._run(self._writers, work)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[Index], T]) -> T:
        call = functools.partial(_quietly, work, self.index)
        try:
            future = asyncio.get_running_loop().run_in_executor(pool, call)
        except RuntimeError as error:  # the pool has been shut down
            raise busy("the server is shutting down") from error
        return await future

    def check_writable(self) -> None:
        """Refuse a change where there are none."""
        if self.readonly:
            raise Refused(403, "this server is read-only")

    def stop(self) -> None:
        """Take no further request."""
        self.stopping = True

    def close(self) -> None:
        """Wait for the calls under way, then make everything durable and close the index.

        Calls that have not begun are dropped: nobody waits for them any more.
        """
        self.stop()
        for pool in (self._readers, self._writers, self._watcher):
            pool.shutdown(wait=True, cancel_futures=True)
        self.index.close()


def _quietly(work: Callable[[Index], T], index: Index) -> T:
    # 1e300 as float32 is infinite, which the index refuses; numpy need not say it too.
    with np.errstate(all="ignore"):
        return work(index)
