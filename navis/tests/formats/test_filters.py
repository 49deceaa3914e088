"""Label files: the same labels whatever they are stored as."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from navis.formats.filters import read_labels, write_spmat

anywhere = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
sets = st.lists(st.sets(st.integers(0, 40), max_size=6), min_size=1, max_size=12)


def spmat(rows: list[set[int]], columns: int, data: float = 1.0) -> bytes:
    flat = [label for row in rows for label in sorted(row)]
    indptr = np.cumsum([0, *map(len, rows)])
    head = struct.pack("<3q", len(rows), columns, len(flat))
    arrays = indptr.astype("<i8"), np.array(flat, "<i4"), np.full(len(flat), data, "<f4")
    return head + b"".join(array.tobytes() for array in arrays)


@anywhere
@given(rows=sets)
def test_every_format_gives_the_same_labels(tmp_path: Path, rows: list[set[int]]) -> None:
    (tmp_path / "x.spmat").write_bytes(spmat(rows, 41))
    (tmp_path / "x.txt").write_text("".join(",".join(map(str, r)) + "\n" for r in rows))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(sorted(r)) + "\n" for r in rows))
    for name in ("x.spmat", "x.txt", "x.jsonl"):
        labels = read_labels(tmp_path / name, vectors=len(rows))
        assert len(labels) == len(rows)
        assert [set(labels.of(i).tolist()) for i in range(len(rows))] == rows
        assert labels.indices.dtype == np.int32
        assert labels.indptr.dtype == np.int64
        for label in range(labels.count):
            wanted = [i for i, row in enumerate(rows) if label in row]
            assert labels.having(label).tolist() == wanted
    original = read_labels(tmp_path / "x.spmat")
    write_spmat(tmp_path / "y.spmat", original)
    assert (tmp_path / "y.spmat").read_bytes() == (tmp_path / "x.spmat").read_bytes()


def test_names_are_numbered_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("red, blue\n\nblue,7\n")
    labels = read_labels(tmp_path / "x.txt")
    assert labels.names == ("7", "blue", "red")
    assert [labels.of(i).tolist() for i in range(3)] == [[1, 2], [], [0, 1]]
    assert labels.having("blue").tolist() == [0, 2]
    assert labels.having(2).tolist() == [0]
    for wrong in ("green", 3, -1):
        with pytest.raises(UserError, match=r"no vector has|does not exist"):
            labels.having(wrong)


def test_jsonl_takes_a_label_a_list_or_none(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('"a"\n["b", "a", "a"]\nnull\n\n[3]\n3\n')
    labels = read_labels(tmp_path / "x.jsonl")
    assert labels.names == ("3", "a", "b")
    assert [labels.of(i).tolist() for i in range(6)] == [[1], [1, 2], [], [], [0], [0]]


def test_npy_holds_one_label_a_vector(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([2, -1, 0, 2], np.int16))
    labels = read_labels(tmp_path / "x.npy")
    assert labels.count == 3
    assert [labels.of(i).tolist() for i in range(4)] == [[2], [], [0], [2]]


def test_entries_that_are_zero_or_twice_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "x.spmat").write_bytes(spmat([{1, 2}], 3, data=0.0))
    assert read_labels(tmp_path / "x.spmat").of(0).tolist() == []
    content = struct.pack("<3q2q3i3f", 1, 5, 3, 0, 3, 4, 1, 4, 1, 1, 1)
    (tmp_path / "x.spmat").write_bytes(content)
    assert read_labels(tmp_path / "x.spmat").of(0).tolist() == [1, 4]


def test_a_spmat_cut_anywhere_is_never_read(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.spmat", spmat([{1, 2}, set(), {0}], 3)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(path)):
            read_labels(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="1 trailing bytes"):
        read_labels(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"1", "unknown suffix '.csv'; rename it to .spmat .npy .txt .jsonl"),
        ("x.txt", b"", "empty"),
        ("x.txt", b"a,,b\n", "line 1: an empty label"),
        ("x.txt", b"\xff\xfe\n", "UTF-8"),
        ("x.jsonl", b'"a"\n{"a": 1}\n', "line 2: label {'a': 1}"),
        ("x.jsonl", b'"a"\n[1.5]\n', "line 2: label 1.5"),
        ("x.jsonl", b"[true]\n", "label True"),
        ("x.jsonl", b'[""]\n', "label ''"),
        ("x.jsonl", b"[1\n", "line 1: not JSON"),
        ("x.npy", b"nothing", "not a .npy file"),
        ("x.spmat", struct.pack("<3q", -1, 2, 3), "-1 x 2 with 3 entries"),
        ("x.spmat", struct.pack("<3q", 1, 0, 3), "1 x 0"),
        ("x.spmat", struct.pack("<3q2q1i1f", 1, 3, 1, 0, 1, 3, 1), "row 0 has label 3; 3 columns"),
        ("x.spmat", struct.pack("<3q2q1i1f", 1, 3, 1, 0, 1, -1, 1), "row 0 has label -1"),
        ("x.spmat", struct.pack("<3q3q1i1f", 2, 3, 1, 0, 2, 1, 0, 1), "at row 1"),
        ("x.spmat", struct.pack("<3q2q1i1f", 1, 3, 1, 1, 1, 0, 1), "at row 0"),
        ("x.spmat", struct.pack("<3q3q1i1f", 2, 3, 1, 0, 0, 0, 0, 1), "at row 1"),
    ],
)
def test_malformed_files_are_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_labels(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_that_are_no_labels_and_another_number_of_vectors(tmp_path: Path) -> None:
    for wrong in (np.zeros((2, 2), int), np.zeros(3), np.zeros(0, int)):
        np.save(tmp_path / "x.npy", wrong)
        with pytest.raises(UserError, match="one integer for each vector"):
            read_labels(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([2**40]))
    with pytest.raises(UserError, match="too large"):
        read_labels(tmp_path / "x.npy")
    (tmp_path / "x.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match="labels 2 vectors, there are 3"):
        read_labels(tmp_path / "x.txt", vectors=3)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "absent.txt")
