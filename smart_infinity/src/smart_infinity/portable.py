"""An optimizer's state in torch's own form, out and in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from shorthaul.errors import UserError

from smart_infinity import distributed, tile_records
from smart_infinity.layout import Tile
from smart_infinity.parameters import local

if TYPE_CHECKING:
    from smart_infinity.optimizer import SmartOptimizer


def pack(optimizer: SmartOptimizer) -> dict[int, dict[str, torch.Tensor]]:
    """Give `state` of a state_dict: `step`, moments and, of 16-bit parameters, `master`.

    Where a rank has a share of whole parameters, the other elements are zeros.
    """
    array, parameters = optimizer.array, optimizer.parameters
    state: dict[int, dict[str, torch.Tensor]] = {}
    moments = optimizer.moments
    for i in range(len(parameters)):
        own = parameters.local(i)
        state[i] = {"step": torch.tensor(float(optimizer.steps[i]))}
        for name in (*moments, *(["master"] if own.dtype != torch.float32 else [])):
            state[i][name] = torch.zeros(own.shape, dtype=torch.float32)
    mask = (1 << array.arrays) - 1
    for tile, area in tile_records.read(array, optimizer.layout.tiles, mask=mask):
        rows = torch.frombuffer(area, dtype=torch.float32, count=array.arrays * tile.elements)
        rows = rows.view(array.arrays, tile.elements)
        for piece in tile.pieces:
            length = piece.end - piece.begin
            for row, name in enumerate(("master", *moments)):
                if name in state[piece.parameter]:
                    flat = state[piece.parameter][name].view(-1)
                    flat[piece.element : piece.element + length] = rows[
                        row, piece.begin : piece.end
                    ]
    for i, param in enumerate(parameters.tensors):
        if hasattr(param, "to_local"):
            state[i] = {name: distributed.like(param, one) for name, one in state[i].items()}
    return state


def unpack(optimizer: SmartOptimizer, state_dict: dict[str, Any]) -> None:
    """Write a state_dict's moments and masters to the devices, and take its steps and groups.

    Raises:
        UserError: It is another rank's share, or of other groups or shapes.
    """
    parameters, moments = optimizer.parameters, optimizer.moments
    state, groups = state_dict["state"], state_dict["param_groups"]
    ranks = optimizer.ranks
    own = [0, 1] if ranks is None else [ranks.rank, ranks.size]
    if state_dict.get("share", own) != own:
        rank, size = state_dict["share"]
        raise UserError(
            f"the state_dict is the share of rank {rank} of {size}, this is rank {own[0]} of "
            f"{own[1]}: save and load one a rank, or distributed.whole_state_dict"
        )
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups]:
        raise UserError("the state_dict has other parameter groups than this optimizer")
    numbers = [i for group in groups for i in group["params"]]
    found = [{name: local(value) for name, value in state.get(i, {}).items()} for i in numbers]
    for i, one in enumerate(found):
        shape = parameters.local(i).shape
        for name in (*moments, "master"):
            if name in one and one[name] is not None and one[name].shape != shape:
                raise UserError(
                    f"{name} of parameter {parameters.name(i)!r} is {list(one[name].shape)}, the "
                    f"parameter {list(shape)}"
                )

    def fill(tile: Tile, floats: npt.NDArray[np.float32]) -> None:
        floats[:] = 0
        rows = torch.from_numpy(floats)
        for piece in tile.pieces:
            one = found[piece.parameter]
            length = piece.end - piece.begin
            for row, name in enumerate(("master", *moments)):
                value = one.get(name)
                if value is None and row == 0:
                    value = parameters.local(piece.parameter)
                if value is None:
                    continue  # torch keeps no moments before the first step
                flat = value.reshape(-1)[piece.element : piece.element + length]
                rows[row, piece.begin : piece.end].copy_(flat)

    mask = (1 << optimizer.array.arrays) - 1
    tile_records.write(optimizer.array, optimizer.layout.tiles, fill, mask=mask)
    optimizer.steps = [int(one.get("step", 0)) for one in found]
    optimizer.extra = state_dict.get("extra", {})
    for group, stored in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in stored.items() if key != "params"})
