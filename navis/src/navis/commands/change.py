"""``navis insert`` and ``navis delete``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags

if TYPE_CHECKING:
    from navis.checks import Ids

_BATCH = 256  # rows of one acknowledgement
_LONGEST_RANGE = 10**9


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
            if not 0 <= first <= 2**64 - 1 - len(vectors):
                raise UserError(
                    f"--first-id {first}: {len(vectors)} ids from there are not all 0 to 2**64 - 2"
                )
            replaced = 0
            with Meter(index) as meter, bar(len(vectors), "insert") as shown:
                for start in range(0, len(vectors), _BATCH):
                    rows = vectors[start : start + _BATCH]
                    ids = np.uint64(first + start) + np.arange(len(rows), dtype=np.uint64)
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
        given = id_list(self.ids)
        with self.open(self.index) as index:
            gone = index.delete(given)
        emit(
            {"deleted": gone, "unknown": len(given) - gone},
            self.json,
            f"{gone} deleted, {len(given) - gone} not there",
        )


def id_list(text: str) -> Ids:
    """Read ids from `1,5,10-19` or a file, without duplicates."""
    import numpy as np

    from navis.checks import id_array

    path = Path(text)
    if path.suffix in (".npy", ".txt") and not path.is_file():
        raise UserError(f"{text}: there is no such file of ids")
    try:
        if path.suffix == ".npy":
            ids = id_array(np.load(path))
        else:
            ids = _numbers(path.read_text() if path.is_file() else text)
    except UserError as error:
        raise UserError(f"ids {text[:40]!r}: {error}") from None
    except (ValueError, OSError):
        raise UserError(f"ids {text[:40]!r}: write 1,5,10-19 or name a file of ids") from None
    if not len(ids):
        raise UserError(f"ids {text[:40]!r}: name at least one")
    return np.unique(ids)


def _numbers(text: str) -> Ids:
    import numpy as np

    from navis.checks import id_array

    parts: list[Ids] = []
    for part in filter(None, ",".join(text.split()).split(",")):
        low, dash, high = part.partition("-")
        first, last = int(low), int(high) if dash else int(low)
        if last - first >= _LONGEST_RANGE:
            raise UserError(f"the range {part} is of more than {_LONGEST_RANGE} ids")
        if last >= 2**64 - 1:
            raise UserError(f"{last} is too large: use 2**64 - 2 or less")
        parts.append(id_array(np.arange(first, last + 1, dtype=np.uint64)))
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
