"""The real command in a process of its own: starting, refusing, stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from navis import Index
from navis.cli import main
from navis.experiments._serving import serving
from navis.serve import wire
from navis.serve.app import create_app
from navis.serve.engine import Engine
from navis.serve.server import listen, serve, url

pytestmark = pytest.mark.system

DIM = 16
TOKEN = "correct-horse-battery"
BINARY = {"content-type": wire.MEDIA_TYPE}


def refused(capfd: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["serve", *map(str, words)]) == 2
    said = capfd.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


# ---------------------------------------------------------------------- starting


def test_it_says_where_and_serves(folder: Path) -> None:
    with serving(folder, "--durability", "group") as process:
        assert process.about["vectors"] == 300
        assert process.about["durability"] == "group"
        assert process.url.startswith("http://127.0.0.1:")
        with httpx2.Client(base_url=process.url) as client:
            assert client.get("/readyz").json() == {"status": "ok"}
            answer = client.post("/v1/search", json={"vector": [0.0] * DIM, "k": 3})
            assert len(answer.json()["ids"][0]) == 3
            asked = {"ids": [1000], "vectors": [[1.0] * DIM]}
            answer = client.post("/v1/insert", json=asked)
            assert answer.json()["durability"] == "group"
            assert 'durability="group"' in client.get("/metrics").text
        assert process.stop() == 0
        assert "error" not in process.said()
    with Index.open(folder) as index:
        assert 1000 in index


def test_a_port_in_use(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}" in refused(capfd, folder, "--port", port)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/none"], "no such folder"),
        (["{tmp}"], "not a navis index"),
        (["{ix}", "--host", "0.0.0.0"], "needs a token"),
        (["{ix}", "--host", "::"], "needs a token"),
        (["{ix}", "--host", "0.0.0.0", "--token-file", "{tmp}/none"], "--token-file"),
        (["{ix}", "--token-file", "{tmp}"], "--token-file"),
        (["{ix}", "--host", "203.0.113.7", "--token-file", "{tmp}/token"], "--host 203.0.113.7"),
        (["{ix}", "--host", "localhost", "--port", "70000"], "--port 70000"),
        (["{ix}", "--host", "no such host"], "--host no such host"),
        (["{ix}", "--port", "-1"], "--port -1"),
        (["{ix}", "--max-request", "lots"], "--max-request"),
        (["{ix}", "--max-k", "0"], "--max-k"),
        (["{ix}", "--grace", "0"], "--grace"),
        (["{ix}", "--threads", "0"], "--threads"),
        (["{ix}", "--memory-budget", "1KiB"], "memory budget"),
        (["{ix}", "--token", TOKEN], "unknown flag"),
    ],
)
def test_bad_starts_are_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    given = [word.format(tmp=tmp_path, ix=folder) for word in words]
    if "--port" not in given:
        given += ["--port", "0"]
    assert says in refused(capfd, *given)


def test_a_second_writer(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(folder):
        assert "open for writing already" in refused(capfd, folder, "--port", "0")
        with Index.open(folder, readonly=True) as index:
            assert len(index) == 300


def test_without_the_extra_it_says_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('none', name='fastapi')")
    done = subprocess.run(
        [sys.executable, "-m", "navis.cli", "serve", str(folder)],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "navis[serve]" in done.stderr


def test_an_address_is_written_as_clients_do() -> None:
    with listen("127.0.0.1", 0) as taken:
        assert url(taken) == f"http://127.0.0.1:{taken.getsockname()[1]}"
    if socket.has_ipv6:
        with listen("::1", 0) as taken:
            assert url(taken) == f"http://[::1]:{taken.getsockname()[1]}"


# ---------------------------------------------------------------------- refusing


def test_tokens_by_file_and_environment(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    ways: list[tuple[list[Any], dict[str, str]]] = [
        (["--host", "0.0.0.0", "--token-file", tmp_path / "token"], {}),
        ([], {"NAVIS_TOKEN": TOKEN}),
    ]
    for flags, environment in ways:
        with serving(folder, *flags, **environment) as process:
            assert process.about["token"] is True
            base = process.url.replace("0.0.0.0", "127.0.0.1")
            with httpx2.Client(base_url=base) as client:
                assert client.get("/healthz").status_code == 200
                assert client.get("/v1/stats").status_code == 401
                wrong = {"authorization": "Bearer wrong-wrong-wrong-wrong"}
                assert client.get("/v1/stats", headers=wrong).status_code == 401
                right = {"authorization": f"Bearer {TOKEN}", "host": "search.example"}
                assert client.get("/v1/stats", headers=right).status_code == 200
            assert process.stop() == 0
            assert TOKEN not in process.said()


def test_large_bodies(folder: Path) -> None:
    with serving(folder, "--max-request", "100KiB") as process:
        with httpx2.Client(base_url=process.url, timeout=60) as client:
            large = b" " * 5_000_000
            for body in (large, (large[at : at + 65536] for at in range(0, len(large), 65536))):
                answer = client.post("/v1/search", content=body, headers=BINARY)
                assert answer.status_code == 413
                assert "102400 bytes" in answer.json()["error"]
            for _ in range(3):  # the same connection goes on
                assert client.get("/readyz").status_code == 200
            held = client.get("/metrics").text
        peak = next(x for x in held.splitlines() if x.startswith("process_resident_memory_bytes"))
        assert float(peak.split()[1]) < 500e6


START = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HARDLY_HTTP = {
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": b"400",
    b"GET /healthz\r\n\r\n": b"400",
    START + b"Content-Length: x\r\n\r\n": b"400",
    START + b"Content-Length: -1\r\n\r\n": b"400",
    START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n": b"400",
    START + b"Content-Length: " + b"9" * 15 + b"\r\n\r\n": b"413",
    START + b"Content-Length: 9999999\r\nExpect: 100-continue\r\n\r\n": b"413",
    START + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": b"400",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n": b"400",
}


def test_what_is_hardly_http(folder: Path) -> None:
    with serving(folder, "--max-request", "1MB") as process:
        for raw, status in HARDLY_HTTP.items():
            with connected(process.url) as opened:
                opened.sendall(raw)
                line = opened.recv(1000).split(b"\r\n")[0]
                assert line.split()[1] == status, (raw[:200], line)
        with httpx2.Client(base_url=process.url) as client:
            assert client.get("/readyz").status_code == 200


# ---------------------------------------------------------------------- stopping


@contextmanager
def connected(base: str) -> Iterator[socket.socket]:
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as opened:
        yield opened


HALF = (
    b"POST /v1/insert HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"ids": [1'
)


def wait_for_one(base: str) -> None:
    """Until a request is under way."""
    with httpx2.Client(base_url=base) as client:
        while "navis_http_requests_under_way 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)


def half_open(base: str) -> bool:
    try:
        with connected(base):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_half_a_request_keeps_no_server_from_stopping(folder: Path, number: int) -> None:
    with (
        serving(folder, "--grace", 20) as process,
        connected(process.url) as half,
        connected(process.url) as idle,
    ):
        idle.sendall(b"GET /heal")
        half.sendall(HALF)
        wait_for_one(process.url)
        assert process.stop(number) == 0
        # Not 503, which is what it would be told at the end of the grace.
        assert half.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_second_signal_does_not_wait(folder: Path) -> None:
    with serving(folder) as process, connected(process.url) as half:
        half.sendall(HALF)
        wait_for_one(process.url)
        process.child.send_signal(signal.SIGTERM)
        while half_open(process.url):  # until the first has been noticed
            time.sleep(0.01)
        assert process.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert "second signal" in process.said()
    with Index.open(folder) as index:  # the lock went with the process
        assert len(index) == 300


class Inserter(threading.Thread):
    """Inserts small batches until the server is gone; knows what was acknowledged."""

    def __init__(self, base: str, number: int) -> None:
        super().__init__(daemon=True)
        self.base, self.number = base, number
        self.acknowledged: dict[int, Any] = {}
        self.wrong: list[int] = []

    def run(self) -> None:
        random = np.random.default_rng(self.number)
        first = 10**6 * (self.number + 1)
        with httpx2.Client(base_url=self.base, timeout=60) as client:
            while True:
                ids = np.arange(first, first + 4, dtype=np.uint64)
                vectors = random.normal(size=(4, DIM)).astype(np.float32)
                try:
                    content = wire.pack_rows(ids, vectors)
                    answer = client.post("/v1/insert", content=content, headers=BINARY)
                except httpx2.TransportError:
                    return
                if answer.status_code == 503:
                    return
                if answer.status_code != 200:
                    self.wrong.append(answer.status_code)
                    return
                self.acknowledged |= zip(ids.tolist(), vectors, strict=True)
                first += 4


@pytest.mark.parametrize("durability", ["sync", "group", "none"])
def test_sigterm_amid_inserts_loses_nothing_acknowledged(folder: Path, durability: str) -> None:
    check_stop(folder, durability, signal.SIGTERM)


@pytest.mark.parametrize("durability", ["sync", "group"])
def test_nor_does_sigkill(folder: Path, durability: str) -> None:
    check_stop(folder, durability, signal.SIGKILL)


def check_stop(folder: Path, durability: str, number: int) -> None:
    with serving(folder, "--durability", durability) as process:
        inserters = [Inserter(process.url, n) for n in range(4)]
        for inserter in inserters:
            inserter.start()
        while sum(len(inserter.acknowledged) for inserter in inserters) < 200:
            assert any(inserter.is_alive() for inserter in inserters), process.child.poll()
            time.sleep(0.01)
        code = process.stop(number)
        for inserter in inserters:
            inserter.join(60)
            assert not inserter.is_alive()
            assert not inserter.wrong
        assert code == (0 if number == signal.SIGTERM else -number), process.said()
    acknowledged = {id: v for inserter in inserters for id, v in inserter.acknowledged.items()}
    with Index.open(folder) as index:
        assert set(acknowledged) <= set(index.ids().tolist())
        stored = index.get(list(acknowledged))
        assert np.array_equal(stored, np.stack(list(acknowledged.values())))
        assert not index.verify()["faults"]


def test_what_is_under_way_is_finished(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is being made when the signal comes is answered, and is there."""
    entered, stopping = threading.Event(), threading.Event()
    insert, said = index.insert, []

    def held(*words: Any, **more: Any) -> Any:
        entered.set()
        assert stopping.wait(60)
        return insert(*words, **more)

    monkeypatch.setattr(index, "insert", held)
    engine = Engine(index, threads=1)
    monkeypatch.setattr(engine, "stop", lambda: (Engine.stop(engine), stopping.set()))

    def ask(base: str) -> None:
        asked = {"ids": [999], "vectors": [[1.0] * DIM]}
        said.append(httpx2.post(f"{base}/v1/insert", json=asked, timeout=60))

    def tell() -> None:
        assert entered.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as taken:
        threads = [threading.Thread(target=ask, args=(url(taken),)), threading.Thread(target=tell)]
        serve(create_app(engine), engine, taken, ready=lambda: [t.start() for t in threads])
        for thread in threads:
            thread.join()
    assert said[0].status_code == 200
    assert engine.stopping
    with Index.open(index.path) as opened:
        assert 999 in opened
