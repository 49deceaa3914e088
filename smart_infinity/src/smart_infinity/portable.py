"""An optimizer's state in torch's own form, out and in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from shorthaul.errors import UserError

from smart_infinity import distributed, kinds, tile_records
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
        UserError: It is none, another rank's share, of another optimizer, or of other groups or
            shapes; or holds what no optimizer has come to. Nothing was changed.
    """
    parameters, moments = optimizer.parameters, optimizer.moments
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise UserError("this is no optimizer's state_dict: it has no state and param_groups")
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
    for group in groups:
        decoupled = group.get("decoupled_weight_decay")
        if decoupled is not None and decoupled != (optimizer.kind.name == "adamw"):
            raise UserError(
                f"the state_dict is {'AdamW' if decoupled else 'Adam'}'s, this optimizer is "
                f"{optimizer.kind.name}"
            )
        kinds.check(optimizer.kind, {**optimizer.kind.defaults, **group})
    numbers = [i for group in groups for i in group["params"]]
    found = [{name: local(value) for name, value in state.get(i, {}).items()} for i in numbers]
    for i, one in enumerate(found):
        _check(f"parameter {parameters.name(i)!r}", one, parameters.local(i).shape, moments)
    steps = [_steps(one) for one in found]

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
    optimizer.steps = steps
    optimizer.extra = state_dict.get("extra", {})
    for group, stored in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in stored.items() if key != "params"})


def _steps(one: dict[str, Any]) -> int:
    """Give the steps behind a parameter's state; torch's SGD counts none, but has had a first."""
    if "step" not in one:
        return int(any(value is not None for value in one.values()))
    return int(one["step"])


def _check(whose: str, one: dict[str, Any], shape: torch.Size, moments: tuple[str, ...]) -> None:
    """Refuse a parameter's state that this optimizer could not have come to."""
    there = {name: value for name, value in one.items() if value is not None and name != "step"}
    for name in there:
        if name not in (*moments, "master"):
            raise UserError(
                f"the state_dict has {name!r} of {whose}, this optimizer keeps "
                f"{', '.join(moments) or 'no moments'}: it is another optimizer's"
            )
    step = float(one.get("step", 0))
    if not (step >= 0 and step.is_integer()):
        raise UserError(f"the state_dict has step {step:g} of {whose}: steps count from 0")
    for name in moments:
        if step > 0 and name not in there:
            raise UserError(f"the state_dict has step {step:g} of {whose}, but no {name}")
    for name, value in there.items():
        if value.shape != shape:
            raise UserError(f"{name} of {whose} is {list(value.shape)}, it is {list(shape)}")
        if not torch.isfinite(value).all():
            raise UserError(f"{name} of {whose} holds NaN or Inf")
