"""The endpoints, by a client in this process."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, Fault, UserError
from starlette.testclient import TestClient

from navis import Index
from navis.errors import Closed, Corrupt, NoSpace
from navis.serve import wire
from navis.serve.app import create_app
from navis.serve.config import Limits
from navis.serve.engine import Engine

BINARY = {"content-type": wire.MEDIA_TYPE}
JSON = {"content-type": "application/json"}


def test_a_search_finds_what_the_index_finds(client: TestClient, index: Index, rows: Any) -> None:
    ids, distances = index.search(rows[:3], 5, L=50)
    asked = {"vectors": rows[:3].tolist(), "k": 5, "L": 50}
    answer = client.post("/v1/search", json=asked)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json() == {"ids": ids.tolist(), "distances": distances.tolist()}
    binary = client.post("/v1/search?k=5&L=50", content=wire.pack_queries(rows[:3]), headers=BINARY)
    assert binary.headers["content-type"] == wire.MEDIA_TYPE
    got_ids, got = wire.unpack_results(binary.content)
    assert np.array_equal(got_ids, ids)
    assert np.array_equal(got, distances)


def test_one_vector_is_one_row(client: TestClient, rows: Any) -> None:
    answer = client.post("/v1/search", json={"vector": rows[7].tolist()}).json()
    assert [len(row) for row in answer["ids"]] == [10]
    assert answer["ids"][0][0] == 7


def test_inserted_is_found_and_deleted_is_not(client: TestClient) -> None:
    vector = [9.0] * 16
    asked = {"ids": [2**64 - 2, 2**53 + 1], "vectors": [vector, [8.0] * 16]}
    answer = client.post("/v1/insert", json=asked)
    assert answer.json() == {"inserted": 2, "replaced": 0, "durability": "sync"}
    again = wire.pack_rows([2**64 - 2], [vector])
    answer = client.post("/v1/insert", content=again, headers=BINARY)
    assert answer.json() == {"inserted": 1, "replaced": 1, "durability": "sync"}
    found = client.post("/v1/search", json={"vector": vector, "k": 1}).json()
    assert found == {"ids": [[2**64 - 2]], "distances": [[0.0]]}
    stored = client.get(f"/v1/vectors/{2**53 + 1}").json()
    assert stored == {"id": 2**53 + 1, "vector": [8.0] * 16, "labels": [], "value": None}
    answer = client.post("/v1/delete", json={"ids": [2**64 - 2, 2**64 - 2, 12345]})
    assert answer.json() == {"deleted": 1, "unknown": 1, "durability": "sync"}
    assert client.get(f"/v1/vectors/{2**64 - 2}").status_code == 404
    assert client.post("/v1/flush").json() == {"durable": True}


@pytest.mark.parametrize(
    ("given", "words", "matches"),
    [
        ({"any_of": [1, 7]}, "any_of=1,7", lambda i: i % 3 == 1),
        ({"all_of": [2], "none_of": [7]}, "all_of=2 none_of=7", lambda i: i % 3 == 2),
        ({"none_of": [0, 1]}, "none_of=0,1", lambda i: i % 3 == 2),
        ({"between": [10, 20.5]}, "between=10:20.5", lambda i: i % 2 == 0 and 10 <= i <= 20),
        ({"between": [290, None]}, "between=290:", lambda i: i % 2 == 0 and i >= 290),
        ({"any_of": [0], "between": [None, 7]}, "any_of=0 between=:7", lambda i: i in (0, 6)),
        ({"any_of": [7]}, "any_of=7", lambda i: False),
        ({}, "", lambda i: True),
    ],
)
def test_a_filter_is_the_index_s(
    client: TestClient, rows: Any, given: Any, words: str, matches: Any
) -> None:
    asked = {"vectors": rows[:2].tolist(), "k": 5, "filter": given}
    answer = client.post("/v1/search", json=asked)
    assert answer.status_code == 200
    there = [i for i in range(300) if matches(i)]
    for query, ids in zip(rows[:2], answer.json()["ids"], strict=True):
        assert len(ids) == min(5, len(there))
        assert set(ids) <= set(there)
        if len(there) <= 6:  # so few that the exact answer is surely found
            nearest = sorted(there, key=lambda i: float(np.sum((rows[i] - query) ** 2)))
            assert ids == nearest[:5]
    content, params = wire.pack_queries(rows[:2]), {"k": "5", "filter": words}
    binary = client.post("/v1/search", params=params, content=content, headers=BINARY)
    found = wire.unpack_results(binary.content)[0].tolist()
    none = 2**64 - 1
    assert found == [ids + [none] * (5 - len(ids)) for ids in answer.json()["ids"]]


def test_labels_and_values_are_inserted_and_replaced(client: TestClient) -> None:
    vectors = [[7.0] * 16, [8.0] * 16]
    asked = {"ids": [900, 901], "vectors": vectors, "labels": [[9, 11], []], "values": [2.5, None]}
    assert client.post("/v1/insert", json=asked).json()["inserted"] == 2
    stored = client.get("/v1/vectors/900").json()
    assert stored == {"id": 900, "vector": vectors[0], "labels": [9, 11], "value": 2.5}
    found = {"vector": vectors[1], "k": 2, "filter": {"all_of": [9, 11], "between": [2, 3]}}
    assert client.post("/v1/search", json=found).json()["ids"] == [[900]]
    client.post("/v1/insert", content=wire.pack_rows([900], vectors[:1]), headers=BINARY)
    assert client.post("/v1/search", json=found).json() == {"ids": [[]], "distances": [[]]}


def test_values_whose_squares_are_no_floats_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"vector": [1e30] * 16, "k": 3})
    assert answer.status_code == 422
    assert "scale the vectors down" in answer.text


def test_the_longest_list_bounds_the_default_too(engine: Engine, rows: Any) -> None:
    app = create_app(engine, limits=Limits(k=20, list=20))
    client = TestClient(app, base_url="http://localhost")
    answer = client.post("/v1/search", json={"vector": rows[0].tolist(), "k": 20})
    assert len(answer.json()["ids"][0]) == 20


def test_stats_say_what_is_served(client: TestClient, rows: Any) -> None:
    client.post("/v1/search", json={"vectors": rows[:4].tolist()})
    stats = client.get("/v1/stats").json()
    assert stats["dim"] == 16
    assert stats["metric"] == "l2"
    assert stats["index"]["live"] == 300
    assert stats["counters"]["searches"] == 4


def test_rows_are_cut_where_fewer_than_k_are_left(
    client: TestClient, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.array([[4, 2**64 - 1], [5, 6]], dtype=np.uint64)
    distances = np.array([[0.5, np.inf], [0.25, 1.0]], dtype=np.float32)
    monkeypatch.setattr(index, "search", lambda *_, **__: (ids, distances))
    answer = client.post("/v1/search", json={"vectors": [[0.0] * 16] * 2, "k": 2})
    assert answer.json() == {"ids": [[4], [5, 6]], "distances": [[0.5], [0.25, 1.0]]}


VECTOR = [0.5] * 16
HEADER = struct.pack("<4sIII", b"NVS1", 1, 1, 16)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("search", "{", 400, "not JSON"),
        ("search", "", 400, "not JSON"),
        ("search", b"\xff\xfe", 400, "not JSON"),
        ("search", "[" * 5000, 400, "not JSON: recursion"),
        ("search", "[]", 422, "object"),
        ("search", {}, 422, "vector"),
        ("search", {"vector": VECTOR, "vectors": [VECTOR]}, 422, "not both"),
        ("search", {"vector": VECTOR[1:]}, 422, "15 dimensions, the index has 16"),
        ("search", {"vectors": [VECTOR, VECTOR[1:]]}, 422, "vector 1 has 15"),
        ("search", {"vector": []}, 422, "vector"),
        ("search", {"vectors": []}, 422, "vectors"),
        ("search", {"vector": ["1"] * 16}, 422, "vector.0"),
        ("search", {"vector": [True] * 16}, 422, "vector.0"),
        ("search", '{"vector": [NaN]}', 422, "finite"),
        ("search", '{"vector": [-Infinity]}', 422, "finite"),
        ("search", {"vector": [1e300] * 16}, 422, "row 0"),
        ("search", {"vector": VECTOR, "k": 0}, 422, "k:"),
        ("search", {"vector": VECTOR, "k": 2.5}, 422, "k:"),
        ("search", {"vector": VECTOR, "k": 21}, 422, "at most 20"),
        ("search", {"vector": VECTOR, "k": 10**30}, 422, "at most 20"),
        ("search", {"vector": VECTOR, "L": 5}, 422, "L 5"),
        ("search", {"vector": VECTOR, "L": 101}, 422, "at most 100"),
        ("search", {"vectors": [VECTOR] * 51}, 422, "51 queries"),
        ("search", {"vector": VECTOR, "limit": 5}, 422, "limit: there is no such field"),
        ("search?k=5", {"vector": VECTOR}, 422, "k: there is no such parameter"),
        ("search", {"vector": VECTOR, "filter": []}, 422, "filter"),
        ("search", {"vector": VECTOR, "filter": {"anyof": [1]}}, 422, "filter.anyof: there is no"),
        ("search", {"vector": VECTOR, "filter": {"any_of": [-1]}}, 422, "filter.any_of.0"),
        ("search", {"vector": VECTOR, "filter": {"any_of": [2**32]}}, 422, "filter.any_of.0"),
        ("search", {"vector": VECTOR, "filter": {"all_of": [0] * 4097}}, 422, "4096"),
        ("search", {"vector": VECTOR, "filter": {"between": [3, 2]}}, 422, "above the second"),
        ("search", {"vector": VECTOR, "filter": {"between": [3]}}, 422, "filter.between"),
        ("search", '{"vector": [1], "filter": {"between": [NaN, 1]}}', 422, "filter.between.0"),
        ("insert", {"ids": [1], "vectors": [VECTOR], "labels": []}, 422, "labels of 0 vectors"),
        ("insert", {"ids": [1], "vectors": [VECTOR], "labels": [3]}, 422, "labels.0"),
        ("insert", {"ids": [1], "vectors": [VECTOR], "labels": [[-3]]}, 422, "labels.0.0"),
        ("insert", {"ids": [1], "vectors": [VECTOR], "values": [1, 2]}, 422, "values of shape"),
        ("insert", '{"ids":[1],"vectors":[[1]],"values":[Infinity]}', 422, "values.0"),
        ("insert", {"ids": [1]}, 422, "vectors"),
        ("insert", {"ids": [1, 1], "vectors": [VECTOR] * 2}, 422, "twice"),
        ("insert", {"ids": [1, 2], "vectors": [VECTOR]}, 422, "one each"),
        ("insert", {"ids": [-1], "vectors": [VECTOR]}, 422, "ids.0"),
        ("insert", {"ids": [2**64 - 1], "vectors": [VECTOR]}, 422, "ids.0"),
        ("insert", {"ids": ["1"], "vectors": [VECTOR]}, 422, "ids.0"),
        ("insert", {"ids": list(range(51)), "vectors": [VECTOR] * 51}, 422, "51 vectors"),
        ("delete", {"ids": []}, 422, "ids"),
        ("delete", {"ids": list(range(51))}, 422, "51 ids"),
        ("delete", {"ids": [1.5]}, 422, "ids.0"),
    ],
)
def test_bad_bodies(client: TestClient, path: str, body: Any, status: int, says: str) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    answer = client.post(f"/v1/{path}", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("search", b"", "header"),
        ("search", HEADER, "columns have"),
        ("search", HEADER + struct.pack("<16f", *[float("nan")] * 16), "row 0"),
        ("search", wire.pack_queries([[1.0] * 15]), "15 dimensions, the index has 16"),
        ("search", wire.pack_queries(np.empty((0, 16))), "no queries"),
        ("search", wire.pack_queries(np.ones((51, 16))), "51 queries"),
        ("search?k=0", wire.pack_queries([VECTOR]), "k '0'"),
        ("search?k=99999999999", wire.pack_queries([VECTOR]), "k '99"),
        ("search?k=21", wire.pack_queries([VECTOR]), "at most 20"),
        ("search?L=x", wire.pack_queries([VECTOR]), "L 'x'"),
        ("search?filter=label=3", wire.pack_queries([VECTOR]), "any_of=3,5"),
        ("search?filter=between=5:1", wire.pack_queries([VECTOR]), "above the second"),
        ("search?l=50", wire.pack_queries([VECTOR]), "l: there is no such parameter"),
        ("insert", wire.pack_queries([VECTOR]), "send rows to insert"),
        ("insert", wire.pack_rows([2**64 - 1], [VECTOR]), "2**64 - 1"),
        ("insert", wire.pack_rows([], np.empty((0, 16))), "no vectors"),
        ("insert?k=3", wire.pack_rows([1], [VECTOR]), "k: there is no such parameter"),
    ],
)
def test_bad_binary_bodies(client: TestClient, path: str, body: bytes, says: str) -> None:
    answer = client.post(f"/v1/{path}", content=body, headers=BINARY)
    assert answer.status_code == 422
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "missing"),
        ({"content-type": "text/plain"}, "text/plain"),
        ({"content-type": "application/x-www-form-urlencoded"}, "urlencoded"),
        (JSON | {"content-encoding": "gzip"}, "content-encoding"),
    ],
)
def test_a_body_says_what_it_is(client: TestClient, headers: dict[str, str], says: str) -> None:
    answer = client.post("/v1/search", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert says in answer.json()["error"]
    assert client.post("/v1/delete", content=b"", headers=BINARY).status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/search", 405),
        ("POST", "/v1/stats", 405),
        ("GET", "/v1/search/", 404),
        ("GET", "/v1/vectors/x", 422),
        ("GET", "/v1/vectors/-1", 422),
        ("GET", f"/v1/vectors/{2**64 - 1}", 422),
        ("GET", "/v1/vectors/123456", 404),
        ("GET", "/v1/stats?all=1", 422),
        ("GET", "/%00/%ff", 404),
    ],
)
def test_other_paths(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UserError("k 5: use 4"), 422, "k 5: use 4"),
        (NoSpace("wal: no space left"), 507, "repeat the whole request"),
        (Corrupt("edges.dat: page 7"), 500, "edges.dat: page 7"),
        (Fault("wal: I/O error"), 500, "I/O error"),
        (EnvironmentLack("newer format"), 500, "newer format"),
        (Closed("the index is closed"), 503, "shutting down"),
        (KeyError("secret\nlines"), 500, "unexpected KeyError"),
    ],
)
def test_errors_of_the_engine(
    client: TestClient,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    says: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(index, "insert", fail)
    answer = client.post("/v1/insert", json={"ids": [1], "vectors": [VECTOR]})
    assert answer.status_code == status
    assert says in answer.json()["error"]
    assert "secret" not in answer.text


def test_a_read_only_server_searches_and_changes_nothing(index: Index, rows: Any) -> None:
    index.close()
    with Index.open(index.path, readonly=True) as opened:
        engine = Engine(opened, readonly=True)
        client = TestClient(create_app(engine), base_url="http://localhost")
        assert client.post("/v1/search", json={"vector": VECTOR}).status_code == 200
        for path in ("insert", "delete", "flush"):
            answer = client.post(f"/v1/{path}", content=b"not even JSON", headers=JSON)
            assert answer.status_code == 403
            assert answer.json() == {"error": "this server is read-only"}
        engine.close()


def test_other_types_and_metrics(tmp_path: Any) -> None:
    rows = np.arange(300, dtype=np.uint8).repeat(8).reshape(300, 8) % 251 + 1
    with Index.build(tmp_path / "u8", rows.astype(np.uint8), metric="cosine") as index:
        engine = Engine(index)
        client = TestClient(create_app(engine), base_url="http://localhost")
        assert client.post("/v1/insert", json={"ids": [900], "vectors": [[7] * 8]}).json()[
            "inserted"
        ]
        assert client.get("/v1/vectors/900").json()["vector"] == [7] * 8
        for vector, says in ([0.5] * 8, "uint8"), ([300] * 8, "uint8"), ([0] * 8, "cosine"):
            answer = client.post("/v1/insert", json={"ids": [901], "vectors": [vector]})
            assert answer.status_code == 422
            assert says in answer.json()["error"]
        engine.close()
    with Index.build(tmp_path / "f16", rows.astype(np.float16)) as index:
        engine = Engine(index)
        client = TestClient(create_app(engine), base_url="http://localhost")
        answer = client.post("/v1/insert", json={"ids": [901], "vectors": [[1e9] * 8]})
        assert answer.status_code == 422
        engine.close()
