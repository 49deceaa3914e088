"""What a step must move, by arithmetic alone (Smart-Infinity, table I; every byte, headers too).

`k` is the number of elements, `n` of a tile; control frames, a few a step, are not in these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smart_infinity.compress import TopK
from smart_infinity.layout import BYTES
from smart_infinity.wire import HEADER_BYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes down to the devices and up from them, headers of data and job frames included."""

    down: int
    up: int

    @property
    def total(self) -> int:
        """Both directions."""
        return self.down + self.up


def link_bytes(
    tiles: Iterable[int],
    *,
    placement: str = "device",
    grad_dtype: str = "float32",
    param_dtype: str = "float32",
    compress: TopK | None = None,
    moments: int = 2,
    ahead: bool = False,
) -> Traffic:
    """Give one step's link traffic.

    Args:
        tiles: Elements of each tile.
        placement: `device`: gradients down, parameters up. `host`: gradients down, state and
            gradients up, state down (ZeRO-Infinity).
        grad_dtype: Type gradients cross in.
        param_dtype: Type parameters come up in (device placement).
        compress: Of the gradients (device placement).
        moments: Arrays of float32 moments.
        ahead: Gradients are sent ahead (LAND, RUN: two more headers a tile).
    """
    header, down, up = HEADER_BYTES, 0, 0
    for n in tiles:
        gradient = compress.bytes(n) if compress is not None else n * BYTES[grad_dtype]
        if placement == "host":
            state = 4 * (1 + moments) * n
            down += header + gradient + header + header + state  # LAND, READ, WRITE
            up += header + header + state + gradient + header  # LANDED, STATE, WRITTEN
            continue
        down += header + gradient
        up += header + n * BYTES[param_dtype]
        if ahead:
            down += header  # RUN
            up += header  # LANDED
    return Traffic(down, up)


def media_bytes_per_param(
    moments: int = 2, moment_bytes: float = 4.0, *, landed: float = 0.0
) -> tuple[float, float]:
    """Give bytes read and written on a device's media per parameter and step.

    `landed` are the bytes a gradient takes when it waits on the media for its step.
    """
    state = 4.0 + moments * moment_bytes
    return state + landed, state + landed


MOMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "blocks8": 1.0 + 4.0 / 256}


def bytes_per_param(scheme: str) -> float:
    """Give the table of the paper, without headers: B per parameter and step over the link."""
    table = {
        "host": 32.0,
        "device fp32/fp32": 8.0,
        "device fp32/fp16": 6.0,
        "device fp16/fp16": 4.0,
    }
    return table[scheme]
