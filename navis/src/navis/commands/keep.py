"""``navis compact``, ``navis snapshot`` and ``navis repair``: what keeps an index in good order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common, emit

from navis.commands.session import SessionFlags


@contextmanager
def shown(what: str) -> Iterator[Callable[[int, int], bool]]:
    """Give a progress function of the engine that moves the bar."""
    from shorthaul.progress import bar

    with bar(None, what) as drawn:

        def report(done: int, total: int) -> bool:
            drawn.total, drawn.n = total, done
            drawn.refresh()
            return True

        yield report


@dataclass(kw_only=True)
class Compact(SessionFlags, Common):
    """Give back the space of deletes, order the files anew; interrupted, it goes on next time."""

    index: tyro.conf.Positional[Path]
    """Index folder."""

    def run(self) -> None:
        """Compact, say what it gave."""
        started = time.perf_counter()
        with self.open(self.index) as index:
            index.checkpoint()  # the log's size is not compaction's doing
            before = index.stats()
            with shown("compact") as report:
                index.compact(report)
            after = index.stats()
        found = {
            "files_bytes_before": before["files_bytes"],
            "files_bytes": after["files_bytes"],
            "deleted": before["deleted"] - after["deleted"],
            "space_amplification_before": before["units"] / max(1, before["units_minimal"]),
            "space_amplification": after["units"] / max(1, after["units_minimal"]),
            "wall_s": time.perf_counter() - started,
        }
        emit(
            found,
            self.json,
            f"{self.index}: {before['files_bytes'] / 1e6:.1f} MB became "
            f"{after['files_bytes'] / 1e6:.1f} MB, {found['deleted']} deleted vectors removed, "
            f"{found['wall_s']:.1f} s",
        )


@dataclass(kw_only=True)
class Snapshot(SessionFlags, Common):
    """Copy an index, as it is at one moment, to a new folder; half a copy is never left."""

    index: tyro.conf.Positional[Path]
    """Index folder."""
    path: tyro.conf.Positional[Path]
    """Folder to make."""

    def run(self) -> None:
        """Copy and say how much."""
        started = time.perf_counter()
        with self.open(self.index) as index, shown("snapshot") as report:
            index.snapshot(self.path, report)
            live = len(index)
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        found = {
            "path": str(self.path),
            "vectors": live,
            "files_bytes": size,
            "wall_s": time.perf_counter() - started,
        }
        emit(
            found,
            self.json,
            f"{self.path}: {live} vectors, {size / 1e6:.1f} MB, {found['wall_s']:.1f} s",
        )


@dataclass(kw_only=True)
class Repair(SessionFlags, Common):
    """Make edge lists on damaged pages anew; exit 1 when vectors are lost."""

    index: tyro.conf.Positional[Path]
    """Index folder."""

    def run(self) -> None:
        """Repair, say what was mended and name what is lost."""
        from navis.errors import Corrupt

        with self.open(self.index) as index:
            report = index.repair()
        lost = sorted(report["lost"])
        emit(
            {"lists": report["lists"], "lost": lost},
            self.json,
            f"{self.index}: {report['lists']} lists made anew, {len(lost)} vectors lost",
        )
        if lost:
            some = ",".join(map(str, lost[:20])) + ",…" * (len(lost) > 20)
            raise Corrupt(
                f"{self.index}: the vectors of {len(lost)} ids are damaged, delete them, "
                f"then insert them anew: {some}"
            )
