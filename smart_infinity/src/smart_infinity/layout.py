"""How parameters lie on devices: one flat line of elements, cut in tiles, dealt to devices.

Pure arithmetic; nothing here touches a tensor or a file. The same parameters, tile and weights give
the same layout everywhere, and no number computed depends on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

# torch's fused CPU kernels step a tensor eight elements at a time and its last ones by themselves,
# where the compiler fused other products (with AVX2 and with AVX-512 alike; torch 2.13).
TORCH_LANES = 8
BLOCK = 256  # of 8-bit moments
DEFAULT_TILE = 1 << 18
DTYPES = ("float32", "bfloat16", "float16")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Parameter:
    """A tensor: its name, shape, and the type it has on the host."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Piece:
    """Elements [begin, end) of a tile are those of a parameter from `element` on."""

    parameter: int
    begin: int
    end: int
    element: int


@dataclass(frozen=True)
class Tile:
    """A cut of the line, of one type: `index` on its device, and its pieces in order."""

    device: int
    index: int
    dtype: str
    elements: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Layout:
    """All tiles in the order of the line; `by_device` lists each device's."""

    parameters: tuple[Parameter, ...]
    tile: int
    tiles: tuple[Tile, ...]
    devices: int
    by_device: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(parameter.numel for parameter in self.parameters)

    def tile_elements(self, device: int) -> npt.NDArray[np.uint32]:
        """Elements of each tile of a device, in the order of its own numbers."""
        return np.array([self.tiles[t].elements for t in self.by_device[device]], np.uint32)

    def segments(self, device: int) -> dict[str, list[Any]]:
        """Give a device's segments as columns, ascending within each of its tiles.

        A piece is cut where torch's kernels pass from whole registers to single elements.
        """
        columns: dict[str, list[Any]] = {
            name: [] for name in ("tile", "begin", "end", "parameter", "rest", "element")
        }
        for t in self.by_device[device]:
            tile = self.tiles[t]
            for piece in tile.pieces:
                numel = self.parameters[piece.parameter].numel
                cut = numel - numel % TORCH_LANES
                length = piece.end - piece.begin
                whole = min(max(cut - piece.element, 0), length)
                for begin, end, rest in ((0, whole, False), (whole, length, True)):
                    if begin == end:
                        continue
                    row = (
                        tile.index, piece.begin + begin, piece.begin + end, piece.parameter, rest,
                        piece.element + begin,
                    )  # fmt: skip
                    for column, value in zip(columns.values(), row, strict=True):
                        column.append(value)
        return columns


def check_tile(tile: int) -> None:
    """Refuse a tile that cannot be (UserError)."""
    if tile < 1024 or tile % 1024 or tile > 1 << 26:
        raise UserError(f"tile={tile}: use a multiple of 1024 up to {1 << 26}")


def build(
    parameters: Sequence[Parameter],
    *,
    tile: int = DEFAULT_TILE,
    weights: Sequence[float] = (1.0,),
    align: int = 1,
) -> Layout:
    """Lay parameters out.

    Args:
        parameters: In the order in which they are numbered.
        tile: Elements of a whole tile, a multiple of 1,024.
        weights: Of the devices: each gets that share of the elements, dealt tile by tile.
        align: Every parameter begins at a multiple of this (8-bit moments: 256; a whole tile: no
            two parameters share one).

    Raises:
        UserError: No parameters, no devices, or a tile or weight that cannot be.
    """
    if not any(parameter.numel for parameter in parameters):
        raise UserError("no parameters to optimize: give at least one that requires a gradient")
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"devices with weights {list(weights)}: use one or more, all above 0")
    check_tile(tile)
    assigned = [0.0] * len(weights)
    by_device: list[list[int]] = [[] for _ in weights]
    tiles: list[Tile] = []

    def add(dtype: str, elements: int, pieces: list[Piece]) -> None:
        finish = [(assigned[d] + elements) / weights[d] for d in range(len(weights))]
        device = finish.index(min(finish))
        assigned[device] += elements
        by_device[device].append(len(tiles))
        tiles.append(Tile(device, len(by_device[device]) - 1, dtype, elements, tuple(pieces)))

    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        if dtype not in DTYPES:
            raise UserError(f"parameters of type {dtype}: use {', '.join(DTYPES)}")
        used = 0
        pieces: list[Piece] = []
        for number, parameter in enumerate(parameters):
            if parameter.dtype != dtype:
                continue
            element = 0
            used = -(-used // align) * align
            while element < parameter.numel:
                if used >= tile:
                    add(dtype, pieces[-1].end, pieces)
                    used, pieces = 0, []
                count = min(parameter.numel - element, tile - used)
                pieces.append(Piece(number, used, used + count, element))
                used += count
                element += count
        if pieces:
            add(dtype, used, pieces)
    return Layout(tuple(parameters), tile, tuple(tiles), len(weights), tuple(map(tuple, by_device)))


def share(layout: Layout, first: int, count: int) -> Layout:
    """Give the part of a layout that lies on `count` devices from `first` on, numbered from 0."""
    chosen = [tile for tile in layout.tiles if first <= tile.device < first + count]
    tiles = tuple(replace(tile, device=tile.device - first) for tile in chosen)
    by_device: list[list[int]] = [[] for _ in range(count)]
    for number, tile in enumerate(tiles):
        by_device[tile.device].append(number)
    return Layout(layout.parameters, layout.tile, tiles, count, tuple(map(tuple, by_device)))


def describe(layout: Layout, **more: Any) -> str:
    """Give what a device remembers of the whole: JSON with the parameters and `more`."""
    listed = [[p.name, list(p.shape), p.dtype] for p in layout.parameters]
    return json.dumps({"parameters": listed, "tile": layout.tile, **more}, sort_keys=True)


def compare(stored: dict[str, Any], wanted: dict[str, Any], folder: str) -> None:
    """Refuse a state that belongs to something else, in one line that names the difference."""
    made, asked = ((one.get("rank", 0), one.get("ranks", 1)) for one in (stored, wanted))
    if made != asked:
        raise UserError(
            f"{folder}: made by rank {made[0]} of {made[1]}, asked for by rank {asked[0]} of "
            f"{asked[1]}; start as many ranks as then, each with the folders it made, or give new "
            "folders"
        )
    old, new = stored["parameters"], wanted["parameters"]
    for before, now in zip(old, new, strict=False):
        if before != now:
            raise UserError(
                f"{folder}: its parameter {before[0]!r} is {before[2]} {before[1]}, the model's "
                f"{now[0]!r} is {now[2]} {now[1]}; give the model it was made for, or a new folder"
            )
    if len(old) != len(new):
        raise UserError(
            f"{folder}: made for {len(old)} parameters, the model has {len(new)}; give the model "
            "it was made for, or a new folder"
        )
    same = stored.get("devices") == wanted.get("devices")
    if same and stored.get("device") != wanted.get("device"):
        raise UserError(
            f"{folder}: is device {stored.get('device')} of its state, given as number "
            f"{wanted['device']}: give the folders in the order they were made with"
        )
    for key, value in sorted(wanted.items(), key=lambda item: item[0] != "optimizer"):
        if key != "parameters" and stored.get(key) != value:
            raise UserError(
                f"{folder}: made with {key}={stored.get(key)!r}, asked for {value!r}; "
                "use that, or a new folder"
            )
