import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shorthaul import data
from shorthaul.errors import EnvironmentLack, UserError

TYPES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
ARRAYS = st.sampled_from(sorted(TYPES)).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(max_dims=3, max_side=5))
)


def idx_bytes(array: np.ndarray) -> bytes:
    kind = TYPES[array.dtype.str.replace("|", "")]
    return (
        bytes([0, 0, kind, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + (array.tobytes())
    )


@given(array=ARRAYS, packed=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_idx_round_trip(tmp_path: Path, array: np.ndarray, packed: bool) -> None:
    path = tmp_path / "x-idx"
    raw = idx_bytes(array)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    found = data.idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative
    assert found.flags.writeable


@given(cut=st.integers(0, 27), packed=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_idx_cut_anywhere_is_refused(tmp_path: Path, cut: int, packed: bool) -> None:
    path = tmp_path / "x-idx"
    raw = idx_bytes(np.arange(16, dtype="u1").reshape(4, 4))
    path.write_bytes(gzip.compress(raw)[:cut] if packed else raw[:cut])
    with pytest.raises(UserError, match="x-idx"):
        data.idx(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\1\0\x08\1\0\0\0\1\0", "not an IDX file"),
        (b"\0\0\x07\1\0\0\0\1\0", "not an IDX file"),
        (b"\0\0\x08\1\0\0\0\1\0\0", "2 bytes of values, 1 announced"),
        (b"\0\0\x08\2\xff\xff\xff\xff\xff\xff\xff\xff", "announced"),
    ],
)
def test_idx_that_lies(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "x-idx").write_bytes(raw)
    with pytest.raises(UserError, match=words):
        data.idx(tmp_path / "x-idx")


def test_idx_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none"):
        data.idx(tmp_path / "none")


def test_fashion_mnist_is_the_published_one() -> None:
    if not data.FASHION_MNIST.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    found = data.fashion_mnist()
    assert found.train_images.shape == (60000, 28, 28)
    assert found.test_images.shape == (10000, 28, 28)
    assert np.bincount(found.train_labels).tolist() == [6000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    assert found.train_images.dtype == np.uint8


def test_fashion_mnist_missing_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLack, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path)


def test_fashion_mnist_damaged(tmp_path: Path) -> None:
    name = "train-images-idx3-ubyte.gz"
    (tmp_path / name).write_bytes(gzip.compress(idx_bytes(np.zeros((2, 28, 28), "u1"))))
    with pytest.raises(UserError, match="not Fashion-MNIST's"):
        data.fashion_mnist(tmp_path)


def test_python_topics_are_text_in_a_fixed_order() -> None:
    text = data.text_corpus()
    assert text == data.text_corpus()
    assert len(text) > 300_000
    assert "assert" in text.decode()


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"abc")
    assert data.text_corpus("mine.txt", tmp_path) == b"abc"
    assert data.text_corpus(str(tmp_path / "mine.txt")) == b"abc"
    (tmp_path / "empty").touch()
    for name in ("python-topic", "empty"):
        with pytest.raises(UserError, match="neither 'python-topics' nor a file"):
            data.text_corpus(name, tmp_path)


def test_manifest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    wanted = hashlib.sha256(b"abc").hexdigest()
    assert data.manifest([path]) == {str(path): {"bytes": 3, "sha256": wanted}}
    with pytest.raises(UserError, match="no such file"):
        data.manifest([tmp_path / "none"])


def test_digits() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    images, labels = data.digits()
    assert (images.shape, images.dtype, images.max()) == ((1797, 8, 8), np.uint8, 16)
    assert sorted(set(labels.tolist())) == list(range(10))
