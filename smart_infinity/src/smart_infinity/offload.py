"""Gradients that go down while the backward pass still runs (Smart-Infinity, gradient offload).

Each parameter's gradient is copied when it is complete and freed; a tile whose pieces have all come
is sent and kept by its device until `step()` says what to do with it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from shorthaul.errors import UserError

from smart_infinity.hooks import Hooks
from smart_infinity.layout import BYTES, DTYPES, Piece, Tile
from smart_infinity.parameters import TYPES, local

if TYPE_CHECKING:
    from smart_infinity.optimizer import SmartOptimizer


class Offload:
    """What has gone down of the gradients of the step to come."""

    def __init__(self, optimizer: SmartOptimizer) -> None:
        self.optimizer: SmartOptimizer = weakref.proxy(optimizer)  # hooks keep nobody alive
        self.hooks = Hooks(optimizer.parameters.tensors, self._complete)
        self.pieces: list[list[tuple[Tile, Piece]]] = [[] for _ in optimizer.parameters.tensors]
        for tile in optimizer.layout.tiles:
            for piece in tile.pieces:
                self.pieces[piece.parameter].append((tile, piece))
        self.passes = [0] * len(optimizer.parameters.tensors)
        self.norms: dict[int, torch.Tensor] = {}
        self.staged: dict[int, tuple[npt.NDArray[np.uint8], int]] = {}

    @torch.no_grad()
    def _complete(self, i: int, param: torch.Tensor) -> None:
        optimizer = self.optimizer
        self.passes[i] += 1
        if self.passes[i] < optimizer.accumulation_steps:
            return
        if self.passes[i] > optimizer.accumulation_steps:
            name = optimizer.parameters.name(i)
            raise UserError(
                f"parameter {name!r} had {self.passes[i]} backward passes in one step: give "
                f"accumulation_steps={self.passes[i]}, or offload='step'"
            )
        assert param.grad is not None
        gradient = local(param.grad)
        if optimizer.max_norm is not None:
            self.norms[i] = torch.linalg.vector_norm(gradient, 2.0)
        flat = gradient.reshape(-1)
        for tile, piece in self.pieces[i]:
            part = flat[piece.element : piece.element + piece.end - piece.begin]
            self._stage(tile, piece, part)
        param.grad = None

    def _stage(self, tile: Tile, piece: Piece, part: torch.Tensor) -> None:
        key = id(tile)
        name = self.optimizer._grad_type(tile)
        if key not in self.staged:
            self.staged[key] = (np.zeros(tile.elements * BYTES[name], np.uint8), 0)
        staged, arrived = self.staged[key]
        into = torch.frombuffer(staged, dtype=TYPES[name])
        into[piece.begin : piece.end].copy_(part)
        self.staged[key] = (staged, arrived + 1)
        if arrived + 1 == len(tile.pieces):
            self._land(tile)

    def _land(self, tile: Tile) -> None:
        """Send a tile's gradient, to be kept."""
        self.optimizer.array.check_usable()
        staged, _ = self.staged.pop(id(tile))

        def fill(tile: Tile, area: memoryview) -> tuple[int, int]:
            np.frombuffer(area, np.uint8, len(staged))[:] = staged
            return len(staged), DTYPES.index(self.optimizer._grad_type(tile))

        self.optimizer._flow.offload([tile], fill)

    def step(self) -> bool:
        """Update with what has landed; the optimizer's `step` does the rest."""
        optimizer = self.optimizer
        steps = optimizer.accumulation_steps
        tensors = optimizer.parameters.tensors
        unfinished = [i for i, passes in enumerate(self.passes) if 0 < passes < steps]
        unfrozen = [i for i in self.hooks.watch() if tensors[i].grad is not None]
        for i in unfinished + unfrozen:  # fewer passes than said: what there is goes down
            param = optimizer.parameters.tensors[i]
            self.passes[i] = steps - 1
            self._complete(i, param)
        optimizer._active = [passes > 0 for passes in self.passes]
        if not any(optimizer._active):
            return False
        for tile in optimizer.layout.tiles:
            if id(tile) in self.staged:  # some of its parameters had no gradient
                self._land(tile)
        optimizer.array.wait_idle()
        if optimizer.array.failure is not None:
            raise optimizer.array.failure
        clip = 1.0
        if optimizer.max_norm is not None:
            clip = optimizer._clip_from([self.norms[i] for i in sorted(self.norms)])
        self.passes = [0] * len(self.passes)
        self.norms.clear()
        optimizer._begin(clip)
        optimizer._update(None)
        return True
