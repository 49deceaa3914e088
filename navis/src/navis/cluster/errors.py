"""What a cluster reports beyond an index's errors."""

from __future__ import annotations

from collections.abc import Mapping

from shorthaul.errors import Fault


class ShardLost(Fault):
    """A shard does not answer: its process, or the machine it was on, died (exit code 1).

    Attributes:
        shards: Which, ascending.
    """

    def __init__(self, reasons: Mapping[int, str], of: int, advice: str) -> None:
        self.shards = tuple(sorted(reasons))
        told = "; ".join(f"shard {number} of {of}: {reasons[number]}" for number in self.shards)
        super().__init__(f"{told}; {advice}")
