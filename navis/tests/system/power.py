"""What a loss of power leaves: files worked out from the record that shim/shim.c makes.

The model is the weakest that POSIX allows: a write counts once an fsync or fdatasync of its file,
begun after the write had ended, has ended; a name (made, changed or deleted) once an fsync of its
folder has. Of everything else a loss keeps nothing, or any of its sectors.
"""

from __future__ import annotations

import dataclasses
import enum
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

SECTOR, PAGE = 512, 4096
_EVENT = struct.Struct("=IIQQQQQ")
SOURCE = Path(__file__).parent / "shim" / "shim.c"


def compile_shim(folder: Path) -> Path:
    """Compile the shim; CalledProcessError or FileNotFoundError where there is no compiler."""
    library = folder / "shim.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", SOURCE, "-o", library]
    subprocess.run([*command, "-lpthread"], check=True, timeout=120)
    return library


def shim_environment(shim: Path, root: Path, record: Path | None = None) -> dict[str, str]:
    """The environment of a process that is recorded below `root`, and is refused io_uring."""
    environment = {
        **os.environ,
        **{"LD_PRELOAD": str(shim), "SHIM_ROOT": str(root), "SHIM_SYNC_US": "300"},
        **{"OMP_NUM_THREADS": "1", "SHORTHAUL_IO": "posix"},
    }
    return environment | ({"SHIM_RECORD": str(record)} if record else {})


class Kind(enum.IntEnum):
    """As in shim.c."""

    WRITE = 1
    END = 2
    SYNC = 3
    TRUNCATE = 4
    CREATE = 5
    RENAME = 6
    UNLINK = 7
    MKDIR = 8


_NAMES = (Kind.CREATE, Kind.RENAME, Kind.UNLINK, Kind.MKDIR)


@dataclasses.dataclass(slots=True)
class Event:
    """One change; END says that the one it numbers has returned."""

    kind: Kind
    time: float
    inode: int
    parent: int
    offset: int
    paths: tuple[str, ...]
    data: memoryview
    thing: int = -1  # file or folder: inode numbers are used again


class Loss(enum.Enum):
    """What becomes of that which no sync covers."""

    KILL = "the process alone dies: every finished write is there"
    ALL = "all is lost"
    TORN = "any sector may be there, names up to any of them"
    NEARLY_NONE = "a few sectors are lost"


class Recording:
    """A process's changes below `root`, from the files that were there before it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, tuple[int, bytes]] = {}  # path: thing, content
        self._things: dict[int, int] = {}  # of inodes
        for path in (root, *sorted(root.rglob("*"))):
            thing = self._things[path.stat().st_ino] = len(self._things)
            if path.is_file():
                self._files[str(path)] = (thing, path.read_bytes())
        self._folders = {str(p): p.stat().st_ino for p in (root, *root.rglob("*")) if p.is_dir()}
        self.events: list[Event] = []

    def load(self, record: Path) -> None:
        """Read the record; the last event may be cut short by the process's death."""
        with record.open("rb") as file:
            raw = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        at, things, made = 0, dict(self._things), len(self._things)
        while at + _EVENT.size <= len(raw):
            kind, path_bytes, time, inode, parent, offset, count = _EVENT.unpack_from(raw, at)
            begin = at + _EVENT.size + path_bytes
            at = begin + (count if kind == Kind.WRITE else 0)
            if at > len(raw):
                break
            paths = bytes(raw[begin - path_bytes : begin]).decode().split("\0")
            event = Event(
                Kind(kind), time / 1e9, inode, parent, offset, tuple(paths), raw[begin:at]
            )
            if event.kind in (Kind.CREATE, Kind.MKDIR):
                things[inode] = made
                made += 1
            event.thing = things.get(inode, -1)
            event.parent = things.get(parent, -1)
            self.events.append(event)

    def lines(self, name: str, cut: int) -> Iterator[tuple[float, bytes]]:
        """What was written to this file before the cut, and when."""
        thing = self._files[str(self.root / name)][0]
        for event in self.events[:cut]:
            if event.kind is Kind.WRITE and event.thing == thing:
                yield event.time, bytes(event.data)

    def lose(self, cut: int, loss: Loss, seed: int, into: Path) -> None:
        """Write what is left when power goes just before event number `cut`."""
        draw = random.Random(seed)
        events = self.events[:cut]
        ends = {e.offset: i for i, e in enumerate(events) if e.kind is Kind.END}
        synced: dict[int, int] = {}  # thing: begin of its last finished sync
        for i, event in enumerate(events):
            if event.kind is Kind.SYNC and i in ends:
                synced[event.thing] = i
        kept_share = {Loss.KILL: 1.0, Loss.ALL: 0.0, Loss.TORN: 0.5, Loss.NEARLY_NONE: 0.95}[loss]

        def durable(i: int, event: Event) -> bool:
            thing = event.parent if event.kind in _NAMES else event.thing
            return ends.get(i, cut) < synced.get(thing, -1) or (
                event.kind is not Kind.WRITE and i < synced.get(thing, -1)
            )

        # A file system commits names in their order: of those not yet synced the first few.
        names = [i for i, e in enumerate(events) if e.kind in _NAMES and not durable(i, e)]
        keep = {Loss.KILL: len(names), Loss.ALL: 0}.get(loss, draw.randint(0, len(names)))
        lost_names = set(names[keep:])

        places = {path: thing for path, (thing, _) in self._files.items()}
        folders = set(self._folders)
        contents = {thing: bytearray(data) for thing, data in self._files.values()}
        for i, event in enumerate(events):
            kind = event.kind
            if kind in _NAMES:
                if i in lost_names:
                    continue
                if kind is Kind.CREATE:
                    places[event.paths[0]] = event.thing
                elif kind is Kind.MKDIR:
                    folders.add(event.paths[0])
                elif kind is Kind.RENAME:
                    places[event.paths[1]] = places.pop(event.paths[0], event.thing)
                else:
                    places.pop(event.paths[0], None)
                    folders.discard(event.paths[0])
            elif kind is Kind.TRUNCATE:
                content = contents.setdefault(event.thing, bytearray())
                if durable(i, event) or draw.random() < kept_share:
                    del content[event.offset :]
                    content.extend(bytes(event.offset - len(content)))
            elif kind is Kind.WRITE:
                content = contents.setdefault(event.thing, bytearray())
                if durable(i, event) or (loss is Loss.KILL and i in ends):
                    _put(content, event.offset, event.data)
                elif kept_share > 0:
                    _put_some(content, event, draw, min(kept_share, 0.95))
        for folder in sorted(folders):
            target = into / os.path.relpath(folder, self.root)
            if target.parent.is_dir():
                target.mkdir(exist_ok=True)
        for path, thing in places.items():
            target = into / os.path.relpath(path, self.root)
            if target.parent.is_dir():
                target.write_bytes(contents.get(thing, b""))


def _put(content: bytearray, offset: int, data: memoryview | bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _put_some(content: bytearray, event: Event, draw: random.Random, share: float) -> None:
    """Some sectors of a write; a file grows by whole pages, of zeros where nothing was kept."""
    size, end = len(content), event.offset + len(event.data)
    for at in range(0, len(event.data), SECTOR):
        if draw.random() < share:
            _put(content, event.offset + at, event.data[at : at + SECTOR])
    if len(content) > size:
        _put(content, len(content), bytes(min(end, -(-len(content) // PAGE) * PAGE) - len(content)))
