"""Indexes from DiskANN's: edges and vectors as they were, codes where they fit, equal recall."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError

from navis import Index, importing
from navis.formats import open_disk_index, read_pq, recall
from navis.groundtruth import exact

Array = Any


def _writers() -> Any:
    """The writers of DiskANN's files that the reader's tests have."""
    path = Path(__file__).parent / "formats" / "test_diskann.py"
    spec = importlib.util.spec_from_file_location("navis_diskann_writers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


writers = _writers()


def a_graph(vectors: Array, degree: int, medoid: int) -> list[list[int]]:
    """Nearest neighbours and some far ones; with what the newer package's start point leaves."""
    near = exact(vectors.astype(np.float32), vectors.astype(np.float32), degree - 3).ids[:, 1:]
    draw = np.random.default_rng(1)
    graph = []
    for node, row in enumerate(near.tolist()):
        far = [i for i in draw.choice(len(vectors), 2, replace=False).tolist() if i not in row]
        graph.append([*row, *(i for i in far if i != node)])
    graph[medoid].append(medoid)  # its own neighbour
    graph[3] = [medoid, *graph[3][:2], medoid]  # and another's, twice
    return graph


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8"])
@pytest.mark.parametrize("layout", ["selective", "packed"])
def test_edges_and_vectors_are_as_they_were(tmp_path: Path, dtype: str, layout: Any) -> None:
    draw = np.random.default_rng(0)
    vectors = (20 * draw.standard_normal((700, 20)) + 50 * (dtype == "uint8")).astype(dtype)
    graph = a_graph(vectors, 12, medoid=1)
    writers.write_index(tmp_path, vectors, graph, degree=12)
    calls: list[tuple[int, int]] = []

    def report(done: int, total: int) -> bool:
        calls.append((done, total))
        return True

    index, done = importing.from_diskann(tmp_path, tmp_path / "ix", layout=layout, progress=report)
    with index:
        assert (index.layout, index.dtype, index.metric, len(index)) == (layout, dtype, "l2", 700)
        assert np.array_equal(index.get(np.arange(700)), vectors)
        lists = index.neighbours(np.arange(700))
        for node, (found, given) in enumerate(zip(lists, graph, strict=True)):
            assert found.tolist() == list(dict.fromkeys(i for i in given if i != node))
        assert done.dropped == 2
        assert done.edges == sum(map(len, graph)) - 2
        assert done.codes == "ours"
        assert index.verify()["faults"] == []
        index.insert([5000], vectors[:1])
        ids, _ = index.search(vectors[:1].astype(np.float32), 2, L=60)
        assert set(ids[0].tolist()) == {0, 5000}
    assert [d for d, _ in calls] == sorted(d for d, _ in calls)
    assert calls[-1][0] <= calls[-1][1]
    assert not list((tmp_path / "ix").glob("*.partial"))


def write_pq(folder: Path, vectors: Array, offsets: list[int], centre: Array) -> None:
    """Codebooks and codes of these vectors as the packages write them."""
    import struct

    draw = np.random.default_rng(2)
    pivots = (vectors[draw.choice(len(vectors), 256, replace=False)] - centre).astype("<f4")
    cuts = list(itertools.pairwise(offsets))
    codes = np.stack(
        [
            exact(np.ascontiguousarray(pivots[:, a:b]), (vectors - centre)[:, a:b], 1).ids[:, 0]
            for a, b in cuts
        ],
        1,
    ).astype(np.uint8)
    blobs = [
        struct.pack("<2i", *part.shape) + part.tobytes()
        for part in (pivots, centre.astype("<f4")[:, None], np.array(offsets, "<u4")[:, None])
    ]
    places = np.cumsum([4096, *map(len, blobs)])
    head = struct.pack("<2i4Q", 4, 1, *places).ljust(4096, b"\0")
    (folder / "ann_pq_pivots.bin").write_bytes(head + b"".join(blobs))
    (folder / "ann_pq_compressed.bin").write_bytes(
        struct.pack("<2i", *codes.shape) + codes.tobytes()
    )


