"""Bounds, tokens and counts, as a client sees them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from navis import Index
from navis.serve.app import create_app
from navis.serve.config import Limits
from navis.serve.engine import Engine

JSON = {"content-type": "application/json"}
TOKEN = "correct-horse-battery"
ASKED = {"vector": [0.5] * 16, "k": 1}


def local(app: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


def test_a_large_body_is_refused_by_its_length_before_it_is_read(client: TestClient) -> None:
    read = []

    def body() -> Iterator[bytes]:
        read.append(1)
        yield b"{"

    headers = JSON | {"content-length": "200001"}
    answer = client.post("/v1/search", content=body(), headers=headers)
    assert answer.status_code == 413
    assert "200000 bytes" in answer.json()["error"]


def test_and_by_what_arrives(engine: Engine) -> None:
    app = create_app(engine, limits=Limits(request_bytes=1000))
    arrived = 0

    async def chunks() -> Any:
        nonlocal arrived
        for _ in range(100):
            arrived += 100
            yield b" " * 100

    async def main() -> None:
        async with local(app) as client:
            answer = await client.post("/v1/search", content=chunks(), headers=JSON)
            assert answer.status_code == 413
            assert app.state.bodies.held == 0

    asyncio.run(main())
    assert arrived <= 1200


def test_bodies_are_bounded_together(engine: Engine) -> None:
    app = create_app(engine, limits=Limits(request_bytes=1000))

    async def main() -> None:
        hold = asyncio.Event()

        async def slow() -> Any:
            yield b" " * 900
            await hold.wait()

        async with local(app) as client:
            held = [
                asyncio.create_task(client.post("/v1/search", content=slow(), headers=JSON))
                for _ in range(4)
            ]
            while app.state.bodies.held < 3600:
                await asyncio.sleep(0.01)
            answer = await client.post("/v1/search", content=b" " * 900, headers=JSON)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert (await client.post("/v1/search", json=ASKED)).status_code == 200
            hold.set()
            assert {a.status_code for a in await asyncio.gather(*held)} == {400}
            assert app.state.bodies.held == 0

    asyncio.run(main())


def test_a_body_that_does_not_come_is_given_up(engine: Engine) -> None:
    app = create_app(engine, limits=Limits(body_s=0.1))

    async def never() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    async def main() -> None:
        async with local(app) as client:
            answer = await client.post("/v1/search", content=never(), headers=JSON)
            assert answer.status_code == 408
            assert answer.headers["connection"] == "close"

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_stop_hurries_bodies_that_still_arrive(engine: Engine) -> None:
    app = create_app(engine, limits=Limits(body_s=3600))

    async def never() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    async def main() -> None:
        async with local(app) as client:
            task = asyncio.create_task(client.post("/v1/search", content=never(), headers=JSON))
            while not app.state.bodies.held:
                await asyncio.sleep(0.01)
            app.state.bodies.hurry(0.0)
            assert (await task).status_code == 408
            assert app.state.bodies.held == 0

    asyncio.run(main())


def test_requests_are_bounded(
    engine: Engine, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(engine, limits=Limits(under_way=2))
    hold = threading.Event()
    search = index.search

    def held(*words: Any, **more: Any) -> Any:
        hold.wait(30)
        return search(*words, **more)

    monkeypatch.setattr(index, "search", held)

    async def main() -> None:
        async with local(app) as client:
            first = [asyncio.create_task(client.post("/v1/search", json=ASKED)) for _ in range(2)]
            while "navis_http_requests_under_way 2.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            busy = await client.post("/v1/search", json=ASKED)
            assert busy.status_code == 503
            for path in ("/healthz", "/readyz", "/metrics"):  # though all threads are busy
                assert (await client.get(path)).status_code == 200
            hold.set()
            assert [(await task).status_code for task in first] == [200, 200]

    asyncio.run(main())


def test_a_stopping_server_answers_health_alone(client: TestClient, engine: Engine) -> None:
    assert client.get("/readyz").status_code == 200
    engine.stop()
    assert client.get("/healthz").json() == {"status": "ok"}
    for path in ("/readyz", "/v1/stats", "/docs"):
        assert client.get(path).status_code == 503
    engine.close()
    assert client.post("/v1/search", json=ASKED).status_code == 503
    assert client.get("/metrics").status_code == 503


def test_a_token_is_asked_for_before_anything_else(engine: Engine) -> None:
    client = TestClient(create_app(engine, token=TOKEN), base_url="http://search.example")
    assert client.get("/healthz").status_code == 200
    large = JSON | {"content-length": str(2**40)}
    for path in ("/v1/search", "/v1/insert", "/nowhere"):
        answer = client.post(path, content=iter([b"{"]), headers=large)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/metrics", "/docs", "/openapi.json", "/v1/stats", "/readyz"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_page_from_elsewhere_is_refused(engine: Engine) -> None:
    client = TestClient(create_app(engine), base_url="http://rebound.example")
    assert client.get("/v1/stats").status_code == 403
    client = TestClient(create_app(engine), base_url="http://localhost:8080")
    headers = {"origin": "https://evil.example"}
    assert client.post("/v1/flush", headers=headers).status_code == 403


def test_a_cancelled_request_says_that_its_outcome_is_unknown(
    engine: Engine, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(engine)
    asked, hold = threading.Event(), threading.Event()
    monkeypatch.setattr(index, "search", lambda *_, **__: (asked.set(), hold.wait(30)))

    async def main() -> None:
        async with local(app) as client:
            task = asyncio.create_task(client.post("/v1/search", json=ASKED))
            await asyncio.to_thread(asked.wait)
            engine.stop()
            task.cancel()
            answer = await task
            assert answer.status_code == 503
            assert "not known" in answer.json()["error"]
            hold.set()

    asyncio.run(main())


def test_answers_are_counted_by_endpoint(client: TestClient) -> None:
    client.post("/v1/search", json=ASKED)
    client.post("/v1/search", json={})
    client.get("/v1/vectors/1")
    client.get("/v1/vectors/2")
    for n in range(5):
        client.get(f"/made-up/{n}")
    text = client.get("/metrics").text
    for line in (
        'navis_http_requests_total{endpoint="/v1/search",status="200"} 1.0',
        'navis_http_requests_total{endpoint="/v1/search",status="422"} 1.0',
        'navis_http_requests_total{endpoint="/v1/vectors/{id}",status="200"} 2.0',
        'navis_http_requests_total{endpoint="other",status="404"} 5.0',
        'navis_http_request_seconds_count{endpoint="/v1/search"} 2.0',
        "navis_http_requests_under_way 0.0",
    ):
        assert line in text.splitlines()
    assert "made-up" not in text
