"""Whatever is sent, the answer is no 5xx, and the index stays whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from navis import Index
from navis.serve.app import create_app
from navis.serve.config import Limits
from navis.serve.engine import Engine

DIM = 4
PATHS = st.sampled_from(["/v1/search", "/v1/insert", "/v1/delete", "/v1/flush", "/v1/search?k=3"])
TYPES = st.sampled_from(["application/json", "application/octet-stream", "text/plain", ""])

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**53, 2**64 - 2, 2**64 - 1, 2**64, 10**40, -1, 0]),
    st.floats(allow_nan=True, allow_infinity=True, width=64),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.text(max_size=5), NUMBERS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
VECTOR = st.lists(NUMBERS, min_size=DIM, max_size=DIM)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "vector": VECTOR,
    "vectors": st.lists(VECTOR, min_size=1, max_size=3),
    "ids": st.lists(NUMBERS, min_size=1, max_size=3),
    "k": NUMBERS,
    "L": NUMBERS,
    "filter": st.dictionaries(
        st.sampled_from(["any_of", "all_of", "none_of", "between"]),
        st.lists(NUMBERS | st.none(), max_size=3) | SCALARS,
    ),
    "labels": st.lists(st.lists(NUMBERS, max_size=2), max_size=3),
    "values": st.lists(NUMBERS | st.none(), max_size=3),
    "else": SCALARS,
}
ALMOST = st.fixed_dictionaries({}, optional={n: s | VALUES for n, s in FIELDS.items()})
FINITE = st.lists(st.floats(-9, 9, width=32), min_size=DIM, max_size=DIM)
GOOD = st.integers(1, 3).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "ids": st.lists(st.integers(0, 50), min_size=n, max_size=n, unique=True),
            "vectors": st.lists(FINITE, min_size=n, max_size=n),
        }
    )
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    rows = np.random.default_rng(1).normal(size=(60, DIM)).astype(np.float32)
    folder = tmp_path_factory.mktemp("fuzz") / "ix"
    with Index.build(folder, rows) as index:
        engine = Engine(index, threads=1)
        app = create_app(engine, limits=Limits(request_bytes=2000))
        with TestClient(app, base_url="http://localhost") as client:
            yield client
        assert not index.verify()["faults"]
        assert len(index) == len(index.ids())
        engine.close()


def check(client: TestClient, path: str, content: bytes, kind: str) -> None:
    answer = client.post(path, content=content, headers={"content-type": kind})
    assert answer.status_code < 500, (content, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error
        assert "\n" not in error


@settings(deadline=None, max_examples=80)
@given(PATHS, st.binary(max_size=80), TYPES)
def test_bytes(client: TestClient, path: str, content: bytes, kind: str) -> None:
    check(client, path, content, kind)


@settings(deadline=None, max_examples=80)
@given(PATHS, VALUES)
def test_any_json(client: TestClient, path: str, value: Any) -> None:
    check(client, path, json.dumps(value).encode(), "application/json")


@settings(deadline=None, max_examples=150)
@given(PATHS, ALMOST | GOOD)
def test_json_that_is_almost_right(client: TestClient, path: str, value: Any) -> None:
    check(client, path, json.dumps(value).encode(), "application/json")


@settings(deadline=None, max_examples=100)
@given(
    PATHS,
    st.integers(0, 4),
    st.sampled_from([0, 1, 2, 2**32 - 1]),
    st.sampled_from([0, 1, DIM, 2**32 - 1]),
    st.binary(max_size=48) | st.integers(0, 60).map(bytes),
)
def test_binary_that_is_almost_right(
    client: TestClient, path: str, kind: int, n: int, columns: int, tail: bytes
) -> None:
    content = struct.pack("<4sIII", b"NVS1", kind, n, columns) + tail
    check(client, path, content, "application/octet-stream")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30), st.sampled_from(["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]))
def test_paths_and_methods(client: TestClient, path: str, method: str) -> None:
    for start in ("/", "/v1/vectors/", "/v1/search?", "/v1/stats?"):
        url = start + "".join(f"%{byte:02x}" for byte in path.encode("utf-8", "surrogatepass"))
        assert client.request(method, url).status_code < 500


def test_many_mistakes_make_one_message(client: TestClient) -> None:
    content = b'{"vector": [' + b'"",' * 600 + b"1]}"
    answer = client.post(
        "/v1/search", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("vector.0: ")
