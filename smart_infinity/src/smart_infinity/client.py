"""The host's end of a device: starts or reaches it, sends jobs, hands answers on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shorthaul.errors import UserError

from smart_infinity import errors, wire
from smart_infinity.errors import DeviceLost
from smart_infinity.link import Link, Slots
from smart_infinity.shaper import Shaper
from smart_infinity.wire import Frame, Kind, ProtocolError

# Called on the receiving thread with the device and an answer to a job. True keeps the slot, for
# the next job of the same tile; else it is free again.
OnAnswer = Callable[["Device", Frame], bool]
UPDATERS = ("cpu", "opencl")
_BUILD_S = 300.0  # an OpenCL driver may compile the kernels before it is ready
_ANSWERS = frozenset({Kind.PARAMETERS, Kind.LANDED, Kind.STATE, Kind.WRITTEN})


@dataclass(frozen=True)
class DeviceOptions:
    """How a device works.

    Attributes:
        slots: Tiles in its memory at once; with one, nothing overlaps.
        window: Tiles on the link at once.
        landing_bytes: Gradients it keeps in memory until their step; the rest wait on its disk.
        read_rate: Bytes a second its media is slowed to, 0 for none (an emulation).
        write_rate: The same for writes.
        shared: Whether payloads may go through shared memory, where it runs on this machine.
        buffered: Whether it may go through the page cache where a file system refuses O_DIRECT;
            what is read and written is no longer what the disk does then.
        trace: Whether it notes when what happened.
        timeout_s: Silence after which it counts as lost.
        update: What steps its tiles: cpu, or opencl (float32 moments only; docs/accelerators.md).
    """

    slots: int = 8
    window: int = 8
    landing_bytes: int = 1 << 30
    read_rate: float = 0.0
    write_rate: float = 0.0
    shared: bool = True
    buffered: bool = False
    trace: bool = False
    timeout_s: float = 20.0
    update: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("slots", "window"):
            if not 1 <= getattr(self, name) <= 512:
                raise UserError(f"{name}={getattr(self, name)}: use 1 to 512")
        if not 0 <= self.landing_bytes < 1 << 63:
            raise UserError(f"landing_bytes={self.landing_bytes}: use 0 to {(1 << 63) - 1}")
        for name in ("read_rate", "write_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)}: use 0 or more bytes a second")
        if not 0 < self.timeout_s < math.inf:
            raise UserError(f"timeout_s={self.timeout_s}: use more than 0")
        if self.update not in UPDATERS:
            raise UserError(f"update={self.update!r}: use {' or '.join(UPDATERS)}")


class Device:
    """A device and the link to it.

    Args:
        address: A folder of this machine, whose device is started here; `unix:PATH` or
            `tcp:HOST:PORT` of one that `smart-infinity device` serves.
        shaper: Slows the link; shared by all devices of a host.
        tls: Context for TLS over TCP.

    `greet` comes next, so that several devices can start at the same time.
    """

    def __init__(
        self,
        address: str | Path,
        options: DeviceOptions,
        *,
        shaper: Shaper | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address, self.options = str(address), options
        self.process: subprocess.Popen[bytes] | None = None
        self.slots: Slots | None = None
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.on_answer: OnAnswer | None = None
        self._replies: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._lost: Exception | None = None
        self._heard = time.monotonic()
        self._changed = threading.Condition()
        self._outstanding = 0
        self._receiver: threading.Thread | None = None
        self._closing = False
        self.link = Link(self._connect(tls), host=True, shaper=shaper)
        self.link.max_control = wire.MAX_CONTROL
        self.link.sock.settimeout(options.timeout_s)
        self.welcome: dict[str, Any] = {}

    # ------------------------------------------------------------------ beginning

    def _connect(self, tls: ssl.SSLContext | None) -> socket.socket:
        scheme, _, rest = self.address.partition(":")
        try:
            if scheme == "unix":
                sock = socket.socket(socket.AF_UNIX)
                try:
                    sock.connect(rest)
                except OSError:
                    sock.close()
                    raise
                return sock
            if scheme == "tcp":
                host, _, port = rest.rpartition(":")
                if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
                    raise UserError(
                        f"device {self.address!r}: write tcp:HOST:PORT, a port is 1 to 65535"
                    )
                sock = socket.create_connection((host, int(port)), self.options.timeout_s)
                return sock if tls is None else tls.wrap_socket(sock, server_hostname=host)
        except OSError as error:
            raise UserError(
                f"device {self.address}: cannot be reached ({error}); start it with "
                "smart-infinity device"
            ) from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = [
            sys.executable, "-P", "-m", "smart_infinity.worker",
            "--fd", str(theirs.fileno()), "--folder", self.address,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        return ours

    def greet(self, token: str | None = None) -> None:
        """Begin the session; `token` is for a device that asks for one.

        Raises:
            UserError: It asks for a token, and this is not it.
        """
        from smart_infinity.worker import proof

        self.link.send(Kind.HELLO, {"version": wire.VERSION})
        challenge = self._reply(Kind.CHALLENGE).body or {}
        if challenge.get("token"):
            if token is None:
                raise UserError(f"device {self.address} asks for a token: give token=")
            self.link.send(Kind.PROVE, {"proof": proof(token, str(challenge.get("nonce")))})
        self.welcome = self._reply(Kind.WELCOME).body or {}

    def _reply(self, kind: Kind) -> Frame:
        """Receive a frame before the receiving thread does."""
        try:
            frame = self.link.receive()
        except (OSError, ProtocolError) as error:
            raise self._gone(error) from error
        if frame is None:
            raise self._gone(None)
        if frame.kind is Kind.ERROR:
            raise self._error(frame)
        if frame.kind is not kind:
            raise DeviceLost(f"device {self.address} said {frame.kind.name} for {kind.name}")
        return frame

    @property
    def state(self) -> dict[str, Any] | None:
        """What the device's folder holds: `step`, `previous_step`, `description`, `note`."""
        if "error" in self.welcome:
            raise errors.from_core(self.welcome["kind"], self.welcome["error"])
        return self.welcome.get("state")

    def create(
        self, shape: dict[str, Any], description: str, note_bytes: int, *, replace: bool = False
    ) -> None:
        """Make a state in the device's folder; it is whole or absent.

        With `replace`, in place of one at step 0.
        """
        self.link.send(
            Kind.CREATE,
            {
                "shape": shape, "description": description, "note_bytes": note_bytes,
                "buffered": self.options.buffered, "replace": replace,
            },
        )  # fmt: skip
        self._reply(Kind.DONE)
        self.welcome["state"] = {"step": 0, "previous_step": None, "note": ""}
        self.welcome["state"]["description"] = description

    def open(self, segments: dict[str, list[Any]], down_bytes: int, up_bytes: int) -> None:
        """Begin work on the state; a slot has room for so many bytes each way."""
        o = self.options
        self.link.send(
            Kind.OPEN,
            {
                "segments": segments, "slots": o.slots, "window": o.window,
                "landing_bytes": o.landing_bytes, "read_rate": o.read_rate,
                "write_rate": o.write_rate, "buffered": o.buffered, "trace": o.trace,
                "update": o.update, "down_bytes": down_bytes, "up_bytes": up_bytes,
                "shared": o.shared and self.process is not None,
            },
        )  # fmt: skip
        if o.update != "cpu":
            self.link.sock.settimeout(max(o.timeout_s, _BUILD_S))
        self.ready = self._reply(Kind.READY).body or {}
        if self.ready.get("shared"):
            self.slots = Slots.shareable(o.window, down_bytes, up_bytes)
            self.link.send_descriptor(self.slots.descriptor)
            self.link.shared = True
        else:
            self.slots = Slots(o.window, down_bytes, up_bytes)
        self.link.slots = self.slots
        for slot in range(o.window):
            self.free.put(slot)
        self.link.sock.settimeout(None)
        self._receiver = threading.Thread(target=self._receive, name="receiver", daemon=True)
        self._receiver.start()

    # ------------------------------------------------------------------ the receiving thread

    def _receive(self) -> None:
        try:
            while (frame := self.link.receive()) is not None:
                self._heard = time.monotonic()
                if frame.kind in _ANSWERS:
                    self._answered(frame)
                elif frame.kind is Kind.ERROR:
                    self._failed(frame)
                elif frame.kind is not Kind.PONG:
                    self._replies.put(frame)
            self._lose(None)
        except Exception as error:
            self._lose(error)

    def _answered(self, frame: Frame) -> None:
        on_answer = self.on_answer
        try:
            if on_answer is not None and on_answer(self, frame):
                return
        except Exception as error:
            with self._changed:
                self._failure = self._failure or error
        self.release(frame.slot)

    def release(self, slot: int) -> None:
        """Give back a slot that was acquired and has no job under way."""
        self.free.put(slot)
        with self._changed:
            self._outstanding -= 1
            self._changed.notify_all()

    def _failed(self, frame: Frame) -> None:
        if not frame.flags & wire.JOB:
            self._replies.put(frame)
            return
        with self._changed:
            self._failure = self._failure or self._error(frame)
        self.release(frame.slot)

    def _error(self, frame: Frame) -> Exception:
        body = frame.body or {}
        message = str(body.get("message"))
        if self.process is None:
            message = f"device {self.address}: {message}"
        return errors.from_core(str(body.get("kind")), message)

    def _lose(self, error: Exception | None) -> None:
        with self._changed:
            if not self._closing:
                self._lost = self._lost or self._gone(error)
            self._changed.notify_all()
        self.free.put(-1)
        self._replies.put(Frame(Kind.CLOSE))

    def _gone(self, error: Exception | None) -> DeviceLost:
        why = str(error) if error is not None else "it has ended"
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(2)
                if code < 0:
                    import signal

                    why = f"killed by {signal.Signals(-code).name}"
                else:
                    why = f"exited with code {code}"
        return DeviceLost(f"device {self.address} is lost: {why}")

    # ------------------------------------------------------------------ jobs

    def acquire(self) -> int:
        """Wait for a free slot and take it; its answer gives it back."""
        while True:
            try:
                slot = self.free.get(timeout=2.0)
            except queue.Empty:
                self._look()
                continue
            if slot < 0:
                self.free.put(-1)
                self._look()
                raise DeviceLost(f"device {self.address} is closed")
            with self._changed:
                self._outstanding += 1
            return slot

    def try_acquire(self) -> int | None:
        """Take a slot if one is free."""
        try:
            slot = self.free.get_nowait()
        except queue.Empty:
            return None
        if slot < 0:
            self.free.put(-1)
            return None
        with self._changed:
            self._outstanding += 1
        return slot

    def submit(self, kind: Kind, slot: int, tile: int, length: int = 0, flags: int = 0) -> None:
        """Send a job for a slot that was acquired; `length` bytes of its area go with it."""
        try:
            if kind in wire.DATA:
                self.link.send_data(kind, slot, length, flags=flags, arg=tile)
            else:
                self.link.send(kind, slot=slot, arg=tile, flags=flags)
        except OSError as error:
            self._lose(error)
            raise self._lost or self._gone(error) from error

    def _look(self) -> None:
        """Raise when the device is lost; ask for a sign of life when it has been silent."""
        if self._lost is not None:
            raise self._lost
        silent = time.monotonic() - self._heard
        if silent > self.options.timeout_s:
            raise DeviceLost(f"device {self.address} is lost: no sign of life for {silent:.0f} s")
        if silent > 2.0:
            with contextlib.suppress(OSError):
                self.link.send(Kind.PING)

    @property
    def failure(self) -> Exception | None:
        """The first job's error since the last `clear`, if any; or why the device is lost."""
        return self._lost or self._failure

    def clear(self) -> None:
        """Forget a failure, when what failed has been abandoned."""
        self._failure = None

    def wait_idle(self) -> None:
        """Wait until every job has its answer.

        Raises:
            DeviceLost: The device is gone, or silent.
        """
        self._heard = max(self._heard, time.monotonic() - 1.0)
        while True:
            with self._changed:
                if self._lost is not None:
                    raise self._lost
                if self._outstanding == 0:
                    return
                self._changed.wait(1.0)
                if self._outstanding == 0:
                    return
            self._look()

    def command(self, kind: Kind, answer: Kind, body: Any = None, arg: int = 0) -> Frame:
        """Send a command and wait for its answer; an error is raised."""
        self.send(kind, body, arg)
        return self.answer(answer)

    def send(self, kind: Kind, body: Any = None, arg: int = 0) -> None:
        """Send a command; `answer` waits for what it says."""
        self._heard = time.monotonic()
        try:
            self.link.send(kind, body, arg=arg)
        except OSError as error:
            self._lose(error)
            raise self._lost or self._gone(error) from error

    def answer(self, kind: Kind) -> Frame:
        """Wait for the answer to a command."""
        while True:
            try:
                frame = self._replies.get(timeout=2.0)
            except queue.Empty:
                self._look()
                continue
            if frame.kind is kind:
                return frame
            if frame.kind is Kind.ERROR:
                raise self._error(frame)
            if frame.kind is Kind.CLOSE:
                raise self._lost or DeviceLost(f"device {self.address} is closed")
            raise DeviceLost(f"device {self.address} said {frame.kind.name} for {kind.name}")

    def counts(self, trace: bool = False) -> dict[str, Any]:
        """Give the device's own counts; see `worker.Session`."""
        return self.command(Kind.STATS, Kind.COUNTS, {"trace": trace}).body or {}

    # ------------------------------------------------------------------ end

    def close(self) -> None:
        """End the session, and the process where it was started here."""
        self._closing = True
        with contextlib.suppress(OSError):
            self.link.send(Kind.CLOSE)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.kill()

    def kill(self) -> None:
        """End at once whatever is left."""
        self._closing = True
        self.link.close()
        if self._receiver is not None and self._receiver is not threading.current_thread():
            self._receiver.join(5)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.slots is not None:
            self.slots.close()


def description_of(device: Device) -> dict[str, Any]:
    """Read what a device remembers of the whole model."""
    state = device.state
    assert state is not None
    try:
        read = json.loads(state["description"])
    except ValueError as error:
        raise errors.Corrupt(f"{device.address}: its description is not JSON") from error
    return dict(read)
