"""Parameters that somebody else has changed since the last step: devices are told before the next.

torch's optimizers step whatever value a parameter has. Here the value that counts is the device's,
so a change in the model (`load_state_dict`, clamping, a broadcast) has to go down.
"""

from __future__ import annotations

import torch
from shorthaul.errors import UserError

from smart_infinity import tile_records
from smart_infinity.array import DeviceArray
from smart_infinity.layout import Tile
from smart_infinity.parameters import TYPES, Parameters


class Changes:
    """Notices changes by torch's count of writes to a tensor, and by where its memory is.

    Writing through `.data` counts nowhere: `expect` says that it may have happened.
    """

    def __init__(self, parameters: Parameters, array: DeviceArray) -> None:
        self.parameters, self.array = parameters, array
        self._marks: list[tuple[int, int] | None] = [None] * len(parameters)
        self._taken: dict[int, torch.Tensor] = {}  # in the step under way: what they were given

    def _mark(self, i: int) -> tuple[int, int]:
        own = self.parameters.local(i)
        return own._version, own.data_ptr()

    def settled(self) -> None:
        """Note that the model's parameters are the devices' now."""
        self._marks = [self._mark(i) for i in range(len(self.parameters))]
        self._taken.clear()

    def expect(self) -> None:
        """Look at every parameter before the next step, whatever torch has counted."""
        self._marks = [None] * len(self.parameters)

    def any(self) -> bool:
        """Tell whether anything seems to have changed."""
        return any(mark != self._mark(i) for i, mark in enumerate(self._marks))

    def take(self) -> None:
        """Give the devices what has changed, as part of the step under way.

        Of a 16-bit parameter, an element that is its master's rounding has not changed, and keeps
        the master.

        Raises:
            UserError: A parameter has another shape or type than it had.
        """
        changed = {i for i, mark in enumerate(self._marks) if mark != self._mark(i)}
        for i in changed:
            self._check(i)
        for tile in self.array.layout.tiles if changed else ():
            if any(piece.parameter in changed for piece in tile.pieces):
                self._take(tile, changed)

    def _take(self, tile: Tile, changed: set[int]) -> None:
        (masters,) = (
            torch.frombuffer(bytearray(area[: 4 * tile.elements]), dtype=torch.float32)
            for _, area in tile_records.read(self.array, [tile], mask=1)
        )
        values = masters.clone()
        self.parameters.gather(tile, values)
        differs = masters.to(TYPES[tile.dtype]).float() != values
        found = False
        for piece in tile.pieces:
            here = slice(piece.begin, piece.end)
            if piece.parameter in changed and differs[here].any():
                masters[here] = torch.where(differs[here], values[here], masters[here])
                self._taken.setdefault(
                    piece.parameter, self.parameters.local(piece.parameter).clone()
                )
                found = True
        if found:
            tile_records.write(
                self.array, [tile], lambda _, floats: floats.__setitem__(0, masters.numpy()), mask=1
            )

    def _check(self, i: int) -> None:
        was, own = self.array.layout.parameters[i], self.parameters.local(i)
        if tuple(own.shape) != was.shape or own.dtype != TYPES[was.dtype]:
            raise UserError(
                f"parameter {was.name!r} is {own.dtype} {list(own.shape)} now, its devices have "
                f"{was.dtype} {list(was.shape)}: make a new optimizer for it"
            )

    def restore(self) -> None:
        """After a step that was taken back: the model has what it was given, and owes it still."""
        taken = dict(self._taken)
        self.settled()
        for i, values in taken.items():
            self.parameters.local(i).copy_(values)
            self._marks[i] = None
