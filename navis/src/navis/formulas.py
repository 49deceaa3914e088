"""Cost formulas of the notes (section 1.4): requests and bytes of a search and of an insert.

Symbols: E expansions; h the share of them that the cache or a page in hand serves; V vectors read;
n the out-edges of a new node, so that an insert changes n + 1 lists. A `Shape` gives the bytes of
one read of a record or of a page of lists (S), how many lie in it (npp, epp), and the bytes of one
read of a vector (s_v).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from navis.layouts import PAGE, Shape


@dataclass(frozen=True)
class Cost:
    """Requests to the disk and the bytes they move, per operation."""

    requests: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.requests + other.requests, self.bytes + other.bytes)


def bare_shape(vector_bytes: int, degree: int, packed: bool) -> Shape:
    """Give the shape of the public peers, whose pages have no header: what the notes' table has.

    A record is vector, count and `degree` ids; a list is the last two. `layouts.shape` is ours.
    """
    slot = (vector_bytes if packed else 0) + 4 + 4 * degree
    per_unit = PAGE // slot
    unit = PAGE if per_unit else -(-slot // PAGE) * PAGE
    return Shape(max(per_unit, 1), unit, 0 if packed else -(-vector_bytes // PAGE) * PAGE)


def reads(shape: Shape, expansions: float, served: float = 0.0, vectors: float = 0.0) -> Cost:
    """What a search, or the seeking of an insert, reads.

    packed: E·S, whatever is served from memory being small. selective: E(1 - h)·4096 + V·s_v.

    Args:
        shape: Of the layout; its `vector` is 0 where records hold the vectors.
        expansions: E.
        served: h, 0 to 1.
        vectors: V, in reads: two vectors of one page are one.
    """
    fetched = expansions * (1 - served)
    return Cost(fetched + vectors, fetched * shape.unit + vectors * shape.vector)


def writes(shape: Shape, edges: float, together: float = 1.0, vectors_a_page: int = 1) -> Cost:
    """What an insert writes to pages; the log is left out.

    packed: ⌈(n + 1)/npp⌉·S. selective: ⌈(n + 1)/epp⌉·4096 + s_v. Where the lists and vectors of
    several inserts are written at one time, the rounding up is theirs together.

    Args:
        shape: Of the layout.
        edges: n, such that an insert writes n + 1 lists.
        together: Inserts that are written at one time.
        vectors_a_page: How many share a page then.
    """
    units = _up(together * (edges + 1), shape.per_unit) / together
    vectors = _up(together, vectors_a_page) / together if shape.vector else 0.0
    return Cost(units + vectors, units * shape.unit + vectors * shape.vector)


def _up(items: float, each: int) -> float:
    return math.ceil(items / each - 1e-9)
