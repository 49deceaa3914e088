"""What is there after some steps of a runbook, without a bit for every vector."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from shorthaul.errors import UserError


class Ranges:
    """A set of whole numbers as sorted ranges [start, end) that neither meet nor overlap."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, start: int, end: int, at: str) -> None:
        """Add numbers none of which is there yet; `at` begins the error's message."""
        low, high = bisect_left(self.ends, start), bisect_right(self.starts, end)
        for other, last in zip(self.starts[low:high], self.ends[low:high], strict=True):
            if max(start, other) < min(end, last):
                raise UserError(
                    f"{at}: inserts {max(start, other)} to {min(end, last) - 1}, which are there "
                    "already; delete them first or replace them"
                )
        joined = (min([start, *self.starts[low:high]]), max([end, *self.ends[low:high]]))
        self.starts[low:high], self.ends[low:high] = [joined[0]], [joined[1]]

    def find(self, start: int, end: int, at: str) -> int:
        """Which range holds all of [start, end)."""
        index = bisect_right(self.starts, start) - 1
        covered = self.ends[index] if index >= 0 else 0
        if covered < end:
            raise UserError(f"{at}: tag {max(start, covered)} is not there; insert it first")
        return index

    def remove(self, start: int, end: int, at: str) -> None:
        """Remove numbers all of which are there."""
        index = self.find(start, end, at)
        first, last = self.starts[index], self.ends[index]
        left = [(a, b) for a, b in ((first, start), (end, last)) if a < b]
        self.starts[index : index + 1] = [a for a, _ in left]
        self.ends[index : index + 1] = [b for _, b in left]
