"""A device answers whoever speaks its protocol, and outlives whoever does not."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from shorthaul.errors import Fault, UserError
from smart_testing import Make, differing_bits, gradients, set_gradients, tensors

from smart_infinity import SmartOptimizer, wire
from smart_infinity.client import Device, DeviceOptions
from smart_infinity.wire import Kind

TOKEN = "correct horse"


@contextlib.contextmanager
def device(
    folder: Path, *listen: str, token: str | None = TOKEN
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A served device, its address and process; it ends in order."""
    secret = {} if token is None else {"SMART_INFINITY_TOKEN": token}
    with subprocess.Popen(
        [sys.executable, "-m", "smart_infinity.cli", "device", str(folder), "--listen", *listen],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **secret},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert " at " in line, line
            yield line.rsplit(" ", 1)[1].strip(), process
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_a_folder_that_is_served_is_refused_to_another(served: Any, tmp_path: Path) -> None:
    from smart_infinity.serve import serve

    with pytest.raises(UserError, match="another smart-infinity device serves it"):
        serve(tmp_path / "state", "tcp:127.0.0.1:0")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A device served over TCP on loopback, with a token."""
    with device(tmp_path / "state", "tcp:127.0.0.1:0") as made:
        yield made


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("tcp:").rsplit(":", 1)
    return socket.create_connection((host, int(port)), 10)


def train(address: str, steps: range, **options: Any) -> list[Any]:
    params = tensors((100, 2000))
    with SmartOptimizer(
        params, devices=[address], tile=1024, token=TOKEN, lr=1e-2, **options
    ) as optimizer:
        for step in steps:
            set_gradients(params, gradients(params, step))
            optimizer.step()
    return params


def test_over_tcp_the_numbers_are_the_same(served: Any, tmp_path: Path, smart: Make) -> None:
    here = tensors((100, 2000))
    local = smart(here, lr=1e-2)
    for step in range(3):
        set_gradients(here, gradients(here, step))
        local.step()
    assert differing_bits(train(served[0], range(3)), here) == 0


@pytest.mark.parametrize("token", [None, "wrong horse"])
def test_without_the_token_nothing_is_told(served: Any, token: str | None) -> None:
    stranger = Device(served[0], DeviceOptions())
    with pytest.raises(UserError, match="token"):
        stranger.greet(token)
    stranger.kill()
    train(served[0], range(1))  # who has it is served still


def test_noise_ends_a_connection_and_nothing_else(served: Any) -> None:
    rng = random.Random(0)
    noise = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(30)]
    hello = wire.dump({"version": wire.VERSION})
    from smart_infinity import _core

    greeting = wire.pack(Kind.HELLO, length=len(hello), checksum=_core.crc32c(hello)) + hello
    noise += [greeting + one for one in noise[:20]]
    noise += [greeting, greeting[:10], wire.pack(Kind.CREATE, length=100), b""]
    noise += [wire.pack(Kind.HELLO, length=1 << 30), b"GET / HTTP/1.1\r\n\r\n"]
    for one in noise:
        with connect(served[0]) as sock:
            sock.settimeout(10)
            with contextlib.suppress(OSError):
                sock.sendall(one)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
    assert served[1].poll() is None
    train(served[0], range(1))


def send_nonsense(optimizer: SmartOptimizer, rng: random.Random) -> None:
    """After a proper beginning: five frames of any kind with random fields, then nothing more."""
    device = optimizer.array.devices[0]
    for _ in range(5):
        kind = rng.choice([kind for kind in Kind if kind < 32 and kind is not Kind.CLOSE])
        flags, slot = rng.randrange(1 << 16), rng.randrange(10)
        arg, length = rng.choice([0, 1, 5, 1 << 31, 1 << 63]), rng.choice([0, 3, 4096, 1 << 20])
        with contextlib.suppress(OSError):
            device.link.sock.sendall(wire.pack(kind, flags, slot, arg, length, 0))
    with contextlib.suppress(OSError):
        device.link.sock.shutdown(socket.SHUT_WR)
    assert device._receiver is not None
    device._receiver.join(20)  # the device has read all of it, or had enough
    assert not device._receiver.is_alive()


def test_frames_that_make_no_sense_are_answered_or_end_the_session(tmp_path: Path) -> None:
    def ten_sessions(number: int) -> None:
        """With one device, which serves them one after the other."""
        rng = random.Random(number)
        where = f"unix:{tmp_path / str(number)}.sock"
        with device(tmp_path / str(number), where, token=None) as (address, process):
            for _ in range(10):
                optimizer = SmartOptimizer(tensors((100, 2000)), devices=[address], tile=1024)
                assert optimizer.array.step == 0
                send_nonsense(optimizer, rng)
                optimizer.array.kill()
            assert process.poll() is None

    with ThreadPoolExecutor(4) as side_by_side:
        list(side_by_side.map(ten_sessions, range(4)))


def test_the_same_where_payloads_go_through_shared_memory(tmp_path: Path) -> None:
    rng = random.Random(2)
    for attempt in range(4):
        optimizer = SmartOptimizer(tensors((100, 2000)), devices=[tmp_path / "state"], tile=1024)
        assert optimizer.array.step == 0
        send_nonsense(optimizer, rng)
        process = optimizer.array.devices[0].process
        assert process is not None
        assert process.wait(20) == 0, attempt  # it ended by itself, in order
        optimizer.array.kill()


def test_beyond_loopback_a_token_is_asked_for(tmp_path: Path) -> None:
    from smart_infinity.serve import serve

    with pytest.raises(UserError, match="open to the network: give --token-file"):
        serve(tmp_path, "tcp:0.0.0.0:0")
    for address in ("tcp:nowhere", "udp:1", "unix:", "tcp:h:99999"):
        with pytest.raises(UserError, match="write unix:PATH or tcp:HOST:PORT"):
            serve(tmp_path, address)


def test_a_second_host_is_refused(smart: Make, tmp_path: Path) -> None:
    smart(tensors((50,)))
    with pytest.raises((UserError, Fault), match="in use by another process"):
        SmartOptimizer(tensors((50,)), devices=[tmp_path / "device-0"])


def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    with device(tmp_path / "state", f"unix:{path}", token=None) as (address, process):
        assert address == f"unix:{path}"
        assert path.stat().st_mode & 0o077 == 0
        first = train(address, range(2))
        again = train(address, range(2, 3))
        assert differing_bits(first, again) != 0
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not path.exists()


def test_tls(tmp_path: Path) -> None:
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out",
         str(certificate), "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(certificate))
    with device(
        tmp_path / "state", "tcp:127.0.0.1:0", "--tls-cert", str(certificate), "--tls-key", str(key)
    ) as (address, _):
        train(address, range(2), tls=context)
        with pytest.raises((UserError, Fault)):
            train(address, range(2, 3))  # in the clear
        train(address, range(2, 3), tls=context)
