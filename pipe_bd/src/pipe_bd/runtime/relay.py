"""Relay of boundary tensors between two stages, with row-range resharding and back-pressure.

A stage of g_p ranks holds the rows of a batch in g_p contiguous ranges; the next stage wants g_c
ranges. Each sender sends to each receiver just the rows both hold. A receiver posts up to ``depth``
receives ahead; a sender keeps at most ``depth`` batches outstanding and then waits for the oldest,
so a slow stage slows its producer instead of filling memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from shorthaul.errors import Fault
from torch import Tensor

from pipe_bd.blocks import Boundary
from pipe_bd.counters import Clock
from pipe_bd.plan import row_ranges


def overlaps(batch: int, senders: int, receivers: int) -> list[tuple[int, int, int, int]]:
    """Which rows go from whom to whom.

    (sender, receiver, lo, hi), by sender then receiver, empty ranges left out.
    """
    table = []
    for s, (a, b) in enumerate(row_ranges(batch, senders)):
        for r, (c, d) in enumerate(row_ranges(batch, receivers)):
            lo, hi = max(a, c), min(b, d)
            if lo < hi:
                table.append((s, r, lo, hi))
    return table


def _wait(work: dist.Work, peer: int) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise Fault(f"lost rank {peer}: {str(error).splitlines()[0][:160]}") from error


class Sender:
    """The sending end of one cut, for one rank of the producing stage.

    Args:
        me: index of this rank within its stage.
        senders: ranks of the producing stage.
        receivers: ranks of the consuming stage.
        depth: most batches outstanding.
        clock: counts bytes, messages and waiting.
        name: of the cut, e.g. "0->1".
    """

    def __init__(
        self,
        me: int,
        senders: Sequence[int],
        receivers: Sequence[int],
        depth: int,
        clock: Clock,
        name: str,
    ) -> None:
        self.me, self.senders, self.receivers = me, list(senders), list(receivers)
        self.depth, self.clock, self.name = depth, clock, name
        self.outstanding: deque[list[tuple[dist.Work, int, Tensor]]] = deque()

    def send(self, tensors: Sequence[Tensor], batch_rows: int) -> None:
        """Hand this rank's rows to the transport and return.

        Args:
            tensors: contiguous, each (local rows, ...); kept alive until the receivers have taken
                them.
            batch_rows: rows of the whole batch.
        """
        while len(self.outstanding) >= self.depth:
            self._wait_oldest()
        first = row_ranges(batch_rows, len(self.senders))[self.me][0]
        works = []
        counters = self.clock.counters
        for s, r, lo, hi in overlaps(batch_rows, len(self.senders), len(self.receivers)):
            # The reader of a stream belongs to the stage it feeds: its own rows do not travel.
            if s != self.me or self.receivers[r] == self.senders[s]:
                continue
            for t in tensors:
                piece = t[lo - first : hi - first]
                peer = self.receivers[r]
                work = dist.isend(piece, peer)
                assert work is not None
                works.append((work, peer, piece))
                counters.relay_bytes[self.name] += piece.numel() * piece.element_size()
                counters.relay_messages += 1
        self.outstanding.append(works)
        counters.peak_sends = max(counters.peak_sends, len(self.outstanding))

    def _wait_oldest(self) -> None:
        with self.clock.span("send_wait"):
            for work, peer, _ in self.outstanding.popleft():
                _wait(work, peer)

    def close(self) -> None:
        """Wait until everything sent has been taken."""
        while self.outstanding:
            self._wait_oldest()


class Receiver:
    """The receiving end of one cut, for one rank of the consuming stage.

    Buffers form a ring of ``depth + 1``: one in use, the rest posted. A buffer is posted again only
    once the next batch is asked for, since autograd reads the received boundary until the backward
    pass of its step has ended.

    Args:
        me: index of this rank within its stage.
        senders: ranks of the producing stage.
        receivers: ranks of the consuming stage.
        boundaries: what is received per batch, in the sender's order.
        batch_rows: rows per batch.
        steps: the range of steps that will be received.
        depth: receives posted ahead.
        clock: counts waiting.
        device: where the buffers live.
    """

    def __init__(
        self,
        me: int,
        senders: Sequence[int],
        receivers: Sequence[int],
        boundaries: Sequence[Boundary],
        batch_rows: int,
        steps: range,
        depth: int,
        clock: Clock,
        device: torch.device,
    ) -> None:
        self.me, self.senders, self.receivers = me, list(senders), list(receivers)
        self.batch_rows, self.steps, self.clock = batch_rows, steps, clock
        lo, hi = row_ranges(batch_rows, len(self.receivers))[me]
        self.first, self.rows = lo, hi - lo
        self.slots = [
            [torch.empty((self.rows, *b.shape), dtype=b.dtype, device=device) for b in boundaries]
            for _ in range(min(depth + 1, max(1, len(steps))))
        ]
        self.posted: dict[int, list[tuple[dist.Work, int]]] = {}
        # One slot stays free for the batch in use: exactly ``depth`` receives are posted ahead of
        # it.
        self._ahead = max(1, len(self.slots) - 1)
        for step in steps[: self._ahead]:
            self._post(step)

    def _post(self, step: int) -> None:
        slot = self.slots[(step - self.steps.start) % len(self.slots)]
        works = []
        for s, r, lo, hi in overlaps(self.batch_rows, len(self.senders), len(self.receivers)):
            if r != self.me:
                continue
            for buffer in slot:
                peer = self.senders[s]
                work = dist.irecv(buffer[lo - self.first : hi - self.first], peer)
                assert work is not None
                works.append((work, peer))
        self.posted[step] = works
        counters = self.clock.counters
        counters.peak_receives = max(counters.peak_receives, len(self.posted))

    def receive(self, step: int) -> list[Tensor]:
        """The rows of batch ``step`` of this rank; valid until the next call.

        Calling it says that the previous batch is no longer read, so its buffer is posted again.
        """
        with self.clock.span("recv_wait", step=step):
            for work, peer in self.posted.pop(step):
                _wait(work, peer)
        if step + self._ahead in self.steps:
            self._post(step + self._ahead)
        return self.slots[(step - self.steps.start) % len(self.slots)]
