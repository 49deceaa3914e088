"""Tiles that are stepped while the backward pass still runs, in the hope that nothing forbids it.

A step can only be known when all gradients are there: their norm may have to be clipped, one may
hold NaN, the loop may change a learning rate. Mostly nothing of it happens. So each tile is updated
as soon as its gradients are complete, beside the committed state as always, and `step()` looks
whether all was as supposed: then it is left to commit, else the devices forget it and the step is
taken as if nothing had been (speculation-then-validation, as in SuperOffload; here on storage,
where two extents a tile make it free).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from shorthaul import logs

from smart_infinity import _core
from smart_infinity.hooks import Hooks
from smart_infinity.layout import BYTES, Tile
from smart_infinity.parameters import local

if TYPE_CHECKING:
    from smart_infinity.client import Device
    from smart_infinity.optimizer import SmartOptimizer
    from smart_infinity.wire import Frame

_LONGEST = 64
_log = logs.get(__name__)

Mark = tuple[int, int, int]


def _mark(gradient: torch.Tensor) -> Mark:
    """Tell a gradient from one that was written to, be it where torch does not count (`.data`)."""
    own = local(gradient)
    flat = own.detach().contiguous().cpu().reshape(-1)
    return own.data_ptr(), own._version, _core.page_sum(flat.view(torch.uint8).numpy())


class Speculation:
    """What has been stepped of the step to come.

    Attributes:
        kept: Steps whose tiles were stepped ahead, and stood.
        taken_back: Steps whose tiles were stepped ahead for nothing.
    """

    def __init__(self, optimizer: SmartOptimizer) -> None:
        self.optimizer: SmartOptimizer = weakref.proxy(optimizer)  # hooks keep nobody alive
        self.hooks = Hooks(optimizer.parameters.tensors, self._complete)
        self.kept = self.taken_back = 0
        self._tiles: list[list[Tile]] = [[] for _ in optimizer.parameters.tensors]
        for tile in optimizer.layout.tiles:
            for number in {piece.parameter for piece in tile.pieces}:
                self._tiles[number].append(tile)
        self._up: dict[int, npt.NDArray[np.uint8]] = {}  # by tile: room for its new parameters
        # Who had a gradient in the step before, if that one would have stood; else nobody.
        self._last: list[bool] = []
        self._pause, self._next_pause = 0, 1  # steps without, longer with each one taken back
        self._reset()

    def _reset(self) -> None:
        count = len(self.optimizer.parameters)
        self._passes = [0] * count
        self._marks: list[Mark | None] = [None] * count
        self._missing: dict[int, int] = {}  # by tile: gradients that have not come
        self._ready: deque[Tile] = deque()  # complete, and not sent
        self._sent: set[int] = set()
        self._came: deque[Tile] = deque()  # stepped; their parameters are in _up
        self._begun: dict[str, Any] | None = None  # the step that is supposed to come
        self._broken = not self._last  # nothing is supposed any more until the next step

    # ------------------------------------------------------------------ in the backward pass

    @torch.no_grad()
    def _complete(self, i: int, param: torch.Tensor) -> None:
        with self.optimizer._one:
            self._note(i, param.grad)

    def _note(self, i: int, gradient: torch.Tensor | None) -> None:
        wanted = self.optimizer.accumulation_steps
        self._passes[i] += 1
        more = self._passes[i] > wanted or self._marks[i] is not None  # than a step has
        if gradient is None or gradient.is_sparse or more:
            self._broken = True
            return
        if self._passes[i] < wanted or self._pause > 0:
            return
        self._marks[i] = _mark(gradient)
        if self._broken:
            return
        if not self._last[i]:
            self._broken = True
            return
        for tile in self._tiles[i]:
            if id(tile) not in self._missing:
                numbers = {piece.parameter for piece in tile.pieces}
                self._missing[id(tile)] = sum(self._last[number] for number in numbers)
            self._missing[id(tile)] -= 1
            if self._missing[id(tile)] == 0:
                self._ready.append(tile)
        try:
            self._send()
        except Exception as error:
            # step() does without it, and says what is wrong where it can be caught.
            _log.debug("nothing more is stepped ahead: %s", error)
            self._broken = True
        except BaseException:  # an interrupt: perhaps of a tile that was as good as sent
            self._broken = True
            raise

    def _send(self) -> None:
        """Send what is complete, as far as slots are free."""
        optimizer = self.optimizer
        optimizer.array.check_usable()
        if self._begun is None:
            if optimizer.array.settling:  # or failed to: step() will say so
                return
            optimizer.array.settle()
            if optimizer._changes.any():
                self._broken = True
                return
            optimizer._active, optimizer._scale = list(self._last), 1.0
            body = optimizer._plan(1.0)
            optimizer._flow.begin(optimizer.array.step + 1, body)
            for device in optimizer.array.devices:
                device.on_answer = self._answered
            self._begun = body
        for _ in range(len(self._ready)):
            tile = self._ready.popleft()
            slot = optimizer.array.devices[tile.device].try_acquire()
            if slot is None:
                self._ready.append(tile)
                continue
            self._sent.add(id(tile))
            optimizer._flow.send_update(tile, optimizer._fill, slot)

    def _answered(self, device: Device, frame: Frame) -> bool:
        return self.optimizer._flow.updated(device, frame, self._keep)

    def _keep(self, tile: Tile, area: memoryview) -> None:
        """On a device's receiving thread; the backward pass may need the old ones still."""
        length = tile.elements * BYTES[tile.dtype]
        room = self._up.get(id(tile))
        if room is None:
            room = self._up[id(tile)] = np.empty(length, np.uint8)
        room[:] = np.frombuffer(area, np.uint8, length)
        self._came.append(tile)

    # ------------------------------------------------------------------ in step()

    def stands(self, body: dict[str, Any]) -> bool:
        """Tell whether what was supposed is what is to be done: the step of `body`.

        Where it is not, the devices have forgotten it.
        """
        optimizer = self.optimizer
        self.hooks.watch()  # who was frozen until now
        active, tensors = optimizer._active, optimizer.parameters.tensors

        def as_it_was(i: int) -> bool:
            gradient = tensors[i].grad
            if gradient is None or not active[i]:
                return self._passes[i] == 0
            if gradient.is_sparse:
                return False
            whole = self._passes[i] == optimizer.accumulation_steps
            return whole and self._marks[i] == _mark(gradient)

        # In a pause nobody asks, and no gradient is looked at.
        good = (
            self._pause == 0
            and body["clip"] == 1.0
            and all(as_it_was(i) for i in range(len(tensors)))
        )
        if good and body == self._begun and not self._broken and not optimizer._changes.any():
            return True
        self.forget()
        self._last = list(active) if good and self._pause == 0 else []
        self._pause = max(self._pause - 1, 0)
        self._reset()
        return False

    def finish(self, tiles: Sequence[Tile]) -> None:
        """Step the rest of the tiles, and give the model all new parameters."""
        optimizer = self.optimizer
        if optimizer.array.failure is not None:  # before the model is touched
            raise optimizer.array.failure
        self._ready = deque(tile for tile in tiles if id(tile) not in self._sent)
        try:
            while self._came:
                self._send()
                self._hand_over()
            optimizer._flow.update(list(self._ready), optimizer._fill, optimizer._take)
            while self._came:
                self._hand_over()
            if optimizer.array.failure is None and not optimizer._flow.not_finite:
                self.kept += 1
                self._next_pause = 1
        finally:
            self._reset()

    def _hand_over(self) -> None:
        tile = self._came.popleft()
        self.optimizer._take(tile, self._up[id(tile)].data)

    def forget(self) -> None:
        """Have the devices forget what was stepped ahead, if anything was."""
        try:
            if self._begun is not None:
                self.taken_back += 1
                self._pause = self._next_pause
                self._next_pause = min(2 * self._next_pause, _LONGEST)
                self._last = []
                self.optimizer.array.abandon()
                for device in self.optimizer.array.devices:
                    device.on_answer = None
        finally:
            self._reset()
