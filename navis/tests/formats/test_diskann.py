"""Disk indexes: a tiny one written here in their layout, and real ones where the package is."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError

from navis.formats.diskann import NO_NODE, SECTOR, open_disk_index
from navis.formats.diskann_pq import read_pq

TYPES = {"float32": 0, "int8": 1, "uint8": 2}
Array = np.ndarray


def write_index(
    folder: Path,
    vectors: Array,
    graph: list[list[int]],
    *,
    degree: int = 6,
    medoid: int = 1,
    rust: bool = True,
    metric: int = 0,
    metadata: bool = True,
) -> Path:
    """Write `…_disk.index` and its metadata as the packages do (`rust`: 0.49, else 0.7)."""
    n, d = vectors.shape
    size = d * vectors.itemsize + 4 + 4 * degree
    per = SECTOR // size
    records = []
    for vector, out in zip(vectors, graph, strict=True):
        ids = [*out, *[77] * (degree - len(out))]  # what lies beyond the degree is no one's
        records.append(vector.tobytes() + struct.pack(f"<{degree + 1}I", len(out), *ids))
    room = per or 1
    width = SECTOR if per else -(-size // SECTOR) * SECTOR
    body = b"".join(b"".join(records[i : i + room]).ljust(width, b"\0") for i in range(0, n, room))
    total = SECTOR + len(body)
    fields = [n, d, medoid, size, per, 0, 0, 0, total] + ([0, SECTOR, 1] if rust else [])
    head = struct.pack("<2i", 96 if rust else 9, 1) + struct.pack(f"<{len(fields)}Q", *fields)
    path = folder / "ann_disk.index"
    path.write_bytes(head.ljust(SECTOR, b"\0") + body)
    if metadata:
        told = struct.pack("<4Q", TYPES[vectors.dtype.name], metric, n, d)
        (folder / "ann_metadata.bin").write_bytes(told)
    return path


def sample(n: int, d: int, dtype: str = "float32") -> tuple[Array, list[list[int]]]:
    draw = np.random.default_rng(n)
    vectors = (50 * draw.standard_normal((n, d))).astype(dtype)
    graph = [draw.choice(n, draw.integers(0, 7), replace=False).tolist() for _ in range(n)]
    return vectors, graph


@pytest.mark.parametrize("rust", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("n", "d"), [(9, 3), (400, 20), (7, 5000)]
)  # many, 35+, less than 1 a sector
@pytest.mark.parametrize("rows", [1, 10, 8192])
def test_nodes_come_as_they_were_written(
    tmp_path: Path, rust: bool, dtype: str, n: int, d: int, rows: int
) -> None:
    vectors, graph = sample(n, d, dtype)
    path = write_index(tmp_path, vectors, graph, rust=rust)
    index = open_disk_index(path)
    assert (index.points, index.dim, index.medoid, index.max_degree) == (n, d, 1, 6)
    assert (index.dtype, index.metric, index.max_norm) == (np.dtype(dtype), "l2", 0)
    start = 0
    for nodes in index.nodes(rows):
        assert nodes.start == start
        assert nodes.vectors.dtype == dtype
        assert nodes.degrees.dtype == nodes.neighbours.dtype == np.uint32
        for place, ids in enumerate(nodes.neighbours):
            used = ids[: nodes.degrees[place]]
            assert used.tolist() == graph[start + place]
            assert (ids[nodes.degrees[place] :] == NO_NODE).all()
        np.testing.assert_array_equal(nodes.vectors, vectors[start : start + len(nodes.vectors)])
        start += len(nodes.vectors)
    assert start == n


def test_a_prefix_a_folder_and_a_dtype_instead_of_metadata_will_do(tmp_path: Path) -> None:
    path = write_index(tmp_path, *sample(9, 3), metadata=False)
    for name in (path, tmp_path, tmp_path / "ann"):
        assert open_disk_index(name, dtype="float32").path == path
    assert open_disk_index(path, dtype="float32").metric == ""
    with pytest.raises(UserError, match=r"dtype is None; give dtype="):
        open_disk_index(path)
    (tmp_path / "other_disk.index").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"2 disk indexes \(ann_disk.index other_disk.index\)"):
        open_disk_index(tmp_path)
    with pytest.raises(UserError, match=r"absent_disk\.index: cannot be read"):
        open_disk_index(tmp_path / "absent")


@pytest.mark.parametrize(
    ("rust", "metric", "name"),
    [
        (True, 0, "l2"),
        (True, 1, "cosine"),
        (True, 2, "cosine"),
        (True, 3, "inner_product"),
        (False, 0, "l2"),
        (False, 1, "inner_product"),
    ],
)
def test_both_generations_of_metric_numbers(
    tmp_path: Path, rust: bool, metric: int, name: str
) -> None:
    write_index(tmp_path, *sample(9, 3), rust=rust, metric=metric)
    assert open_disk_index(tmp_path).metric == name


def test_inner_product_is_undone(tmp_path: Path) -> None:
    # As the older package does it: divided by the longest length, and filled up to length 1.
    given = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    longest = np.linalg.norm(given, axis=1).max()
    scaled = given / longest
    rest = np.sqrt(np.maximum(0, 1 - (scaled**2).sum(axis=1, keepdims=True)))
    write_index(tmp_path, np.hstack([scaled, rest]), [[0]] * 9, rust=False, metric=1)
    norm = struct.pack("<2if", 1, 1, longest)
    (tmp_path / "ann_disk.index_max_base_norm.bin").write_bytes(norm)
    index = open_disk_index(tmp_path)
    (nodes,) = index.nodes()
    np.testing.assert_allclose(index.original(nodes.vectors), given, rtol=1e-6)


def test_a_file_cut_anywhere_is_never_read(tmp_path: Path) -> None:
    path = write_index(tmp_path, *sample(100, 20))
    whole = path.read_bytes()
    for cut in [*range(120), *range(120, len(whole), 499), SECTOR, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(path)) as error:
            open_disk_index(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, struct.pack("<i", 3), "not a disk index"),
        (4, struct.pack("<i", 2), "not a disk index"),
        (8, struct.pack("<Q", 0), "not a disk index"),
        (16, struct.pack("<Q", 0), "not a disk index"),
        (24, struct.pack("<Q", 100), "not a disk index"),  # the medoid
        (32, struct.pack("<Q", 0), "not a disk index"),
        (32, struct.pack("<Q", 50), "do not hold 20 float32"),
        (40, struct.pack("<Q", 0), "0 nodes of 108 bytes a sector"),
        (40, struct.pack("<Q", 38), "38 nodes of 108 bytes"),
        (64, struct.pack("<Q", 1), "compressed vectors"),
        (80, struct.pack("<Q", 8), "8 bytes of other data"),
        (8, struct.pack("<Q", 101), "101 nodes|not of ann_disk.index"),
    ],
)
def test_a_damaged_header_is_told(tmp_path: Path, at: int, value: bytes, says: str) -> None:
    path = write_index(tmp_path, *sample(100, 20))
    damaged = bytearray(path.read_bytes())
    damaged[at : at + len(value)] = value
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=says):
        open_disk_index(path)


def test_damaged_nodes_are_told(tmp_path: Path) -> None:
    vectors, graph = sample(100, 20)
    path = write_index(tmp_path, vectors, graph)
    whole, size = path.read_bytes(), 108
    node = 40  # the third of the second sector: 37 a sector
    degree_at = SECTOR * (1 + node // 37) + node % 37 * size + 80
    for value, says in (
        (struct.pack("<I", 7), "node 40 has 7 neighbours, at most 6 fit"),
        (struct.pack("<2I", 1, 100), "node 40 points at a node beyond the last, 99"),
    ):
        damaged = bytearray(whole)
        damaged[degree_at : degree_at + len(value)] = value
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=says):
            list(open_disk_index(path).nodes(16))


def test_metadata_of_another_index_and_compressed_nodes_are_told(tmp_path: Path) -> None:
    write_index(tmp_path, *sample(9, 3))
    (tmp_path / "ann_metadata.bin").write_bytes(struct.pack("<4Q", 0, 0, 10, 3))
    with pytest.raises(UserError, match=r"not of ann_disk\.index, which has 9"):
        open_disk_index(tmp_path)
    (tmp_path / "ann_disk.index_pq_pivots.bin").write_bytes(b"1")
    with pytest.raises(UserError, match="without disk PQ"):
        open_disk_index(tmp_path)


def write_pq(folder: Path, n: int, d: int, offsets: list[int]) -> dict[str, Array]:
    draw = np.random.default_rng(1)
    parts = {
        "pivots": draw.standard_normal((256, d)).astype("<f4"),
        "centre": draw.standard_normal((d, 1)).astype("<f4"),
        "offsets": np.array(offsets, "<u4")[:, None],
    }
    blobs = [struct.pack("<2i", *part.shape) + part.tobytes() for part in parts.values()]
    places = np.cumsum([SECTOR, *map(len, blobs)])
    head = struct.pack("<2i4Q", 4, 1, *places).ljust(SECTOR, b"\0")
    (folder / "ann_pq_pivots.bin").write_bytes(head + b"".join(blobs))
    codes = draw.integers(0, 256, (n, len(offsets) - 1), np.uint8)
    (folder / "ann_pq_compressed.bin").write_bytes(
        struct.pack("<2i", *codes.shape) + codes.tobytes()
    )
    return {**parts, "codes": codes}


def test_pq_is_read_and_decoded(tmp_path: Path) -> None:
    write_index(tmp_path, *sample(9, 5))
    wanted = write_pq(tmp_path, 9, 5, [0, 2, 5])
    pq = read_pq(tmp_path)
    np.testing.assert_array_equal(pq.codes, wanted["codes"])
    first = [*wanted["pivots"][pq.codes[3, 0], :2], *wanted["pivots"][pq.codes[3, 1], 2:]]
    np.testing.assert_array_equal(pq.decode(np.array([3]))[0], first + wanted["centre"][:, 0])
    assert pq.decode(slice(None)).shape == (9, 5)


def test_damaged_pq_is_told(tmp_path: Path) -> None:
    write_index(tmp_path, *sample(9, 5))
    for offsets in ([0, 2, 4], [1, 2, 5], [0, 3, 3, 5]):
        write_pq(tmp_path, 9, 5, offsets)
        with pytest.raises(UserError, match="do not fit each other"):
            read_pq(tmp_path)
    write_pq(tmp_path, 9, 5, [0, 2, 5])
    (tmp_path / "ann_pq_compressed.bin").write_bytes(struct.pack("<2i", 9, 1) + bytes(9))
    with pytest.raises(UserError, match=r"does not belong to ann_pq_pivots\.bin"):
        read_pq(tmp_path)
    write_pq(tmp_path, 9, 5, [0, 2, 5])
    for name in ("ann_pq_pivots.bin", "ann_pq_compressed.bin"):
        whole = (tmp_path / name).read_bytes()
        for cut in [*range(0, len(whole), 211), len(whole) - 1]:
            (tmp_path / name).write_bytes(whole[:cut])
            with pytest.raises(UserError, match=name):
                read_pq(tmp_path)
        (tmp_path / name).write_bytes(whole)


BUILD = """
import sys, numpy, diskannpy
options = {options}
diskannpy.build_disk_index(
    data=numpy.load(sys.argv[1]), distance_metric="l2", index_directory=sys.argv[2], complexity=32,
    graph_degree=12, num_threads=1, build_memory_maximum=1.0, vector_dtype=numpy.{dtype}, **options)