@pytest.mark.parametrize(
    ("dim", "offsets", "fits"),
    [
        (20, [0, 5, 10, 15, 20], True),
        (18, [0, 5, 10, 15, 18], True),  # the last one shorter
        (18, [0, 4, 9, 13, 18], False),
        (20, [0, 7, 14, 20], True),
        (20, [0, 7, 13, 20], False),
    ],
)
def test_codes_are_theirs_where_ours_are_cut_alike(
    tmp_path: Path, base: Any, queries: Any, dim: int, offsets: list[int], fits: bool
) -> None:
    vectors = np.ascontiguousarray(base[:900, :dim]) + 3
    writers.write_index(tmp_path, vectors, a_graph(vectors, 12, 1), degree=12)
    write_pq(tmp_path, vectors, offsets, vectors.mean(axis=0))
    source = open_disk_index(tmp_path)
    codebooks = importing.their_codebooks(source)
    assert (codebooks is not None) == fits
    index, done = importing.from_diskann(tmp_path, tmp_path / "ix")
    index.close()
    assert done.codes == ("theirs" if fits else "ours")
    if codebooks is None:
        return
    assert done.code_bytes == len(offsets) - 1
    pq = read_pq(tmp_path)
    width = codebooks.shape[2]
    for part, low in enumerate(offsets[:-1]):
        decoded = codebooks[part, pq.codes[:, part]]
        wanted = pq.decode(slice(None))[:, low : low + width]
        np.testing.assert_allclose(decoded[:, : wanted.shape[1]], wanted, atol=1e-5)
        assert not decoded[:, wanted.shape[1] :].any()
    other, done = importing.from_diskann(tmp_path, tmp_path / "own", code_bytes=6)
    other.close()
    assert (done.codes, done.code_bytes) == ("ours", 6)


@pytest.mark.parametrize(("number", "metric"), [(1, "cosine"), (3, "inner_product")])
def test_other_metrics_rank_as_brute_force(
    tmp_path: Path, base: Any, queries: Any, number: int, metric: str
) -> None:
    vectors = base[:900]
    writers.write_index(tmp_path, vectors, a_graph(vectors, 16, 1), degree=16, metric=number)
    index, _ = importing.from_diskann(tmp_path, tmp_path / "ix")
    truth = exact(vectors, queries, 20, metric)
    with index:
        assert index.metric == metric
        ids, _ = index.search(queries, 10, L=200)
        assert recall(ids.astype(np.int64), truth.ids, 10, truth.distances) >= 0.9
    with pytest.raises(UserError, match=f"made for {metric}, not l2"):
        importing.from_diskann(tmp_path, tmp_path / "no", metric="l2")


def test_a_stopped_or_failed_import_leaves_nothing(tmp_path: Path, base: Any) -> None:
    vectors = base[:400]
    graph = a_graph(vectors, 12, 1)
    writers.write_index(tmp_path, vectors, graph, degree=12)
    for until in (1, 2):  # while the vectors are read; while the files are written
        left = until

        def report(done: int, total: int) -> bool:
            nonlocal left
            left -= 1
            return left > 0

        with pytest.raises(UserError, match="stopped"):
            importing.from_diskann(tmp_path, tmp_path / "ix", progress=report)
        assert not (tmp_path / "ix").exists()

    calls: list[int] = []

    def press(done: int, total: int) -> bool:
        calls.append(done)
        if len(calls) == 2:  # the engine is writing
            signal.raise_signal(signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt):
        importing.from_diskann(tmp_path, tmp_path / "ix", progress=press)
    assert not (tmp_path / "ix").exists()
    wrong = vectors.copy()
    wrong[7, 3] = np.nan
    writers.write_index(tmp_path, wrong, graph, degree=12)
    with pytest.raises(UserError, match="row 7"):
        importing.from_diskann(tmp_path, tmp_path / "ix")
    assert not (tmp_path / "ix").exists()
    (tmp_path / "ann_metadata.bin").unlink()
    writers.write_index(tmp_path, vectors, graph, degree=12, metadata=False)
    with pytest.raises(UserError, match="give metric"):
        importing.from_diskann(tmp_path, tmp_path / "ix", dtype="float32")
    index, _ = importing.from_diskann(tmp_path, tmp_path / "ix", dtype="float32", metric="l2")
    index.close()
    with pytest.raises(UserError, match="not empty"):
        importing.from_diskann(tmp_path, tmp_path / "ix", dtype="float32", metric="l2")
    assert (tmp_path / "ix" / "state.nav").exists()


