"""A thread that commits behind the caller's back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class _Done(threading.Event):
    error: BaseException | None = None


class Committer:
    """Does one piece of work at a time; the caller looks at how it went before the next.

    One thread for all of them, begun with the first: to start one takes time of each step.
    """

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[Callable[[], None], _Done] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._last: _Done | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Have it done; `settle` was called after the work before."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_do_all, args=(self._given,), name="committer", daemon=True
            )
            self._thread.start()
        self._last = _Done()
        self._given.put((work, self._last))

    @property
    def busy(self) -> bool:
        """Whether the last work is still under way."""
        return self._last is not None and not self._last.is_set()

    @property
    def failed(self) -> bool:
        """Whether the last work has ended with an error that nobody was told yet."""
        return self._last is not None and self._last.is_set() and self._last.error is not None

    def settle(self) -> bool:
        """Wait for the last work and tell whether there was any; its error is raised, once."""
        if self._last is None:
            return False
        self._last.wait()
        done, self._last = self._last, None
        if done.error is not None:
            raise done.error
        return True

    def end(self) -> None:
        """Let the thread end after what it has been given."""
        self._given.put(None)


def _do_all(given: queue.SimpleQueue[tuple[Callable[[], None], _Done] | None]) -> None:
    while (one := given.get()) is not None:
        work, done = one
        try:
            work()
        except BaseException as error:
            done.error = error
        done.set()
        del one, work, done  # and what they hold, while the next is waited for
