"""Which layout reads less: the cost formulas of the notes (section 1.4), and the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PAGE = 4096
_HEADER = 32


@dataclass(frozen=True)
class Shape:
    """How one layout lies on disk.

    Attributes:
        per_unit: Records, or edge lists, per unit.
        unit: Bytes of one read of a record or of a page of edge lists.
        vector: Bytes of one read of a vector; 0 where the record holds it.
    """

    per_unit: int
    unit: int
    vector: int


def shape(vector_bytes: int, degree: int, packed: bool) -> Shape:
    """Give the shape of a layout; the same arithmetic as `cpp/page.hpp`."""
    inside = -(-vector_bytes // 4) * 4 if packed else 0
    slot = inside + 4 + 4 * degree
    head = lambda slots: -(-(_HEADER + slots) // 8) * 8  # noqa: E731
    per_unit = 0
    while per_unit < 64 and head(per_unit + 1) + (per_unit + 1) * slot <= PAGE:
        per_unit += 1
    unit = PAGE if per_unit else -(-(head(1) + slot) // PAGE) * PAGE
    vector = 0 if packed else -(-vector_bytes // PAGE) * PAGE
    return Shape(max(per_unit, 1), unit, vector)


def choose(
    vector_bytes: int, degree: int, n: int, memory_budget: int | None
) -> Literal["packed", "selective"]:
    """Choose the layout that needs fewer requests for an insert and a search together.

    Per expansion packed reads one record; selective reads (1 - h) pages of edge lists and, per
    expansion, about 0.5 vectors (search) or 0.3 (insert); h is what pages in hand and the cache
    serve. Records of several pages count as one request.
    """
    packed, selective = shape(vector_bytes, degree, True), shape(vector_bytes, degree, False)
    cached = 1.0
    if memory_budget is not None and n:
        tables = n * (24 + vector_bytes // 32)
        cached = min(1.0, max(0.0, (memory_budget - tables) / (n * (4 * degree + 24.0))))
    shared = 0.55 if selective.per_unit >= 8 else 0.3
    missed = (1 - cached) * (1 - shared)
    vectors = 0.4 * (0.6 if selective.vector == PAGE and vector_bytes * 4 <= PAGE else 1.0)
    reads = missed + vectors
    packed_reads = 1.0 if packed.per_unit < 4 else 0.95
    return "selective" if reads <= packed_reads else "packed"