SEARCH = """
import json, sys, numpy, diskannpy
x, q = numpy.load(sys.argv[1]), numpy.load(sys.argv[2])
diskannpy.build_disk_index(
    data=x, distance_metric="l2", index_directory=sys.argv[3], complexity=48, graph_degree=24,
    num_threads=1, build_memory_maximum=1.0, vector_dtype=numpy.float32, **{options})
index = diskannpy.StaticDiskIndex(
    index_directory=sys.argv[3], num_threads=1, num_nodes_to_cache=0, {how}
    distance_metric="l2", vector_dtype=numpy.float32)
lists = [int(l) for l in sys.argv[4].split(",")]
print(json.dumps([
    index.batch_search(q, k_neighbors=10, complexity=l, num_threads=1, {beam})
    .identifiers.astype(int).tolist() for l in lists]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["selective", "packed"])
def test_a_real_index_is_searched_as_well(tmp_path: Path, layout: Any) -> None:
    from navis.datasets.synthetic import clustered

    found = writers.builder()
    if found is None:
        pytest.skip(
            "diskannpy is not installed; NAVIS_DISKANN_PYTHON may name a Python that has it"
        )
    python, options = found
    rust = "num_of_pq_chunks" in options
    options = {"num_of_pq_chunks": 16} if rust else {"search_memory_maximum": 20000 * 16 / 2**30}
    data = clustered(20000, 128, queries=1000)
    base = data.base()
    np.save(tmp_path / "x.npy", base)
    np.save(tmp_path / "q.npy", data.queries)
    (tmp_path / "theirs").mkdir()
    lists = [20, 40, 80]
    script = SEARCH.format(
        options=options, how="beam_width=4," * rust, beam="" if rust else "beam_width=4"
    )
    files = [tmp_path / "x.npy", tmp_path / "q.npy", tmp_path / "theirs"]
    said = subprocess.run(
        [python, "-c", script, *map(str, files), ",".join(map(str, lists))],
        check=True,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout
    theirs = json.loads(said.strip().splitlines()[-1])
    truth = exact(base, data.queries, 20)
    index, done = importing.from_diskann(tmp_path / "theirs", tmp_path / "ix", layout=layout)
    with index:
        assert done.codes == "theirs"
        assert index.verify()["faults"] == []
        for L, ids in zip(lists, theirs, strict=True):
            ours, _ = index.search(data.queries, 10, L=L)
            a = recall(ours.astype(np.int64), truth.ids, 10, truth.distances)
            b = recall(np.array(ids), truth.ids, 10, truth.distances)
            print(f"{layout} L {L}: recall {a:.4f}, the source's {b:.4f}", file=sys.stderr)
            assert a >= b - 0.002
    if layout == "packed":  # uses every record of a page, which theirs does not
        return
    with Index.open(tmp_path / "ix", entrance="none") as index:  # from their start point
        for L, ids in zip(lists[1:], theirs[1:], strict=True):
            ours, _ = index.search(data.queries, 10, L=L, margin=0.0)
            a = recall(ours.astype(np.int64), truth.ids, 10, truth.distances)
            b = recall(np.array(ids), truth.ids, 10, truth.distances)
            assert abs(a - b) <= 0.002
