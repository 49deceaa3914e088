"""Reads the product quantisation that lies beside a disk index of DiskANN's Python packages.

``<prefix>_pq_pivots.bin`` starts with int32 4, int32 1 and where its parts lie, as uint64; each
part is int32 rows, int32 columns and values: pivots, centre, chunk offsets.
``<prefix>_pq_compressed.bin``: int32 n, int32 M, codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import head, size_of
from navis.formats.diskann import beside, find


@dataclass(frozen=True)
class Pq:
    """Product quantisation of a disk index.

    Attributes:
        pivots: float32, shape (256, d): centroid c of chunk m is
            ``pivots[c, offsets[m]:offsets[m + 1]]``.
        centre: float32, shape (d,), subtracted from a vector before it is quantised.
        offsets: uint32, shape (M + 1,): chunk m covers columns [offsets[m], offsets[m + 1]).
        codes: uint8, shape (n, M).
    """

    pivots: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint8]

    def decode(self, ids: npt.NDArray[Any] | slice) -> npt.NDArray[np.float32]:
        """Vectors that the codes of some nodes stand for, float32, shape (c, d)."""
        codes = self.codes[ids]
        columns = np.arange(self.pivots.shape[1])
        chunk_of = np.searchsorted(self.offsets, columns, side="right") - 1
        return self.pivots[codes[:, chunk_of], columns] + self.centre


def read_pq(path: Path | str) -> Pq:
    """Read the PQ files beside a disk index; `path` as in `diskann.open_disk_index`."""
    file = find(Path(path))
    pivots_file, codes_file = beside(file, "_pq_pivots.bin"), beside(file, "_pq_compressed.bin")
    places = np.frombuffer(head(pivots_file, 40), "<u8", 4, offset=8)
    pivots = _part(pivots_file, int(places[0]), "<f4")
    centre = _part(pivots_file, int(places[1]), "<f4")[:, 0]
    offsets = _part(pivots_file, int(places[2]), "<u4")[:, 0]
    codes = _part(codes_file, 0, "u1")
    dim = pivots.shape[1]
    ascending = bool((np.diff(offsets.astype(np.int64)) > 0).all())
    if len(centre) != dim or offsets[0] != 0 or offsets[-1] != dim or not ascending:
        raise UserError(f"{pivots_file}: its parts do not fit each other; it is damaged")
    if codes.shape[1] != len(offsets) - 1 or (codes.size and codes.max() >= len(pivots)):
        raise UserError(f"{codes_file}: does not belong to {pivots_file.name}; build both anew")
    return Pq(pivots, centre, offsets, codes)


def _part(path: Path, start: int, dtype: str) -> npt.NDArray[Any]:
    if not 0 <= start <= size_of(path) - 8:
        raise UserError(f"{path}: truncated: no part at byte {start}; build it anew")
    rows, columns = (int(v) for v in np.fromfile(path, "<i4", 2, offset=start))
    size = rows * columns * np.dtype(dtype).itemsize
    if rows < 1 or columns < 1 or size_of(path) < start + 8 + size:
        raise UserError(f"{path}: truncated: no {rows} x {columns} {dtype} at byte {start}")
    return np.fromfile(path, dtype, rows * columns, offset=start + 8).reshape(rows, columns)
