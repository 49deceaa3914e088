"""A device: a process that owns a folder, and the only one that touches it.

It serves one host at a time over a link. One thread receives frames and gives the engine its jobs,
another sends what the engine has done. When the host is gone, however it went, what was not
committed is forgotten; a damaged or foreign frame ends the connection and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import os
import queue
import resource
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import ShorthaulError, UserError
from shorthaul.uring import File, Mode

from smart_infinity import _core, errors, wire
from smart_infinity.core_types import DTYPES, plan_of, segments_of, updater_of
from smart_infinity.link import Link, Slots
from smart_infinity.wire import Frame, Kind, ProtocolError


class Session:
    """One host's connection."""

    def __init__(self, link: Link, folder: Path, token: str | None, *, local: bool) -> None:
        self.link, self.folder, self.token, self.local = link, folder, token, local
        self.engine: Any = None
        self.slots: Slots | None = None
        self._busy: dict[int, tuple[Kind, int]] = {}  # by slot: the job without an answer, its tile
        self._late: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._sender: threading.Thread | None = None

    # ------------------------------------------------------------------ life

    def serve(self) -> None:
        """Greet, then do what the host says until it closes.

        Raises:
            ProtocolError: The host does not speak the protocol, or lacks the token.
            OSError: The connection broke.
        """
        try:
            self._greet()
            self.link.max_control = wire.MAX_CONTROL
            self.link.sock.settimeout(None)
            while (frame := self.link.receive()) is not None:
                if frame.kind is Kind.CLOSE:
                    break
                try:
                    self._do(frame)
                except ProtocolError:
                    raise
                except Exception as error:
                    self._say(error, frame)
        finally:
            self._end()

    def _end(self) -> None:
        self._stop.set()
        self.link.close()
        if self._sender is not None:
            self._sender.join()
        self.engine = None  # waits for transfers in flight
        if self.slots is not None:
            self.slots.close()

    def _say(self, error: BaseException, frame: Frame) -> None:
        if isinstance(error, ShorthaulError):
            message = str(error)
        else:
            message = f"{type(error).__name__}: {error}"
        body = {"kind": errors.kind_of(error), "message": message}
        if frame.kind in wire.JOBS:
            self.link.send(Kind.ERROR, body, flags=wire.JOB, slot=frame.slot)
        else:
            self.link.send(Kind.ERROR, body)

    def _greet(self) -> None:
        frame = self._expect(Kind.HELLO)
        version = (frame.body or {}).get("version")
        if version != wire.VERSION:
            raise ProtocolError(f"a host of version {version!r}; this device has {wire.VERSION}")
        nonce = secrets.token_hex(16)
        self.link.send(Kind.CHALLENGE, {"nonce": nonce, "token": self.token is not None})
        if self.token is not None:
            given = (self._expect(Kind.PROVE).body or {}).get("proof")
            right = isinstance(given, str) and hmac.compare_digest(given, proof(self.token, nonce))
            if not right:
                self.link.send(Kind.ERROR, {"kind": "bad_input", "message": "the token is wrong"})
                raise ProtocolError("a host without the token")
        self.link.send(Kind.WELCOME, {"folder": str(self.folder), **self._state()})

    def _expect(self, kind: Kind) -> Frame:
        frame = self.link.receive()
        if frame is None or frame.kind is not kind:
            raise ProtocolError(f"{kind.name} was expected")
        return frame

    def _state(self) -> dict[str, Any]:
        """What is in the folder, read without taking it."""
        if not (self.folder / "state.smart").exists():
            return {"state": None}
        try:
            state = _core.State(self.folder)
        except ShorthaulError as error:
            return {"state": None, "error": str(error), "kind": errors.kind_of(error)}
        found = {"description": state.description, "note": state.note.decode("latin-1")}
        return {"state": {"step": state.step, "previous_step": state.previous_step, **found}}

    # ------------------------------------------------------------------ frames

    def _do(self, frame: Frame) -> None:
        kind, body = frame.kind, frame.body or {}
        if kind is Kind.PING:
            self.link.send(Kind.PONG)
        elif kind is Kind.CREATE:
            self._create(body)
        elif kind is Kind.OPEN:
            self._open(body)
        elif kind is Kind.STATS:
            self.link.send(Kind.COUNTS, self._counts(bool(body.get("trace"))))
        elif self.engine is None:
            raise ProtocolError(f"{kind.name} before OPEN")
        elif kind in wire.JOBS:
            self._job(frame)
        else:
            self._command(frame, body)

    def _create(self, body: dict[str, Any]) -> None:
        if self.engine is not None:
            raise ProtocolError("CREATE after OPEN")
        shape = body["shape"]
        self._check_direct(bool(body["buffered"]))
        if body.get("replace"):
            self._remove_unused()
        _core.create_state(
            self.folder,
            _core.Kind[shape["kind"]],
            bool(shape["momentum"]),
            _core.Moments[shape["moments"]],
            int(shape["tile"]),
            np.asarray(shape["elements"], np.uint32),
            str(body["description"]),
            int(body["note_bytes"]),
        )
        self.link.send(Kind.DONE)

    def _remove_unused(self) -> None:
        """Remove a state that no step was ever taken with."""
        path = self.folder / "state.smart"
        if not path.exists():
            return
        state = _core.State(self.folder, readonly=False)  # refuses one that is in use
        if state.step > 0:
            raise UserError(f"{self.folder}: holds a state at step {state.step} already")
        path.unlink()

    def _check_direct(self, buffered: bool) -> None:
        """Refuse a file system without O_DIRECT, where its page cache would pass for the disk."""
        if buffered:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".direct-test"
            direct = File(probe, Mode.create).direct
            probe.unlink()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written to ({error.strerror})") from error
        if not direct:
            raise UserError(
                f"{self.folder}: its file system refuses O_DIRECT: give a folder on another one, "
                "or DeviceOptions(buffered=True)"
            )

    def _open(self, body: dict[str, Any]) -> None:
        if self.engine is not None:
            raise ProtocolError("OPEN twice")
        self._check_direct(bool(body["buffered"]))
        segments, updater = segments_of(body["segments"]), updater_of(body["update"])
        self.engine = _core.Engine(
            self.folder,
            segments,
            slots=int(body["slots"]),
            landing_bytes=int(body["landing_bytes"]),
            read_rate=float(body["read_rate"]),
            write_rate=float(body["write_rate"]),
            trace=bool(body["trace"]),
            update=updater,
        )
        window, down, up = int(body["window"]), int(body["down_bytes"]), int(body["up_bytes"])
        if not (1 <= window <= 4096 and max(down, up) <= 1 << 30):
            raise ProtocolError("a window of slots beyond reason")
        shared = bool(body["shared"]) and self.local
        ready = {
            "direct": self.engine.direct, "io": self.engine.io_reason, "shared": shared,
            "level": _core.simd() if updater is _core.Updater.cpu else updater.name,
        }  # fmt: skip
        if shared:
            self.link.send(Kind.READY, {**ready, "step": self.engine.step})
            descriptor = self.link.receive_descriptor()
            self.slots = Slots(window, down, up, descriptor)
            os.close(descriptor)
            self.link.shared = True
        else:
            self.slots = Slots(window, down, up)
        self.link.slots = self.slots
        if not shared:
            self.link.send(Kind.READY, {**ready, "step": self.engine.step})
        self._sender = threading.Thread(target=self._send, name="sender", daemon=True)
        self._sender.start()

    def _job(self, frame: Frame) -> None:
        """Give the engine a job; the frame's slot is its memory until the answer."""
        assert self.slots is not None
        slot, tile, kind = frame.slot, frame.arg, frame.kind
        if slot >= self.slots.count:
            raise ProtocolError(f"{kind.name} for slot {slot} of {self.slots.count}")
        if slot in self._busy:
            raise ProtocolError(f"{kind.name} for slot {slot}, which is in use")
        if tile >= 1 << 32:
            raise ProtocolError(f"{kind.name} for tile {tile}")
        self._busy[slot] = kind, tile
        dtype = DTYPES[min(frame.flags & wire.TYPE_MASK, 2)]
        out_type = DTYPES[min(frame.flags >> wire.OUT_SHIFT & wire.TYPE_MASK, 2)]
        down, up = self.slots.down(slot)[: frame.length], self.slots.up(slot)
        mask = frame.flags >> wire.MASK_SHIFT & 0xF
        decoded = bool(frame.flags & wire.DECODED)
        try:
            if kind is Kind.GRADIENT:
                topk = bool(frame.flags & wire.TOPK)
                encoding = _core.Encoding.topk if topk else _core.Encoding.dense
                self.engine.update(tile, slot, down, encoding, dtype, up, out_type)
            elif kind is Kind.LAND:
                self.engine.land(tile, slot, down, dtype, bool(frame.flags & wire.ADD))
            elif kind is Kind.RUN:
                self.engine.update_landed(tile, slot, up, out_type)
            elif kind is Kind.READ:
                self.engine.read(tile, slot, up, mask, decoded)
            else:
                self.engine.write(tile, slot, down, mask, decoded)
        except Exception:
            self._busy.pop(slot, None)
            raise

    def _command(self, frame: Frame, body: dict[str, Any]) -> None:
        if frame.kind is Kind.STEP:
            self.engine.begin(plan_of(self.engine.shape["kind"], frame.arg, body))
        elif frame.kind is Kind.PREPARE:
            self._prepare(frame.arg, str(body["note"]).encode("latin-1"))
            self.link.send(Kind.PREPARED, arg=frame.arg)
            return
        elif frame.kind is Kind.COMMIT:
            self.engine.commit()
        elif frame.kind is Kind.ABANDON:
            self.engine.abandon()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._late.get_nowait()
        elif frame.kind is Kind.ROLLBACK:
            self.engine.rollback()
        else:
            raise ProtocolError(f"{frame.kind.name} is no frame to a device")
        self.link.send(Kind.DONE, arg=self.engine.step)

    def _prepare(self, step: int, note: bytes) -> None:
        try:
            self.engine.prepare(step, note)
        except ShorthaulError as error:
            # A job failed behind its answer; its event, which says why, may still be on its way.
            with contextlib.suppress(queue.Empty):
                late = self._late.get(timeout=1.0)
                raise errors.from_core(late["kind"], late["message"]) from error
            raise

    # ------------------------------------------------------------------ answers

    def _send(self) -> None:
        answers = {"land": Kind.LANDED, "write": Kind.WRITTEN}
        carrying = {
            "update": Kind.PARAMETERS,
            "update_landed": Kind.PARAMETERS,
            "read": Kind.STATE,
        }
        jobs = {
            "update": Kind.GRADIENT, "land": Kind.LAND, "update_landed": Kind.RUN,
            "read": Kind.READ, "write": Kind.WRITE,
        }  # fmt: skip
        while not self._stop.is_set():
            event = self.engine.next(0.2)
            if event is None:
                continue
            what, job, tile, slot, length, finite, kind, message = event
            if what == "settled":
                continue
            body = {"kind": kind, "message": message}
            if what == "failed" and self._busy.get(slot) != (jobs[job], tile):
                # Its parameters were handed up before they could not be written: the slot is the
                # host's again, perhaps another job's already. The step fails when it is prepared.
                self._late.put(body)
                continue
            self._busy.pop(slot, None)
            try:
                if what == "failed":
                    self.link.send(Kind.ERROR, body, flags=wire.JOB, slot=slot)
                elif job in answers:
                    self.link.send(answers[job], slot=slot, arg=tile)
                else:
                    flags = 0 if finite else wire.NOT_FINITE
                    self.link.send_data(carrying[job], slot, length, flags=flags, arg=tile)
            except OSError:
                return  # the host is gone; the receiving thread has seen it too

    def _counts(self, trace: bool) -> dict[str, Any]:
        io = {}
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/io").read_text().splitlines():
                name, _, value = line.partition(": ")
                io[name] = int(value)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counted: dict[str, Any] = {
            "pid": os.getpid(),
            "io": io,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_rss_bytes": usage.ru_maxrss * 1024,
            "rss_bytes": resident_bytes(),
            "sent": self.link.sent.snapshot(),
            "received": self.link.received.snapshot(),
        }
        if self.engine is not None:
            counted["engine"] = dict(self.engine.counters)
            if trace:
                counted["trace"] = self.engine.take_trace()
        return counted


def resident_bytes() -> int:
    """Give this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def proof(token: str, nonce: str) -> str:
    """Give what shows a device that the host knows the token."""
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()


def serve_socket(sock: socket.socket, folder: Path, token: str | None, *, local: bool) -> None:
    """Serve one connection to its end; what is wrong with it is said in one line."""
    session = Session(Link(sock, host=False), folder, token, local=local)
    try:
        session.serve()
    except (ProtocolError, OSError) as error:
        print(f"smart-infinity device {folder}: connection ended: {error}", file=sys.stderr)


def main() -> None:
    """Serve the socket that the host has passed, and end with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    # Ctrl-C in a terminal reaches everyone in it; the host decides what becomes of a step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve_socket(socket.socket(fileno=given.fd), given.folder, None, local=True)


if __name__ == "__main__":
    main()
