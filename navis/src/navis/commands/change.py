"""``navis insert`` and ``navis delete``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags

_BATCH = 256  # rows of one acknowledgement


@dataclass(kw_only=True)
class Insert(SessionFlags, Common):
    """Insert the vectors of a file; an id that is there is replaced."""

    index: tyro.conf.Positional[Path]
    """Index folder."""
    data: tyro.conf.Positional[str]
    """File of vectors."""
    start: int = 0
    """First row of the file."""
    count: int | None = None
    """Rows; all that follow by default."""
    first_id: int | None = None
    """Id of the first row, the others follow; one beyond the largest there by default."""

    def run(self) -> None:
        """Insert in batches; what was acknowledged stays when interrupted."""
        import numpy as np
        from shorthaul.progress import bar

        from navis.formats import read_vectors
        from navis.measure import Meter

        vectors = read_vectors(self.data, start=self.start, count=self.count)
        if not len(vectors):
            raise UserError(f"{self.data}: no rows from {self.start}; nothing to insert")
        with self.open(self.index) as index:
            first = self.first_id
            if first is None:
                first = int(index.ids().max()) + 1 if len(index) else 0
            replaced = 0
            with Meter(index) as meter, bar(len(vectors), "insert") as shown:
                for start in range(0, len(vectors), _BATCH):
                    rows = vectors[start : start + _BATCH]
                    ids = np.arange(first + start, first + start + len(rows), dtype=np.uint64)
                    replaced += index.insert(ids, rows, threads=self.threads)
                    shown.update(len(rows))
        found = {"replaced": replaced, "first_id": first, **meter.insert_result(len(vectors))}
        emit(
            found,
            self.json,
            f"{len(vectors)} inserted ({replaced} replaced), ids from {first}: "
            f"{found['per_s']:.0f} per second, {found['requests']:.1f} requests each",
        )


@dataclass(kw_only=True)
class Delete(SessionFlags, Common):
    """Delete ids: numbers, ranges like 10-19, or a file of ids (.npy, or one per line)."""

    index: tyro.conf.Positional[Path]
    """Index folder."""
    ids: tyro.conf.Positional[str]
    """Comma-separated ids and ranges, or a file."""

    def run(self) -> None:
        """Delete and say how many were there."""
        import numpy as np

        given = np.asarray(id_list(self.ids), dtype=np.uint64)
        with self.open(self.index) as index:
            gone = index.delete(given)
        emit(
            {"deleted": gone, "unknown": len(given) - gone},
            self.json,
            f"{gone} deleted, {len(given) - gone} not there",
        )


def id_list(text: str) -> list[int]:
    """Read ids from `1,5,10-19` or a file."""
    import numpy as np

    path = Path(text)
    try:
        if path.suffix == ".npy" and path.exists():
            return [int(i) for i in np.load(path).reshape(-1)]
        if path.is_file():
            text = ",".join(path.read_text().split())
        ids: list[int] = []
        for part in filter(None, text.split(",")):
            low, dash, high = part.partition("-")
            ids += range(int(low), int(high) + 1) if dash else [int(low)]
    except (ValueError, OSError) as error:
        raise UserError(f"ids {text[:40]!r}: write 1,5,10-19 or name a file of ids") from error
    if not ids:
        raise UserError(f"ids {text[:40]!r}: name at least one")
    return ids
