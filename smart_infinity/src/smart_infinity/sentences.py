"""Movie-review sentences with people's ratings, as the source package of vaderSentiment has them.

10,605 sentences of Rotten Tomatoes reviews, each rated by about fifteen people from -4 to 4 (Hutto
and Gilbert, ICWSM 2014): the text that the task SST-2 of the paper's table IV is made of, under the
MIT licence. Only the source package carries them, and nothing is downloaded here: `FETCH` says how.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from shorthaul.errors import EnvironmentLack, UserError

FOLDER = Path("runs/data")
FETCH = "pip download --no-binary :all: --no-deps -d runs/data vaderSentiment==3.3.2"
SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
"""Of the file of sentences, wherever it was found."""
_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
_FILE = "movieReviewSnippets_GroundTruth.txt"
HELD_OUT = 5  # one of so many sentences


@dataclass(frozen=True)
class Rated:
    """Sentences and what they say: labels are 1 where people liked the film, else 0."""

    texts: tuple[str, ...]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Sentences:
    """The sentences to train on and those held out; no text is in both."""

    train: Rated
    held_out: Rated


def load(source: str | Path | None = None, *, neutral: float = 0.5) -> Sentences:
    """Read the sentences.

    Args:
        source: The source package, or a folder that it was unpacked or put into; None: `runs/data`
            below the working directory.
        neutral: Sentences whose mean rating is at most so far from 0 are left out, as SST-2 does.

    Raises:
        EnvironmentLack: They are not in `runs/data`.
        UserError: They are not where `source` says, or are damaged.
    """
    raw = _find(FOLDER if source is None else Path(source))
    if raw is None:
        if source is None:
            raise EnvironmentLack(f"no movie-review sentences in {FOLDER}; {FETCH}")
        raise UserError(f"{source}: no {_FILE} in it; {FETCH}")
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise UserError(f"{source or FOLDER}: its {_FILE} is not the published one; {FETCH}")
    return split(parse(raw.decode()), neutral=neutral)


def parse(text: str) -> list[tuple[float, str]]:
    """Give mean rating and sentence of every line: number, rating, sentence, split by tabs."""
    found = []
    for number, line in enumerate(text.split("\r\n"), 1):
        if not line:
            continue
        fields = line.split("\t")
        try:
            _, rating, sentence = fields
            found.append((float(rating), sentence))
        except ValueError:
            raise UserError(f"{_FILE}, line {number}: not number, rating, sentence") from None
    return found


def split(rated: Sequence[tuple[float, str]], *, neutral: float) -> Sentences:
    """Give every sentence its label and its side, which is a hash of the text: always the same."""
    sides: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    for rating, sentence in rated:
        if abs(rating) <= neutral:
            continue
        digest = hashlib.sha256(sentence.encode()).digest()
        held = int.from_bytes(digest[:8], "big") % HELD_OUT == 0
        sides[held].append((sentence, int(rating > 0)))
    return Sentences(*(_rated(side) for side in sides))


def padded(
    tokens: Sequence[npt.NDArray[np.generic]], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give texts' tokens as one array, each cut off after `width`, and how many each has.

    Returns:
        Tokens [texts, longest], 0 behind a text's end, and lengths [texts].
    """
    cut = [one[:width] for one in tokens]
    lengths = np.array([len(one) for one in cut], np.int64)
    found = np.zeros((len(cut), int(lengths.max(initial=1))), np.int64)
    for row, one in zip(found, cut, strict=True):
        row[: len(one)] = one
    return found, lengths


def _rated(side: list[tuple[str, int]]) -> Rated:
    return Rated(tuple(text for text, _ in side), np.array([label for _, label in side], np.int64))


def _find(path: Path) -> bytes | None:
    """Give the file of sentences out of a folder, the archive in it, or the source package."""
    if path.is_dir():
        for file in sorted(path.rglob(_FILE)):
            return file.read_bytes()
        archives = sorted(path.rglob(_ARCHIVE)) + sorted(path.rglob("vader[sS]entiment-*.tar.gz"))
        for archive in archives:
            found = _find(archive)
            if found is not None:
                return found
        return None
    if not path.is_file():
        return None
    return _inside(path.read_bytes(), path)


def _inside(archive: bytes, path: Path) -> bytes | None:
    """Give it out of an archive, or out of the archive in that; nothing is unpacked to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if name in (_FILE, _ARCHIVE) else None
                if file is None:
                    continue
                return file.read() if name == _FILE else _inside(file.read(), path)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: no archive that can be read ({error})") from error
    return None
