"""Whole records of tiles, read from and written to their devices as float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from smart_infinity import wire
from smart_infinity.array import DeviceArray
from smart_infinity.layout import Tile
from smart_infinity.wire import Kind


def read(
    array: DeviceArray, tiles: Iterable[Tile], *, mask: int
) -> Iterator[tuple[Tile, memoryview]]:
    """Read arrays of tiles from their devices, as float32, one after the other.

    `mask` has bit 0 for parameters, 1 and 2 for the moments. An area is good until the next.
    """
    flags = wire.DECODED | mask << wire.MASK_SHIFT
    for tile in tiles:
        device = array.devices[tile.device]
        device.on_answer = None
        slot = device.acquire()
        device.submit(Kind.READ, slot, tile.index, flags=flags)
        device.wait_idle()
        if device.failure is not None:
            raise device.failure
        assert device.slots is not None
        yield tile, device.slots.up(slot)


def write(
    array: DeviceArray,
    tiles: Iterable[Tile],
    fill: Callable[[Tile, npt.NDArray[np.float32]], None],
    *,
    mask: int,
) -> None:
    """Write arrays of tiles; `fill` is given each tile's floats [arrays, elements] to set."""
    count = bin(mask).count("1")
    for tile in tiles:
        device = array.devices[tile.device]
        device.on_answer = None
        slot = device.acquire()
        assert device.slots is not None
        length = 4 * count * tile.elements
        floats = np.frombuffer(device.slots.down(slot)[:length], np.float32)
        fill(tile, floats.reshape(count, tile.elements))
        flags = wire.DECODED | mask << wire.MASK_SHIFT
        device.submit(Kind.WRITE, slot, tile.index, length, flags)
    array.wait_idle()
    if array.failure is not None:
        raise array.failure
