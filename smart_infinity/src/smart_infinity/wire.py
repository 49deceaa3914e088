"""Frames: what crosses the link between a host and a device, to the byte.

A frame is a header of 32 bytes and a payload. Payloads of *data* frames (gradients, parameters,
state) belong to a slot, an area of memory that both ends have (one and the same when it is shared);
those of *control* frames are JSON. docs/protocol.md says who sends what when.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass
from typing import Any

from shorthaul.errors import Fault

VERSION = 1
MAGIC = b"SmI1"
HEADER = struct.Struct("<4sBBHIQII4x")  # magic version kind flags slot arg length sum
HEADER_BYTES = HEADER.size
MAX_CONTROL = 64 << 20  # a layout of a billion small tensors; before a welcome 4 KiB
MAX_HELLO = 4096


class Kind(enum.IntEnum):
    """What a frame is; the first ones go down to the device, the later ones up."""

    HELLO = 1  # {version}
    PROVE = 2  # {proof}: of the token
    CREATE = 3  # {shape, description, note_bytes}
    OPEN = 4  # {segments, slots, window, ...}
    STEP = 5  # {step, settings, steps, hyper_of, unscale, clip}
    GRADIENT = 6  # data: a tile's gradient, to update with at once
    LAND = 7  # data: a tile's gradient, to keep
    RUN = 8  # update a tile with what has landed
    READ = 9  # give arrays of a tile
    WRITE = 10  # data: arrays of a tile
    PREPARE = 11  # {note}
    COMMIT = 12
    ABANDON = 13
    ROLLBACK = 14
    STATS = 15
    PING = 16
    CLOSE = 17

    CHALLENGE = 32  # {nonce, token}: whether a proof is wanted
    WELCOME = 33  # {folder, state}
    READY = 34  # {memory}: shared memory by its descriptor, where the link can
    PARAMETERS = 35  # data: of a tile, stepped
    LANDED = 36
    STATE = 37  # data: what READ asked for
    WRITTEN = 38
    PREPARED = 39
    DONE = 40  # COMMIT, ABANDON, ROLLBACK
    COUNTS = 41
    PONG = 42
    ERROR = 43  # {kind, message}; with the flag JOB the answer to the job of its slot


DATA = frozenset({Kind.GRADIENT, Kind.LAND, Kind.WRITE, Kind.PARAMETERS, Kind.STATE})
JOBS = frozenset({Kind.GRADIENT, Kind.LAND, Kind.RUN, Kind.READ, Kind.WRITE})
DOWN = frozenset(kind for kind in Kind if kind < 32)

# Flags.
JOB = 0x1  # ERROR
TYPE_MASK = 0x3  # of values: 0 float32, 1 bfloat16, 2 float16
TOPK = 0x4  # GRADIENT: compressed
ADD = 0x8  # LAND: to what is there
DECODED = 0x10  # READ, WRITE: arrays as float32, else as stored
NOT_FINITE = 0x20  # PARAMETERS: the gradient was not finite
OUT_SHIFT = 6  # GRADIENT, RUN: the type that parameters come up in
MASK_SHIFT = 8  # READ, WRITE: which arrays; 0x8: the landed gradient


class ProtocolError(Fault):
    """The other end does not speak this protocol, or sent a damaged frame."""


@dataclass
class Frame:
    """A frame as received: `length` bytes of payload are in the slot, or `body` is the JSON."""

    kind: Kind
    flags: int = 0
    slot: int = 0
    arg: int = 0
    length: int = 0
    body: dict[str, Any] | None = None


def pack(
    kind: Kind, flags: int = 0, slot: int = 0, arg: int = 0, length: int = 0, checksum: int = 0
) -> bytes:
    """Give a header."""
    return HEADER.pack(MAGIC, VERSION, kind, flags, slot, arg, length, checksum)


def unpack(header: bytes | bytearray | memoryview) -> tuple[Frame, int]:
    """Read a header: the frame without its payload, and the payload's checksum.

    Raises:
        ProtocolError: It is none, or of another version.
    """
    magic, version, kind, flags, slot, arg, length, checksum = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError("what came over the link is no frame of smart_infinity")
    if version != VERSION:
        raise ProtocolError(f"the other end speaks version {version}, this one {VERSION}")
    try:
        kind = Kind(kind)
    except ValueError:
        raise ProtocolError(f"frame of unknown kind {kind}") from None
    return Frame(kind, flags, slot, arg, length), checksum


def dump(body: dict[str, Any]) -> bytes:
    """Give a control frame's payload."""
    return json.dumps(body, separators=(",", ":"), allow_nan=True).encode()


def load(payload: bytes | bytearray) -> dict[str, Any]:
    """Read a control frame's payload; what is no JSON object is a ProtocolError."""
    try:
        body = json.loads(payload) if payload else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ProtocolError("a control frame holds no JSON object")
    return body
