"""Ranks that train one model together (torch.distributed): what they agree on and hand round.

With whole parameters on every rank (DDP) each rank keeps and steps the state of a share of them and
hands its new parameters to the others (ZeRO-1). Sharded parameters (FSDP2) are each rank's own
affair. Either way a step happens on all ranks or on none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from shorthaul import logs
from shorthaul.errors import Fault, UserError

from smart_infinity.errors import NotFinite
from smart_infinity.layout import Layout, Tile

if TYPE_CHECKING:
    from smart_infinity.optimizer import SmartOptimizer

_log = logs.get(__name__)
_TIMEOUT = timedelta(minutes=30)  # a rank's last gradient tile may come long after another's
_CLASSES: tuple[type[Exception], ...] = (NotFinite, UserError, Fault)  # the nearest one first


def ranks_of(group: Any, params: Sequence[torch.Tensor]) -> Ranks | None:
    """Give the ranks that step these parameters together, or None where it is this one alone."""
    sharded = any(hasattr(param, "to_local") for param in params)
    if not dist.is_available() or not dist.is_initialized():
        return None
    if group is None and not sharded:
        if dist.get_world_size() > 1 and dist.get_rank() == 0:
            _log.warning(
                "every rank keeps all of the optimizer's state: give process_group to share it"
            )
        return None
    group = dist.group.WORLD if group is None else group
    return Ranks(group, sharded=sharded) if dist.get_world_size(group) > 1 else None


class Ranks:
    """The ranks of a group, over connections of their own (gloo).

    Attributes:
        rank: This one's number in the group.
        size: How many there are.
        sharded: Whether each holds its own part of the parameters, or all hold all of them.
    """

    def __init__(self, group: Any, *, sharded: bool) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sharded = sharded
        members = dist.get_process_group_ranks(group)
        # Of the optimizer alone, and one for the thread that commits: collectives of two threads,
        # or of the training, would mix in one group.
        self._main, self._committing = (
            dist.new_group(
                members, timeout=_TIMEOUT, backend="gloo", use_local_synchronization=True,
                group_desc=f"smart_infinity {name}",
            )
            for name in ("steps", "commits")
        )  # fmt: skip

    # ------------------------------------------------------------------ agreement

    def gather(self, value: Any) -> list[Any]:
        """Give every rank's value, in the order of the ranks."""
        found: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(found, value, group=self._main)
        return found

    def agree(self, error: Exception | None, *, committing: bool = False) -> None:
        """Raise on every rank when there is an error on any: here its own, else another's."""
        group = self._committing if committing else self._main
        failed = torch.tensor([int(error is not None)])
        try:
            with _peers():
                dist.all_reduce(failed, dist.ReduceOp.MAX, group=group)
                if not failed.item():
                    return
                kind = next((i for i, c in enumerate(_CLASSES) if isinstance(error, c)), -1)
                said: list[Any] = [None] * self.size
                dist.all_gather_object(said, error and (kind, str(error)), group=group)
        except Fault:
            if error is not None:  # what ended the others, most likely
                raise error from None
            raise
        if error is not None:
            raise error
        rank, (kind, message) = next((r, one) for r, one in enumerate(said) if one is not None)
        raise (_CLASSES[kind] if kind >= 0 else Fault)(f"rank {rank}: {message}")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on every rank; an error in it on any rank is raised on all."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self.agree(error)

    def same(self, what: str, number: int) -> None:
        """Refuse (Fault) to go on when ranks have different numbers for what must be the same."""
        extremes = torch.tensor([number, -number])
        with _peers():
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self._main)
        if extremes[0] != -extremes[1]:
            raise Fault(f"ranks differ in {what}: {self.gather(number)}")

    # ------------------------------------------------------------------ ZeRO-1

    def spread(
        self,
        rounds: Iterator[tuple[Tile | None, ...]],
        types: dict[str, torch.dtype],
        read: Callable[[Tile, torch.Tensor], None],
        write: Callable[[Tile, torch.Tensor], None],
    ) -> None:
        """Hand every rank's tiles to all others.

        Args:
            rounds: See `rounds`.
            types: torch's of the layout's.
            read: Copies a tile of this rank into a buffer.
            write: Takes a tile of another rank.
        """
        for tiles in rounds:
            there = [tile for tile in tiles if tile is not None]
            dtype, elements = types[there[0].dtype], max(tile.elements for tile in there)
            mine = torch.zeros(elements, dtype=dtype)
            own = tiles[self.rank]
            if own is not None:
                read(own, mine[: own.elements])
            found = [torch.empty_like(mine) for _ in tiles]
            with _peers():  # as bytes: gloo does not know every type
                dist.all_gather(
                    [one.view(torch.uint8) for one in found], mine.view(torch.uint8),
                    group=self._main,
                )  # fmt: skip
            for rank, tile in enumerate(tiles):
                if rank != self.rank and tile is not None:
                    write(tile, found[rank][: tile.elements])

    def add_up(self, part: torch.Tensor) -> None:
        """Put together a float32 tensor of which each rank has some elements, the rest being 0."""
        with _peers():  # as integers: a negative zero stays one
            dist.all_reduce(part.view(torch.int32), group=self._main)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Say in one line that another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise Fault(f"another rank is gone or silent: {str(error).splitlines()[0]}") from error


def rounds(
    whole: Layout, firsts: Sequence[int], wanted: Callable[[Tile], bool]
) -> Iterator[tuple[Tile | None, ...]]:
    """Deal the tiles that are wanted to rounds: in each, at most one a rank, all of one type.

    `firsts` gives the number of each rank's first device.
    """
    for dtype in dict.fromkeys(tile.dtype for tile in whole.tiles):
        queues: list[list[Tile]] = [[] for _ in firsts]
        for tile in whole.tiles:
            if tile.dtype == dtype and wanted(tile):
                owner = max(rank for rank, first in enumerate(firsts) if first <= tile.device)
                queues[owner].append(tile)
        for number in range(max(map(len, queues))):
            yield tuple(queue[number] if number < len(queue) else None for queue in queues)


def like(param: Any, local: torch.Tensor) -> torch.Tensor:
    """Give this rank's part of a tensor that is sharded as `param` is; a scalar stays one."""
    if local.shape != param.to_local().shape or not local.dim():
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, param.device_mesh, param.placements, run_check=False, shape=param.shape,
        stride=param.stride(),
    )  # fmt: skip


def whole_state_dict(optimizer: SmartOptimizer) -> dict[str, Any]:
    """Give the complete state on every rank, where each has a share (DDP); all ranks must call it.

    Any number of ranks, and torch's own optimizer, can load it. It takes as much memory as the
    state.
    """
    packed = optimizer.state_dict()
    if packed.pop("share", None) is None:
        return packed
    assert optimizer.ranks is not None
    for one in packed["state"].values():
        for name, value in one.items():
            if name != "step":
                optimizer.ranks.add_up(value)
    return packed
