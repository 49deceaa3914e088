"""Every format gives back what was written, and nothing damaged is read without an error."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shorthaul.errors import EnvironmentLack, UserError

from navis.formats import vectors
from navis.formats.vectors import (
    check_finite,
    iter_chunks,
    read_vectors,
    shape_of,
    write_chunks,
    write_vectors,
)

pytest.importorskip("h5py", reason="h5py is not installed; pip install h5py")

TYPES = {
    ".fbin": ["float32"],
    ".f16bin": ["float16"],
    ".u8bin": ["uint8"],
    ".i8bin": ["int8"],
    ".ibin": ["int32"],
    ".bin": ["float32", "float16", "uint8", "int8", "uint32"],
    ".fvecs": ["float32"],
    ".bvecs": ["uint8"],
    ".ivecs": ["int32"],
    ".npy": ["float32", "float16", "uint8", "int8", "int32", "int64"],
    ".hdf5": ["float32", "float16", "uint8", "int8", "int32"],
    ".h5": ["float32"],
}
CASES = [(suffix, name) for suffix, names in TYPES.items() for name in names]
# Not function-scoped: hypothesis would share it between examples anyway.
anywhere = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def matrix(n: int, d: int, dtype: str, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return draw.standard_normal((n, d)).astype(dtype)
    bounds = np.iinfo(dtype)
    return draw.integers(bounds.min, bounds.max, (n, d), dtype, endpoint=True)


def stored(folder: Path, suffix: str, dtype: str = "float32") -> tuple[Path, dict[str, Any]]:
    return folder / f"x{suffix}", {"dtype": dtype} if suffix == ".bin" else {}


@pytest.mark.parametrize(("suffix", "dtype"), CASES)
@anywhere
@given(n=st.integers(1, 40), d=st.integers(1, 9), data=st.data(), mmap=st.booleans())
def test_any_rows_of_what_was_written_are_read_back(
    tmp_path: Path, suffix: str, dtype: str, n: int, d: int, data: st.DataObject, mmap: bool
) -> None:
    path, options = stored(tmp_path, suffix, dtype)
    wanted = matrix(n, d, dtype, n)
    write_vectors(path, wanted)
    start = data.draw(st.integers(0, n))
    count = data.draw(st.one_of(st.none(), st.integers(0, n - start)))
    found = read_vectors(path, start=start, count=count, mmap=mmap, **options)
    assert found.dtype == wanted.dtype
    stop = n if count is None else start + count
    np.testing.assert_array_equal(found, wanted[start:stop])
    assert shape_of(path, **options) == (n, d, wanted.dtype)
    rows = data.draw(st.integers(1, n + 3))
    chunks = list(iter_chunks(path, rows, **options))
    assert [len(c) for c in chunks[:-1]] == [rows] * (len(chunks) - 1)
    np.testing.assert_array_equal(np.concatenate(chunks), wanted)
    parts = list(iter_chunks(path, rows, start=start, count=count, **options))
    assert sum(map(len, parts)) == stop - start


def test_files_are_byte_for_byte_what_other_tools_write(tmp_path: Path) -> None:
    x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    write_vectors(tmp_path / "x.fbin", x)
    assert (tmp_path / "x.fbin").read_bytes() == struct.pack("<2i6f", 3, 2, 1, 2, 3, 4, 5, 6)
    write_vectors(tmp_path / "x.bvecs", x.astype(np.uint8))
    wanted = b"".join(struct.pack("<i2B", 2, a, b) for a, b in ((1, 2), (3, 4), (5, 6)))
    assert (tmp_path / "x.bvecs").read_bytes() == wanted
    write_vectors(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), x)


@pytest.mark.parametrize("suffix", [s for s in TYPES if s not in (".hdf5", ".h5")])
def test_mapped_arrays_are_read_only_and_read_ones_are_not(tmp_path: Path, suffix: str) -> None:
    path, options = stored(tmp_path, suffix, TYPES[suffix][0])
    write_vectors(path, matrix(5, 3, TYPES[suffix][0]))
    assert not read_vectors(path, **options).flags.writeable
    copied = read_vectors(path, mmap=False, **options)
    assert copied.flags.writeable
    assert copied.flags.c_contiguous
    assert not isinstance(copied, np.memmap)


def test_hdf5_rows_in_one_piece_are_mapped_and_compressed_ones_are_read(tmp_path: Path) -> None:
    import h5py

    path, x = tmp_path / "x.hdf5", matrix(30, 4, "float32")
    write_vectors(path, x)
    with h5py.File(path, "a") as file:
        file.create_dataset("packed", data=x[::-1], compression="gzip", chunks=(7, 4))
    assert isinstance(read_vectors(path), np.memmap)
    packed = read_vectors(f"{path}::packed", start=3, count=9)
    np.testing.assert_array_equal(packed, x[::-1][3:12])
    assert not isinstance(packed, np.memmap)


def test_hdf5_datasets_go_by_the_names_of_ann_benchmarks(tmp_path: Path) -> None:
    path, base, asked = tmp_path / "x.hdf5", matrix(6, 3, "float32"), matrix(2, 3, "float32", 1)
    write_vectors(path, base)
    write_vectors(f"{path}::queries", asked)
    for name in ("", "::train", "::base"):
        np.testing.assert_array_equal(read_vectors(f"{path}{name}"), base)
    for name in ("::test", "::queries"):
        np.testing.assert_array_equal(read_vectors(f"{path}{name}"), asked)
    write_vectors(f"{path}::test", asked[:1])  # replaced, and the others kept
    assert read_vectors(f"{path}::queries").shape == (1, 3)
    np.testing.assert_array_equal(read_vectors(path), base)
    with pytest.raises(UserError, match=r"no dataset 'labels'.*of: test train$"):
        read_vectors(f"{path}::labels")


def test_a_column_major_npy_is_read_by_rows(tmp_path: Path) -> None:
    x = matrix(9, 4, "float32")
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    for mmap in (True, False):
        found = read_vectors(tmp_path / "x.npy", start=2, count=5, mmap=mmap)
        np.testing.assert_array_equal(found, x[2:7])


def header_bytes(suffix: str) -> int:
    return {".fvecs": 4, ".bvecs": 4, ".ivecs": 4, ".npy": 128}.get(suffix, 8)


@pytest.mark.parametrize("suffix", TYPES)
def test_a_file_cut_anywhere_is_never_read(tmp_path: Path, suffix: str) -> None:
    dtype = TYPES[suffix][0]
    path, options = stored(tmp_path, suffix, dtype)
    write_vectors(path, matrix(3, 5, dtype))
    whole = path.read_bytes()
    cuts = range(len(whole))
    if suffix in (".hdf5", ".h5"):
        cuts = range(0, len(whole), 97)
    row = 4 + 5 * np.dtype(dtype).itemsize
    for cut in cuts:
        if suffix.endswith("vecs") and cut and cut % row == 0:
            continue  # such a file is a shorter one
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(path)) as error:
            read_vectors(path, **options)
        assert "\n" not in str(error.value)
        if cut > header_bytes(suffix) and "h5" not in suffix and "hdf5" not in suffix:
            assert f"{cut} bytes" in str(error.value)
            assert "expected" in str(error.value)


@pytest.mark.parametrize("suffix", [s for s in TYPES if s not in (".hdf5", ".h5")])
@pytest.mark.parametrize("extra", [1, 3, 4])
def test_trailing_bytes_are_told(tmp_path: Path, suffix: str, extra: int) -> None:
    dtype = TYPES[suffix][0]
    path, options = stored(tmp_path, suffix, dtype)
    write_vectors(path, matrix(3, 5, dtype))
    path.write_bytes(path.read_bytes() + b"\1" * extra)
    with pytest.raises(UserError, match=r"trailing|several dimensions"):
        read_vectors(path, **options)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.fbin", struct.pack("<2i", 3, 0), "dimension 0 is not positive"),
        ("x.fbin", struct.pack("<2i", 3, -2), "dimension -2 is not positive"),
        ("x.fbin", struct.pack("<2i", -3, 2), "-3 rows"),
        ("x.fbin", struct.pack("<2i", 0, 2), r"empty \(0 rows of 2\)"),
        ("x.fbin", struct.pack("<2i", 2**31 - 1, 2**31 - 1), "truncated: 8 bytes"),
        ("x.fbin", b"", r"empty \(0 bytes\)"),
        ("x.fvecs", struct.pack("<if", 0, 1.0), "dimension 0"),
        ("x.ivecs", struct.pack("<ii", -1, 1), "dimension -1"),
        ("x.fvecs", struct.pack("<i2fi2f", 2, 1, 2, 3, 1, 2), "row 1 has dimension 3, row 0 has 2"),
        ("x.xyz", b"1234", r"unknown suffix '.xyz'; rename it to one of .fbin .f16bin"),
        ("x", b"1234", "unknown suffix ''"),
        ("x.bin", struct.pack("<2if", 1, 1, 1.0), r"give dtype="),
        ("x.npy", b"not numpy's, I am afraid", "not a .npy file"),
        ("x.hdf5", b"neither HDF5", "not an HDF5 file"),
        ("x.hdf5", b"\x89HDF\r\n\x1a\n" + bytes(50), "damaged HDF5"),
    ],
)
def test_malformed_files_are_told_in_one_line(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_vectors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 2)), r"float64.*astype\(np.float32\)"),
        (np.zeros((3, 2), ">f4"), "big-endian"),
        (np.zeros(3, np.float32), "two dimensions"),
        (np.zeros((3, 0), np.float32), "dimension 0"),
        (np.zeros((0, 3), np.float32), "empty"),
        (np.zeros((3, 2), complex), "no vector may be"),
        (np.array([["a", "b"]]), "no vector may be"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(
    tmp_path: Path, array: np.ndarray, says: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=says):
        read_vectors(tmp_path / "x.npy")


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.fbin: cannot be read \(No such file"):
        read_vectors(tmp_path / "absent.fbin")
    (tmp_path / "folder.fbin").mkdir()
    with pytest.raises(UserError, match="a folder; name a file"):
        read_vectors(tmp_path / "folder.fbin")
    with pytest.raises(UserError, match="leave out '::train'"):
        read_vectors(f"{tmp_path}/x.fbin::train")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": 4}, "start 4; use 0 to 3"),
        ({"start": -1}, "start -1"),
        ({"count": 4}, "4 rows from row 0; it has 3"),
        ({"start": 2, "count": 2}, "2 rows from row 2; it has 1"),
        ({"count": -1}, "-1 rows"),
        ({"dtype": "uint8"}, "holds float32, not uint8"),
    ],
)
def test_rows_that_are_not_there_are_told(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    write_vectors(tmp_path / "x.fbin", matrix(3, 2, "float32"))
    with pytest.raises(UserError, match=says):
        read_vectors(tmp_path / "x.fbin", **options)
    if "dtype" in options:
        write_vectors(tmp_path / "x.npy", matrix(3, 2, "float32"))
        with pytest.raises(UserError, match=says):
            read_vectors(tmp_path / "x.npy", **options)


def test_chunks_are_checked_before_the_first_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        iter_chunks(tmp_path / "absent.fbin", 10)
    with pytest.raises(UserError, match="chunks of 0 rows"):
        iter_chunks(tmp_path / "absent.fbin", 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_row_that_is_not_finite_is_named(
    monkeypatch: pytest.MonkeyPatch, value: float, dtype: str
) -> None:
    monkeypatch.setattr(vectors, "_BLOCK_BYTES", 100)
    x = matrix(50, 4, dtype)
    check_finite(x, "queries")
    x[37, 2] = value
    with pytest.raises(UserError, match=rf"queries: row 137 holds {value} in column 2"):
        check_finite(x, "queries", first_row=100)
    check_finite(np.zeros((2, 2), np.uint8), "bytes")


@pytest.mark.parametrize("suffix", TYPES)
def test_only_the_type_that_the_suffix_tells_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    with pytest.raises(UserError, match="float64"):
        write_vectors(path, np.zeros((2, 2)))
    if len(TYPES[suffix]) == 1 and suffix != ".h5":
        with pytest.raises(UserError, match=rf"holds {TYPES[suffix][0]}, not uint32"):
            write_vectors(path, np.zeros((2, 2), np.uint32))
    for shape in ((0, 3), (3, 0), (3,)):
        with pytest.raises(UserError, match="cannot write shape"):
            write_vectors(path, np.zeros(shape, TYPES[suffix][0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".fbin", ".fvecs", ".npy", ".hdf5"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path, x = tmp_path / f"x{suffix}", matrix(4, 3, "float32")
    write_vectors(path, x)
    for bad, says in (
        ([x[:2], x[:2, :2]], r"a chunk is float32 \(2, 2\)"),
        ([x[:2], x[2:].astype("float16")], "a chunk is float16"),
        ([x[:2]], "have 2 rows; 5 were announced"),
        ([], "no rows"),
    ):
        with pytest.raises(UserError, match=says):
            write_chunks(path, bad, 5)
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_array_equal(read_vectors(path), x)


def test_more_rows_than_the_header_can_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit its 32-bit header"):
        write_chunks(tmp_path / "x.bin", [np.zeros((1, 1), np.uint8)], 2**31)


def test_without_h5py_hdf5_is_an_environment_that_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "x.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(EnvironmentLack, match="pip install h5py") as error:
        read_vectors(tmp_path / "x.hdf5")
    assert error.value.exit_code == 3
