"""SmartComp on the host: which gradients are compressed, and what is owed from steps before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from smart_infinity import _core
from smart_infinity.errors import NotFinite
from smart_infinity.layout import Tile


@dataclass(frozen=True)
class TopK:
    """Send only the largest entries of each tile's gradient.

    Attributes:
        ratio: Share of entries that is sent, above 0 and at most 1.
        values: Type the entries are sent in; indices take 16 bits.
        error_feedback: Add what was not sent to the next step's gradient (4 bytes a parameter in
            host memory). Off, it is lost, as in the paper.
        warmup: Steps that are sent whole before: without, Adam takes what comes late and at once
            for far too much (docs/compression.md).
        momentum: Built up on the host before the largest are chosen, and begun anew where an entry
            is sent (momentum correction: Lin et al., Deep Gradient Compression, section 3.2);
            the optimizer's own first moment then stands aside. 4 bytes a parameter more. None: 0.9
            with error feedback, else 0, which is none.
    """

    ratio: float = 0.01
    values: str = "float32"
    error_feedback: bool = True
    warmup: int = 100
    momentum: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise UserError(f"ratio={self.ratio}: use more than 0, at most 1")
        if self.values not in ("float32", "bfloat16", "float16"):
            raise UserError(f"values={self.values!r}: use float32, bfloat16 or float16")
        if self.warmup < 0:
            raise UserError(f"warmup={self.warmup}: use 0 or more")
        if self.momentum is None:
            object.__setattr__(self, "momentum", 0.9 if self.error_feedback else 0.0)
        if not 0 <= (self.momentum or 0) < 1:
            raise UserError(f"momentum={self.momentum}: use 0 or more, below 1")
        if self.momentum and not self.error_feedback:
            raise UserError("momentum without error_feedback: leave error_feedback on")

    def bytes(self, elements: int) -> int:
        """Give the exact bytes of a compressed tile: 4 a block of 65,536 and 4 to 6 an entry."""
        k = _core.topk_kept(elements, self.ratio)
        return int(_core.topk_bytes(elements, k, _core.Dtype[self.values]))


def parse(text: str | TopK | None) -> TopK | None:
    """Read `none` or `topk:RATIO`."""
    if text is None or isinstance(text, TopK):
        return text
    name, _, ratio = text.partition(":")
    if name == "none" and not ratio:
        return None
    try:
        if name == "topk":
            return TopK(float(ratio))
    except ValueError:
        pass
    raise UserError(f"compress={text!r}: write none or topk:0.01")


class Compressor:
    """Encodes tiles and keeps what is owed of them."""

    def __init__(self, topk: TopK) -> None:
        self.topk = topk
        self.values = _core.Dtype[topk.values]
        self.residuals: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
        """Of each tile, by device and number, once something was left behind."""
        self.velocities: dict[tuple[int, int], npt.NDArray[np.float32]] = {}

    def encode(self, tile: Tile, gradient: npt.NDArray[np.float32], out: memoryview) -> int:
        """Encode a tile's gradient into `out` and give the bytes.

        Raises:
            NotFinite: The gradient holds NaN or Inf; the residual is as it was.
        """
        if not _core.finite(gradient):
            raise NotFinite("a gradient is not finite")
        residual = velocity = None
        if self.topk.error_feedback:
            residual = _of(self.residuals, tile)
        if self.topk.momentum:
            velocity = _of(self.velocities, tile)
            velocity *= np.float32(self.topk.momentum)
            velocity += gradient
            gradient = velocity
        k = _core.topk_kept(len(gradient), self.topk.ratio)
        length = int(_core.topk_encode(gradient, k, self.values, out, residual))
        if velocity is not None:
            sent = np.empty_like(velocity)
            _core.topk_decode(out[:length], self.values, sent)
            velocity[sent != 0] = 0
        return length


def _of(
    kept: dict[tuple[int, int], npt.NDArray[np.float32]], tile: Tile
) -> npt.NDArray[np.float32]:
    key = (tile.device, tile.index)
    if key not in kept:
        kept[key] = np.zeros(tile.elements, np.float32)
    return kept[key]
