from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthaul.errors import UserError

from navis.serve import wire

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 6))


@given(SHAPES, st.integers(0, 2**32))
def test_what_is_packed_is_unpacked(shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=shape).astype(np.float32)
    ids = random.integers(0, 2**63, shape[0], dtype=np.uint64)
    assert np.array_equal(wire.unpack_queries(wire.pack_queries(vectors)), vectors)
    got_ids, got = wire.unpack_rows(wire.pack_rows(ids, vectors))
    assert np.array_equal(got_ids, ids)
    assert np.array_equal(got, vectors)
    found = random.integers(0, 2**63, shape, dtype=np.uint64)
    got_ids, got = wire.unpack_results(wire.pack_results(found, vectors))
    assert np.array_equal(got_ids, found)
    assert np.array_equal(got, vectors)


def test_the_header_is_as_documented() -> None:
    body = wire.pack_rows([2**64 - 2], [[1.5, -2.0]])
    assert body == struct.pack("<4sIIIQff", b"NVS1", 2, 1, 2, 2**64 - 2, 1.5, -2.0)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "header"),
        (b"NVS1" + bytes(11), "header"),
        (b"NAVI" + bytes(12), "begins with NVS1"),
        (struct.pack("<4sIII", b"NVS1", 2, 0, 4), "send queries"),
        (struct.pack("<4sIII", b"NVS1", 9, 0, 4), "of 9"),
        (struct.pack("<4sIII", b"NVS1", 1, 2**32 - 1, 2**32 - 1), "columns have"),
        (wire.pack_queries([[1.0, 2.0]]) + b"x", "of 25 bytes"),
        (wire.pack_queries([[1.0, 2.0]])[:-1], "of 23 bytes"),
    ],
)
def test_other_bodies_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        wire.unpack_queries(body)


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_do_harm(tail: bytes, headed: bool) -> None:
    body = b"NVS1" + tail if headed else tail
    for unpack in (wire.unpack_queries, wire.unpack_rows, wire.unpack_results):
        try:
            unpack(body)
        except UserError:
            continue


def test_an_id_is_needed_for_each_vector() -> None:
    with pytest.raises(UserError, match="one each"):
        wire.pack_rows([1, 2], [[1.0]])


def test_the_page_of_the_manual_has_the_same_table() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    table = [line for line in (wire.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(table) == 9
    assert "\n".join(table) in manual