"""


def builder() -> tuple[str, dict[str, Any]] | None:
    """A Python that has a diskannpy, and what its generation calls the size of the codes.

    The package pins numpy, so it has an environment of its own: NAVIS_DISKANN_PYTHON names it.
    """
    import os

    python = os.environ.get("NAVIS_DISKANN_PYTHON", sys.executable)
    asks = (
        "import inspect, diskannpy as d; print(*inspect.signature(d.build_disk_index).parameters)"
    )
    done = subprocess.run([python, "-c", asks], capture_output=True, text=True, timeout=120)
    if done.returncode:
        return None
    rust = "num_of_pq_chunks" in done.stdout.split()
    return python, {"num_of_pq_chunks": 8} if rust else {"search_memory_maximum": 2e-5}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "d"), [("float32", 32), ("uint8", 32), ("float32", 1200)])
def test_a_real_index_holds_the_vectors_and_a_graph(tmp_path: Path, dtype: str, d: int) -> None:
    found = builder()
    if found is None:
        pytest.skip(
            "diskannpy is not installed; NAVIS_DISKANN_PYTHON may name a Python that has it"
        )
    python, options = found
    draw = np.random.default_rng(0)
    x = 128 + 15 * draw.standard_normal((2000, 8)) @ draw.standard_normal((8, d))
    x = x.clip(0, 255).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    folder = tmp_path / "index"
    folder.mkdir()
    script = BUILD.format(options=options, dtype=dtype)
    subprocess.run(
        [python, "-c", script, tmp_path / "x.npy", folder],
        check=True,
        capture_output=True,
        timeout=250,
    )
    index = open_disk_index(folder)
    assert (index.points, index.dim, index.metric) == (2000, d, "l2")
    chunks = list(index.nodes(300))
    np.testing.assert_array_equal(np.concatenate([c.vectors for c in chunks]), x)
    degrees = np.concatenate([c.degrees for c in chunks])
    neighbours = np.concatenate([c.neighbours for c in chunks])
    assert degrees.min() >= 1
    assert degrees.max() == index.max_degree == 12
    seen, todo = {index.medoid}, [index.medoid]
    while todo:
        node = todo.pop()
        ids = neighbours[node, : degrees[node]]
        others = ids[ids != index.medoid]
        assert node not in others
        assert len(set(others.tolist())) == len(others)
        new = set(ids.tolist()) - seen
        seen |= new
        todo += new
    assert len(seen) >= 0.99 * index.points
    pq = read_pq(folder)
    assert pq.codes.shape[0] == 2000
    error = np.linalg.norm(pq.decode(slice(None)) - x, axis=1)
    spread = np.linalg.norm(x - x.mean(axis=0), axis=1)
    assert error.mean() < spread.mean()
