"""A step's data flow: which bytes cross the link, in which order.

Two flows with one interface, so that a comparison isolates where the update happens. Near storage
(SmartUpdate): gradients down, parameters up. On the host (ZeRO-Infinity's way): gradients down,
then state and gradients up, then state down again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from smart_infinity import _core, wire
from smart_infinity.array import DeviceArray
from smart_infinity.client import Device
from smart_infinity.core_types import DTYPES as CORE_DTYPES
from smart_infinity.core_types import plan_of, segments_of
from smart_infinity.layout import DTYPES, Tile
from smart_infinity.wire import Frame, Kind

# Puts a tile's gradient into an area and says how many bytes, and which flags (type, TOPK).
Fill = Callable[[Tile, memoryview], tuple[int, int]]
# Takes a tile's new parameters, in the tile's own type. Called on a receiving thread.
Take = Callable[[Tile, memoryview], None]


class Flow(Protocol):
    """One way to take a step."""

    not_finite: list[Tile]
    """Tiles of the last step whose gradient was not finite."""

    def offload(self, tiles: Iterable[Tile], fill: Fill) -> None:
        """Send gradients ahead of the step, to be kept by their devices."""

    def begin(self, step: int, plan: dict[str, Any]) -> None:
        """Say what the step does; `plan` is STEP's body."""

    def update(self, tiles: Iterable[Tile], fill: Fill | None, take: Take) -> list[Tile]:
        """Update tiles and give those that were begun; failures are the array's to tell.

        With `fill` None, by gradients that were sent ahead.
        """


class _Flow:
    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.not_finite: list[Tile] = []
        self._lock = threading.Lock()
        self._of = {id(device): d for d, device in enumerate(array.devices)}

    def tile_of(self, device: Device, index: int) -> Tile:
        """Give the tile that a device numbers `index`."""
        layout = self.array.layout
        return layout.tiles[layout.by_device[self._of[id(device)]][index]]

    def send(
        self, kind: Kind, tile: Tile, fill: Fill | None, flags: int = 0, slot: int | None = None
    ) -> None:
        """Fill a slot, acquired here unless it is given, and submit the job."""
        device = self.array.devices[tile.device]
        if slot is None:
            slot = device.acquire()
        length = 0
        try:
            if fill is not None:
                assert device.slots is not None
                length, more = fill(tile, device.slots.down(slot))
                flags |= more
        except BaseException:
            device.release(slot)
            raise
        device.submit(kind, slot, tile.index, length, flags)

    def offload(self, tiles: Iterable[Tile], fill: Fill) -> None:
        """See `Flow`."""
        for tile in tiles:
            self.send(Kind.LAND, tile, fill)
            if self.array.failure is not None:
                return

    @contextlib.contextmanager
    def answering(self, on_answer: Callable[[Device, Frame], bool]) -> Iterator[None]:
        """Route answers; at the end wait for all, and keep nothing of who was told them."""
        for device in self.array.devices:
            device.on_answer = on_answer
        try:
            yield
            self.array.wait_idle()
        finally:
            for device in self.array.devices:
                device.on_answer = None


class NearStorage(_Flow):
    """Updates on the devices."""

    def begin(self, step: int, plan: dict[str, Any]) -> None:
        """See `Flow`."""
        self.not_finite.clear()
        self.array.begin(step, plan)

    def update(self, tiles: Iterable[Tile], fill: Fill | None, take: Take) -> list[Tile]:
        """See `Flow`."""
        begun: list[Tile] = []
        with self.answering(lambda device, frame: self.updated(device, frame, take)):
            for tile in tiles:
                begun.append(tile)
                self.send_update(tile, fill)
                if self.array.failure is not None:
                    break
        return begun

    def send_update(self, tile: Tile, fill: Fill | None, slot: int | None = None) -> None:
        """Have a tile updated; its slot, where one is given, was acquired before."""
        kind = Kind.GRADIENT if fill is not None else Kind.RUN
        self.send(kind, tile, fill, DTYPES.index(tile.dtype) << wire.OUT_SHIFT, slot)

    def updated(self, device: Device, frame: Frame, take: Take) -> bool:
        """Hand an answer's parameters on, if it has any (see `client.OnAnswer`)."""
        if frame.kind is Kind.PARAMETERS:
            tile = self.tile_of(device, frame.arg)
            if frame.flags & wire.NOT_FINITE:
                with self._lock:
                    self.not_finite.append(tile)
            assert device.slots is not None
            take(tile, device.slots.up(frame.slot))
        return False


class OnHost(_Flow):
    """Updates on the host: state comes up and goes down again; the baseline."""

    def __init__(self, array: DeviceArray) -> None:
        super().__init__(array)
        layout, kind = array.layout, _core.Kind[array.kind.name]
        moments = _core.Moments[array.state.moments]
        self.steppers = [
            _core.Stepper(
                kind, array.momentum, moments, layout.tile, layout.tile_elements(d),
                segments_of(layout.segments(d)),
            )
            for d in range(layout.devices)
        ]  # fmt: skip
        self.plan: Any = None

    def begin(self, step: int, plan: dict[str, Any]) -> None:
        """See `Flow`; the devices need not know."""
        self.not_finite.clear()
        self.plan = plan_of(_core.Kind[self.array.kind.name], step, plan)

    def update(self, tiles: Iterable[Tile], fill: Fill | None, take: Take) -> list[Tile]:
        """See `Flow`; with `fill`, gradients go down before, as a backward pass would send them."""
        chosen = list(tiles)
        if fill is not None:
            self.offload(chosen, fill)
        self.array.wait_idle()
        everything = (1 << self.array.arrays) - 1
        scratch: dict[int, npt.NDArray[np.uint8]] = {}

        def answered(device: Device, frame: Frame) -> bool:
            if frame.kind is not Kind.STATE:
                return False
            tile, slot = self.tile_of(device, frame.arg), frame.slot
            assert device.slots is not None
            gradient_bytes = self._gradient_bytes(tile)
            record = device.slots.up(slot)[: frame.length - gradient_bytes]
            gradient = device.slots.up(slot)[len(record) : frame.length]
            out = scratch.setdefault(tile.device, np.empty(4 * self.array.layout.tile, np.uint8))
            finite = self.steppers[tile.device].run(
                tile.index, self.plan, gradient, CORE_DTYPES[self._types[id(tile)]], record, out,
                CORE_DTYPES[DTYPES.index(tile.dtype)],
            )  # fmt: skip
            if not finite:
                with self._lock:
                    self.not_finite.append(tile)
            take(tile, out.data)
            device.slots.down(slot)[: len(record)] = record
            flags = everything << wire.MASK_SHIFT
            device.submit(Kind.WRITE, slot, tile.index, len(record), flags)
            return True

        begun: list[Tile] = []
        with self.answering(answered):
            for tile in chosen:
                begun.append(tile)
                self.send(Kind.READ, tile, None, (everything | 0x8) << wire.MASK_SHIFT)
                if self.array.failure is not None:
                    break
        return begun

    def offload(self, tiles: Iterable[Tile], fill: Fill) -> None:
        """See `Flow`."""
        self._types: dict[int, int] = {}

        def noted(tile: Tile, area: memoryview) -> tuple[int, int]:
            length, flags = fill(tile, area)
            self._types[id(tile)] = flags & wire.TYPE_MASK
            return length, flags

        super().offload(tiles, noted)

    def _gradient_bytes(self, tile: Tile) -> int:
        return tile.elements * (4 if self._types[id(tile)] == 0 else 2)
