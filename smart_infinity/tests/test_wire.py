"""Frames: what is sent is what comes, and nothing else is taken for a frame."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_infinity import _core, wire
from smart_infinity.link import Link, Slots
from smart_infinity.wire import Kind, ProtocolError


@contextlib.contextmanager
def pair() -> Iterator[tuple[Link, Link]]:
    a, b = socket.socketpair()
    links = Link(a, host=True), Link(b, host=False)
    for link in links:
        link.slots = Slots(2, 5000, 3000)
        link.max_control = 1 << 16
    try:
        yield links
    finally:
        for link in links:
            link.close()


@given(
    st.sampled_from(list(Kind)), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None)
def test_headers_go_there_and_back(
    kind: Kind, flags: int, slot: int, arg: int, length: int, checksum: int
) -> None:
    frame, found = wire.unpack(wire.pack(kind, flags, slot, arg, length, checksum))
    assert (frame.kind, frame.flags, frame.slot, frame.arg) == (kind, flags, slot, arg)
    assert (frame.length, found) == (length, checksum)


def test_frames_and_counts() -> None:
    with pair() as (host, device):
        assert host.slots is not None
        assert device.slots is not None
        host.send(Kind.STEP, {"a": [1, 2]}, arg=7)
        host.slots.down(1)[:3] = b"abc"
        host.send_data(Kind.GRADIENT, 1, 3, flags=5, arg=9)
        first, second = device.receive(), device.receive()
        assert first is not None
        assert second is not None
        assert (first.kind, first.body, first.arg) == (Kind.STEP, {"a": [1, 2]}, 7)
        assert (second.kind, second.slot, second.length, second.flags) == (Kind.GRADIENT, 1, 3, 5)
        assert bytes(device.slots.down(1)[:3]) == b"abc"
        assert host.sent.snapshot() == device.received.snapshot()
        assert host.sent.snapshot()["gradient"] == {
            "frames": 1, "header_bytes": 32, "payload_bytes": 3
        }  # fmt: skip
        host.close()
        assert device.receive() is None


def refused(data: bytes) -> str:
    with pair() as (host, device):
        sender = threading.Thread(target=lambda: (host.sock.sendall(data), host.close()))
        sender.start()

        def receive_all() -> None:
            while device.receive() is not None:
                pass

        with pytest.raises(ProtocolError) as caught:
            receive_all()
        sender.join()
        return str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "no frame of smart_infinity"),
        (wire.pack(Kind.PING)[:20], "cut in the middle"),
        (wire.pack(Kind.STEP, length=1 << 31), "too long"),
        (wire.pack(Kind.GRADIENT, slot=9, length=3), "slot 9, which is not there"),
        (wire.pack(Kind.GRADIENT, length=60000), "no room"),
        (wire.pack(Kind.GRADIENT, length=3) + b"abc", "damaged"),
        (wire.pack(Kind.STEP, length=3) + b"abc", "damaged"),
        (wire.pack(Kind.STEP, length=3, checksum=_core.crc32c(b"abc")) + b"abc", "no JSON"),
        (wire.pack(Kind.STEP, length=2, checksum=_core.crc32c(b"[]")) + b"[]", "no JSON object"),
        (wire.pack(Kind.PARAMETERS, length=3) + b"abc", "from the wrong end"),
        (b"SmI1\x09" + wire.pack(Kind.PING)[5:], "speaks version 9"),
        (wire.pack(Kind.PING)[:5] + b"\xc8" + wire.pack(Kind.PING)[6:], "unknown kind 200"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, said: str) -> None:
    assert said in refused(data)


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused(data: bytes) -> None:
    assert refused(data)


def test_shared_slots_are_one_memory() -> None:
    a = Slots.shareable(3, 100, 200)
    b = Slots(3, 100, 200, a.descriptor)
    a.down(2)[:2] = b"xy"
    b.up(0)[:1] = b"z"
    assert bytes(b.down(2)[:2]) == b"xy"
    assert bytes(a.up(0)[:1]) == b"z"
    areas: list[Any] = [a.down(0), a.up(0), a.down(1), a.up(1)]
    for number, area in enumerate(areas):
        area[:] = bytes([number]) * len(area)
    assert all(bytes(area) == bytes([n]) * len(area) for n, area in enumerate(areas))
