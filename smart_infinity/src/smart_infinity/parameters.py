"""A model's parameters by number: what they are called, and their way to and from tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from shorthaul.errors import UserError

from smart_infinity.errors import NotFinite
from smart_infinity.layout import Parameter, Tile

TYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in TYPES.items()}


class Parameters:
    """The parameters of an optimizer's groups, one after the other.

    Attributes:
        tensors: As the groups have them.
        group_of: Number of each one's group.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = groups
        self.tensors: list[torch.Tensor] = [p for group in groups for p in group["params"]]
        self.group_of = [number for number, group in enumerate(groups) for _ in group["params"]]
        first: dict[int, int] = {}
        for i, tensor in enumerate(self.tensors):
            if first.setdefault(id(tensor), i) != i:
                raise UserError(
                    f"parameter {self.name(i)!r} is {self.name(first[id(tensor)])!r} again: give "
                    "each once"
                )

    def __len__(self) -> int:
        return len(self.tensors)

    def name(self, i: int) -> str:
        """Give a parameter's name, or its number where names were not given."""
        names = self._groups[self.group_of[i]].get("param_names")
        if names is None:
            return str(i)
        return str(names[i - self.group_of.index(self.group_of[i])])

    def described(self) -> list[Parameter]:
        """Give them as a layout has them; an unknown type is a UserError."""
        found = []
        for i, tensor in enumerate(self.tensors):
            own = local(tensor)
            if own.dtype not in _NAMES:
                raise UserError(
                    f"parameter {self.name(i)!r} is {own.dtype}: use float32, bfloat16 or float16"
                )
            found.append(Parameter(self.name(i), tuple(own.shape), _NAMES[own.dtype]))
        return found

    def local(self, i: int) -> torch.Tensor:
        """Give this rank's part of a parameter, without its history."""
        return local(self.tensors[i]).detach()

    # ------------------------------------------------------------------ to and from tiles

    def gather(self, tile: Tile, into: torch.Tensor) -> None:
        """Copy a tile's parameters out of the model."""
        for piece in tile.pieces:
            flat = self.local(piece.parameter).reshape(-1)
            part = flat[piece.element : piece.element + piece.end - piece.begin]
            into[piece.begin : piece.end].copy_(part)

    def gather_gradient(self, tile: Tile, into: torch.Tensor) -> None:
        """Copy a tile's gradients; of a parameter without one nothing is written."""
        for piece in tile.pieces:
            gradient = self.tensors[piece.parameter].grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise UserError(f"parameter {self.name(piece.parameter)!r} has a sparse gradient")
            flat = local(gradient).reshape(-1)
            length = piece.end - piece.begin
            copy_flat(into[piece.begin : piece.end], flat[piece.element : piece.element + length])

    def scatter(
        self, tile: Tile, area: memoryview, dtype: str, wanted: Callable[[int], bool] | None = None
    ) -> None:
        """Copy a tile's parameters, in `dtype`, into the model's: all, or those that are wanted."""
        values = torch.frombuffer(area, dtype=TYPES[dtype], count=tile.elements)
        for piece in tile.pieces:
            if wanted is not None and not wanted(piece.parameter):
                continue
            _put(self.local(piece.parameter), piece.element, values[piece.begin : piece.end])

    def not_finite(self, tile: Tile) -> NotFinite:
        """Give the error of a tile whose gradient holds NaN or Inf; it names the parameter."""
        names = [
            self.name(piece.parameter)
            for piece in tile.pieces
            if (grad := self.tensors[piece.parameter].grad) is not None
            and not torch.isfinite(local(grad)).all()
        ] or [self.name(tile.pieces[0].parameter)]
        return NotFinite(
            f"the gradient of {names[0]!r} holds NaN or Inf: no parameter was changed; "
            "scale the loss down, clip, or skip the batch"
        )


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Give this rank's shard of a tensor that is sharded (FSDP2), else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _put(param: torch.Tensor, element: int, values: torch.Tensor) -> None:
    """Set elements of a tensor, as they are numbered row by row, from `element` on.

    Wherever they lie in memory: no others are written, not even with what they are, as another
    device's may come up at the same time.
    """
    if param.is_contiguous():
        copy_flat(param.view(-1)[element : element + len(values)], values)
        return
    row = param[0].numel()
    first, offset = divmod(element, row)
    if offset or len(values) < row:
        count = min(row - offset, len(values))
        _put(param[first], offset, values[:count])
        first, values = first + 1, values[count:]
    rows = len(values) // row
    if rows:
        whole = param[first : first + rows]
        whole.copy_(values[: rows * row].view(whole.shape))
    if len(values) > rows * row:
        _put(param[first + rows], 0, values[rows * row :])


def copy_flat(into: torch.Tensor, given: torch.Tensor) -> None:
    """Copy a flat tensor; on the CPU, where types agree, in this thread alone.

    torch would share the work among its threads, which then wait for more of it by turning, and the
    devices beside them need the processor.
    """
    same = into.dtype == given.dtype and into.device == given.device == torch.device("cpu")
    if same and into.is_contiguous() and given.is_contiguous():
        into.view(torch.uint8).numpy()[:] = given.view(torch.uint8).numpy()
    else:
        into.copy_(given)
