"""Truth sets: the exact nearest neighbours of every query, and recall measured against them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats._files import head, need, replacing, size_of
from navis.formats._layout import HDF5, split
from navis.formats.vectors import read_vectors, write_vectors

Ids = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float32]
NO_ID = -1
_NO_ID_ON_DISK = 2**32 - 1
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Truth:
    """Nearest neighbours, nearest first.

    Attributes:
        ids: int64, shape (nq, K); -1 where there are fewer than K neighbours.
        distances: float32, shape (nq, K), as the file's maker measured them, or None.
    """

    ids: Ids
    distances: Distances | None = None

    def __post_init__(self) -> None:
        """Check that both have one shape."""
        if self.ids.ndim != 2:
            raise UserError(f"truth ids have shape {self.ids.shape}; give (queries, K)")
        if self.distances is not None and self.distances.shape != self.ids.shape:
            raise UserError(
                f"truth distances have shape {self.distances.shape}, ids {self.ids.shape}; "
                "give one distance for each id"
            )


def read_truth(path: Path | str) -> Truth:
    """Read a truth set.

    Args:
        path: .ivecs or .npy (ids alone), .hdf5 or .h5 (datasets neighbors and, if there,
            distances), any other name: int32 nq, int32 K, nq * K uint32 ids and perhaps nq * K
            float32 distances; the file's size tells.
    """
    file, name = split(path)
    suffix = file.suffix.lower()
    if suffix in HDF5:
        return _hdf5(file, name or "neighbors")
    if suffix in (".ivecs", ".npy"):
        return Truth(_ids(np.asarray(read_vectors(path, mmap=False)), str(path)))
    return _binary(file)


def _ids(raw: npt.NDArray[Any], what: str) -> Ids:
    if raw.dtype.kind not in "iu":
        raise UserError(f"{what}: ids are {raw.dtype}; store them as integers")
    ids = raw.astype(np.int64)
    if raw.dtype == np.uint32:
        ids[ids == _NO_ID_ON_DISK] = NO_ID
    if ids.size and ids.min() < NO_ID:
        row = int(np.argwhere(ids < NO_ID)[0][0])
        raise UserError(f"{what}: row {row} holds the id {ids[row].min()}; ids start at 0")
    return ids


def _hdf5(file: Path, name: str) -> Truth:
    ids = _ids(np.asarray(read_vectors(f"{file}::{name}", mmap=False)), str(file))
    h5py = need("h5py", "h5py", f"{file}: HDF5")
    with h5py.File(file, "r") as content:
        distances = content["distances"][()] if "distances" in content else None
    if distances is None:
        return Truth(ids)
    if distances.shape != ids.shape:
        raise UserError(
            f"{file}: distances have shape {distances.shape}, {name} {ids.shape}; write them anew"
        )
    return Truth(ids, distances.astype(np.float32))


def _binary(path: Path) -> Truth:
    queries, k = (int(v) for v in np.frombuffer(head(path, 8), "<i4"))
    if queries <= 0 or k <= 0:
        raise UserError(f"{path}: {queries} queries of {k} neighbours; the header is damaged")
    count, actual = queries * k, size_of(path)
    bare, full = 8 + 4 * count, 8 + 8 * count
    if actual not in (bare, full):
        kind = "truncated" if actual < full else "too long"
        raise UserError(
            f"{path}: {kind}: {actual} bytes, {bare} expected for the ids of {queries} x {k} "
            f"neighbours or {full} with distances; copy it again"
        )
    ids = np.fromfile(path, "<u4", count, offset=8).reshape(queries, k)
    if actual == bare:
        return Truth(_ids(ids, str(path)))
    distances = np.fromfile(path, "<f4", count, offset=bare).reshape(queries, k)
    return Truth(_ids(ids, str(path)), distances)


def write_truth(
    path: Path | str, ids: npt.ArrayLike, distances: npt.ArrayLike | None = None
) -> None:
    """Write a truth set in the format that the suffix tells; see `read_truth`.

    Args:
        path: .ivecs and .npy cannot hold distances.
        ids: integers, shape (nq, K); -1 stands for none.
        distances: shape (nq, K).
    """
    matrix = _ids(np.asarray(ids), str(path))
    truth = Truth(matrix, None if distances is None else np.asarray(distances, np.float32))
    if 0 in matrix.shape:
        raise UserError(f"{path}: cannot write shape {matrix.shape}; give at least one neighbour")
    file, name = split(path)
    suffix = file.suffix.lower()
    if suffix in HDF5:
        if name:
            raise UserError(f"{path}: truth sets are named neighbors; leave out '::{name}'")
        write_vectors(f"{file}::neighbors", _narrow(matrix, 2**31, np.int32, str(path)))
        if truth.distances is not None:
            write_vectors(f"{file}::distances", truth.distances)
    elif suffix in (".ivecs", ".npy"):
        if truth.distances is not None:
            raise UserError(f"{path}: {suffix} holds no distances; use .bin")
        narrow = _narrow(matrix, 2**31, np.int32, str(path)) if suffix == ".ivecs" else matrix
        write_vectors(path, narrow)
    else:
        narrow = _narrow(matrix, _NO_ID_ON_DISK, np.uint32, str(path))
        with replacing(file) as temporary, temporary.open("xb") as out:
            out.write(np.array(matrix.shape, "<i4").tobytes())
            out.write(narrow.data)
            if truth.distances is not None:
                out.write(np.ascontiguousarray(truth.distances).data)


def _narrow(ids: Ids, bound: int, dtype: Any, what: str) -> npt.NDArray[Any]:
    if ids.max() >= bound:
        raise UserError(f"{what}: id {ids.max()} does not fit this format; use .npy")
    return ids.astype(dtype)  # -1 becomes 2^32 - 1 where the type is unsigned


def recall(
    found_ids: npt.ArrayLike,
    truth_ids: npt.ArrayLike,
    k: int,
    truth_distances: npt.ArrayLike | None = None,
) -> float:
    """Share of the k nearest neighbours among the first k that were found.

    With distances, every neighbour as near as the k-th counts as one of the k nearest: which of
    them a search returns is chance. Ties beyond the truth set's K columns cannot be seen, so it
    should hold more than k. A query with fewer than k neighbours is asked for those it has; an id
    found twice counts once.

    Args:
        found_ids: integers, shape (nq, at least k); negative ids are misses.
        truth_ids: integers, shape (nq, K), K at least k; -1 where there is no neighbour.
        k: neighbours asked for.
        truth_distances: shape (nq, K).

    Returns:
        A number from 0 to 1.
    """
    found, truth = np.asarray(found_ids), np.asarray(truth_ids)
    for what, ids in (("found", found), ("truth", truth)):
        if ids.ndim != 2 or ids.shape[1] < k or k < 1:
            raise UserError(f"{what} ids have shape {ids.shape}; k = {k} needs (queries, >= {k})")
    if len(found) != len(truth) or not len(found):
        raise UserError(f"{len(found)} answers, {len(truth)} truths; give one for each query")
    exists = truth >= 0
    counts = exists & (np.arange(truth.shape[1]) < k)
    if truth_distances is not None:
        distances = np.asarray(truth_distances)
        if distances.shape != truth.shape:
            raise UserError(
                f"truth distances have shape {distances.shape}, ids {truth.shape}; give one each"
            )
        counts |= exists & (distances == distances[:, k - 1 : k])
    wanted = np.minimum(k, exists.sum(axis=1)).sum()
    if wanted == 0:
        raise UserError("the truth set holds no neighbours; recall has no meaning")
    hits = 0
    step = max(1, _BLOCK // (k * truth.shape[1]))
    for first in range(0, len(found), step):
        rows = slice(first, first + step)
        same = (truth[rows, :, None] == found[rows, None, :k]).any(axis=2)
        hits += int((same & counts[rows]).sum())
    return float(hits / wanted)
