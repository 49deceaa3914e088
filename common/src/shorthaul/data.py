"""Real data that package managers carry; nothing is downloaded.

Each set is checked against SHA-256 sums of its content, so that a result names the data it is of.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import EnvironmentLack, UserError

Bytes = npt.NDArray[np.uint8]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FIX = "apt-get install dataset-fashion-mnist (Debian)"
# Of the decompressed content: a distribution may compress the same data anew.
_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST: grey images of ten kinds of clothing, labels 0 to 9, all uint8.

    Images are [60000, 28, 28] and [10000, 28, 28], labels [60000] and [10000].
    """

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes


def sha256(path: Path | str) -> str:
    """Give the SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(paths: Iterable[Path | str]) -> dict[str, dict[str, Any]]:
    """Give `{path: {bytes, sha256}}`, a record of what was read; a missing file is a UserError."""
    found: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        found[str(path)] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return found


def idx(path: Path | str) -> npt.NDArray[Any]:
    """Read an IDX file (the format of MNIST), gzip-compressed or not, into a writable array.

    The format: two zero bytes, a type, the number of dimensions, each dimension as a big-endian
    32-bit number, then the values in row-major order.

    Raises:
        UserError: The file is missing, is no IDX file, or is shorter or longer than it says.
    """
    return _idx(_content(Path(path)), str(path))


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _idx(raw: bytes, name: str) -> npt.NDArray[Any]:
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES:
        raise UserError(f"{name}: not an IDX file (it starts with {raw[:4].hex() or 'nothing'})")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise UserError(f"{name}: truncated in its header")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    dtype = np.dtype(_IDX_TYPES[raw[2]])
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) - start != wanted:
        raise UserError(f"{name}: {len(raw) - start} bytes of values, {wanted} announced")
    values = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def fashion_mnist(root: Path | None = None) -> FashionMnist:
    """Read Fashion-MNIST: four gzip-compressed IDX files in `root`, or where Debian puts them.

    Raises:
        EnvironmentLack: The files are not there; the message names the package.
        UserError: A file is damaged: its content is not the published one.
    """
    arrays: list[Bytes] = []
    for name, digest in _FASHION_MNIST_SHA256.items():
        path = (root or FASHION_MNIST) / f"{name}.gz"
        if not path.is_file():
            raise EnvironmentLack(f"{path} is missing; {FASHION_MNIST_FIX}")
        raw = _content(path)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise UserError(f"{path}: its content is not Fashion-MNIST's; reinstall the package")
        arrays.append(_idx(raw, str(path)))
    return FashionMnist(*arrays)


def text_corpus(name: str = "python-topics", root: Path | None = None) -> bytes:
    """Give a text to train on, UTF-8.

    `name` is `python-topics`, the language reference that ships with every CPython (topics in
    alphabetical order), or the path of a file, relative to `root`.

    Raises:
        EnvironmentLack: This Python was packaged without its documentation topics.
        UserError: There is no such file, or it is empty.
    """
    if name == "python-topics":
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            fix = "apt-get install libpython3-stdlib"
            raise EnvironmentLack(f"this Python lacks pydoc_data; {fix}") from error
        return "\n\n".join(topics[key] for key in sorted(topics)).encode()
    path = (root or Path()) / name
    text = path.read_bytes() if path.is_file() else b""
    if not text:
        raise UserError(f"text {name!r}: neither 'python-topics' nor a file that holds any")
    return text


def digits() -> tuple[Bytes, Bytes]:
    """Give scikit-learn's digits: images uint8 [1797, 8, 8], 0 to 16, and labels uint8 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        fix = "pip install scikit-learn"
        raise EnvironmentLack(f"scikit-learn is not installed; {fix}") from error
    found = load_digits()
    return found.images.astype(np.uint8), found.target.astype(np.uint8)
