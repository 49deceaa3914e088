"""The link: the only way in and out of a device, metered to the byte.

One protocol over three transports: shared memory beside a Unix socket (payloads are written once
and read where they lie), a Unix socket, or TCP, with TLS where the host gives a context. Counters
count headers and payloads of every frame, by direction and kind, whatever carries them.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from smart_infinity import _core, wire
from smart_infinity.shaper import Shaper
from smart_infinity.wire import Frame, Kind, ProtocolError


@dataclass
class Counts:
    """Frames, and the bytes of their headers and payloads, of one kind."""

    frames: int = 0
    header_bytes: int = 0
    payload_bytes: int = 0


@dataclass
class Meter:
    """What has crossed a link."""

    kinds: dict[Kind, Counts] = field(default_factory=dict)

    def add(self, kind: Kind, payload: int) -> None:
        """Count one frame."""
        counts = self.kinds.setdefault(kind, Counts())
        counts.frames += 1
        counts.header_bytes += wire.HEADER_BYTES
        counts.payload_bytes += payload

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Give the counts by kind, as plain data."""
        return {kind.name.lower(): vars(counts).copy() for kind, counts in self.kinds.items()}


class Slots:
    """Memory of tiles in flight: per slot an area down to the device, and one up from it."""

    def __init__(self, count: int, down: int, up: int, shared: int | None = None) -> None:
        """Make the memory, or map that of the descriptor `shared`."""
        self.count, self.down_bytes, self.up_bytes = count, _up(down), _up(up)
        self.size = max(count * (self.down_bytes + self.up_bytes), mmap.PAGESIZE)
        self.descriptor = -1
        if shared is None:
            self.memory = mmap.mmap(-1, self.size)
        else:
            self.memory = mmap.mmap(shared, self.size)
        self.view = memoryview(self.memory)

    @classmethod
    def shareable(cls, count: int, down: int, up: int) -> Slots:
        """Make memory that another process can map; its descriptor is `descriptor`."""
        descriptor = os.memfd_create("smart_infinity")
        size = max(count * (_up(down) + _up(up)), mmap.PAGESIZE)
        os.ftruncate(descriptor, size)
        made = cls(count, down, up, descriptor)
        made.descriptor = descriptor
        return made

    def down(self, slot: int) -> memoryview:
        """Give the area that goes down to the device."""
        at = slot * (self.down_bytes + self.up_bytes)
        return self.view[at : at + self.down_bytes]

    def up(self, slot: int) -> memoryview:
        """Give the area that comes up from the device."""
        at = slot * (self.down_bytes + self.up_bytes) + self.down_bytes
        return self.view[at : at + self.up_bytes]

    def close(self) -> None:
        """Give the memory back, as far as nobody holds a view of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        try:
            self.view.release()
            self.memory.close()
        except BufferError:
            pass  # a view is out; it goes with the last one


def _up(count: int) -> int:
    return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE


class Link:
    """One end of a link. Sending is safe from several threads, receiving is one thread's.

    Args:
        sock: Connected stream socket; TLS is its business.
        host: Whether this is the host's end.
        shaper: The host's, when the link is slowed.
    """

    def __init__(self, sock: socket.socket, *, host: bool, shaper: Shaper | None = None) -> None:
        self.sock = sock
        self.host = host
        self.shaper = shaper if shaper is not None and shaper.active else None
        self.slots: Slots | None = None
        self.shared = False
        self.max_control = wire.MAX_HELLO
        self.sent, self.received = Meter(), Meter()
        self._send_lock = threading.Lock()
        self._header = bytearray(wire.HEADER_BYTES)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A host whose machine is gone says nothing: two minutes, and the device serves others.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)

    def _area(self, kind: Kind, slot: int) -> memoryview:
        if self.slots is None or slot >= self.slots.count:
            raise ProtocolError(f"{kind.name} for slot {slot}, which is not there")
        return self.slots.down(slot) if kind in wire.DOWN else self.slots.up(slot)

    def send(
        self,
        kind: Kind,
        body: dict[str, Any] | None = None,
        *,
        flags: int = 0,
        slot: int = 0,
        arg: int = 0,
    ) -> None:
        """Send a control frame."""
        payload = wire.dump(body) if body is not None else b""
        checksum = _core.crc32c(payload) if payload else 0
        header = wire.pack(kind, flags, slot, arg, len(payload), checksum)
        with self._send_lock:
            self.sock.sendall(header + payload)
            self.sent.add(kind, len(payload))

    def send_data(
        self, kind: Kind, slot: int, length: int, *, flags: int = 0, arg: int = 0
    ) -> None:
        """Send the first `length` bytes of a slot's area."""
        payload = self._area(kind, slot)[:length]
        if self.shaper is not None and self.host:
            self.shaper.down.take(wire.HEADER_BYTES + length)
        checksum = 0 if self.shared else _core.crc32c(payload)
        header = wire.pack(kind, flags, slot, arg, length, checksum)
        with self._send_lock:
            self.sock.sendall(header)
            if not self.shared:
                self.sock.sendall(payload)
            self.sent.add(kind, length)

    def receive(self) -> Frame | None:
        """Receive the next frame; None when the other end has closed between frames.

        Raises:
            ProtocolError: What came is no frame, too long, damaged, or cut off.
            OSError: The connection broke.
        """
        if not self._fill(memoryview(self._header), start=True):
            return None
        frame, checksum = wire.unpack(self._header)
        if (frame.kind in wire.DOWN) == self.host:
            raise ProtocolError(f"{frame.kind.name} came from the wrong end")
        if frame.kind in wire.DATA:
            area = self._area(frame.kind, frame.slot)
            if frame.length > len(area):
                raise ProtocolError(f"{frame.kind.name} of {frame.length} bytes: no room")
            if self.shaper is not None and self.host:
                self.shaper.up.take(wire.HEADER_BYTES + frame.length)
            if not self.shared:
                payload = area[: frame.length]
                self._fill(payload)
                if _core.crc32c(payload) != checksum:
                    raise ProtocolError(f"{frame.kind.name}: the payload is damaged (checksum)")
        else:
            if frame.length > self.max_control:
                raise ProtocolError(f"{frame.kind.name} of {frame.length} bytes is too long")
            body = bytearray(frame.length)
            self._fill(memoryview(body))
            if body and _core.crc32c(body) != checksum:
                raise ProtocolError(f"{frame.kind.name}: the payload is damaged (checksum)")
            frame.body = wire.load(body)
        self.received.add(frame.kind, frame.length)
        return frame

    def _fill(self, into: memoryview, start: bool = False) -> bool:
        got = 0
        while got < len(into):
            count = self.sock.recv_into(into[got:])
            if count == 0:
                if start and got == 0:
                    return False
                raise ProtocolError("the link was cut in the middle of a frame")
            got += count
        return True

    def send_descriptor(self, descriptor: int) -> None:
        """Pass a file descriptor (Unix sockets only)."""
        with self._send_lock:
            socket.send_fds(self.sock, [b"F"], [descriptor])

    def receive_descriptor(self) -> int:
        """Take the descriptor that the other end passes."""
        data, descriptors, _, _ = socket.recv_fds(self.sock, 1, 1)
        if data != b"F" or len(descriptors) != 1:
            raise ProtocolError("no shared memory came over the link")
        return descriptors[0]

    def close(self) -> None:
        """Close; whoever receives at either end sees it."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


OnFrame = Callable[[Frame], None]
