"""Real vectors: the glosses of WordNet, embedded by MiniLM.

117,659 texts "words: gloss" in the order noun, verb, adj, adv: inserting them in order is a natural
drift, though a mild one, as the parts of speech overlap. Nothing is downloaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.atomic import read_json, write_json
from shorthaul.data import sha256
from shorthaul.errors import EnvironmentLack, UserError
from shorthaul.progress import bar

from navis.datasets import minilm
from navis.formats._files import replacing
from navis.formats.vectors import read_vectors, write_vectors

WORDNET = Path("/usr/share/wordnet")
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
VERSION = 1  # of how texts and vectors are made; another one makes the cache anew
_BATCH = 64
_PART = 32 * _BATCH  # texts between two points an interrupted run resumes from
_POSITION_MARK = re.compile(r"\((?:a|p|ip)\)$")  # of adjectives, not part of the word

Boundaries = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class WordNet:
    """Embedded glosses.

    Attributes:
        vectors: float32, shape (n, d), memory-mapped, rows one long.
        texts: what row i is of.
        boundaries: first row and one past the last of noun, verb, adj and adv.
        path: the cached .npy; its manifest lies beside it.
    """

    vectors: npt.NDArray[np.float32]
    texts: tuple[str, ...]
    boundaries: Boundaries
    path: Path


def cache_folder() -> Path:
    """Where data is kept unless a user names a folder: below the XDG cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "shorthaul" / "navis"


def glosses(root: Path | None = None, limit: int | None = None) -> tuple[list[str], Boundaries]:
    """Read WordNet's texts and where each part of speech starts and ends.

    Args:
        root: folder of data.noun and the others; None is where Debian puts them.
        limit: how many texts; each part of speech keeps its share, evenly spread.

    Raises:
        EnvironmentLack: A file is missing.
        UserError: A file holds no synsets, or the limit is too small.
    """
    kept: dict[str, list[str]] = {}
    for part in PARTS_OF_SPEECH:
        path = (root or WORDNET) / f"data.{part}"
        if not path.is_file():
            raise EnvironmentLack(f"{path} is missing; apt-get install wordnet-base (Debian)")
        with path.open(encoding="utf-8") as file:
            kept[part] = [_text(line, path) for line in file if line[:1].isdigit()]
        if not kept[part]:
            raise UserError(f"{path}: holds no synsets; reinstall wordnet-base")
    if limit is not None:
        kept = _spread(kept, limit)
    texts: list[str] = []
    boundaries: Boundaries = {}
    for part, of_part in kept.items():
        boundaries[part] = (len(texts), len(texts) + len(of_part))
        texts += of_part
    return texts, boundaries


def _text(line: str, path: Path) -> str:
    data, mark, gloss = line.partition("|")
    fields = data.split()
    try:
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    except (ValueError, IndexError):
        words = []
    if not mark or not words:
        raise UserError(f"{path}: not a synset: {line[:40]!r}; reinstall wordnet-base")
    names = ", ".join(_POSITION_MARK.sub("", word).replace("_", " ") for word in words)
    return f"{names}: {gloss.strip()}"


def _spread(kept: dict[str, list[str]], limit: int) -> dict[str, list[str]]:
    total = sum(map(len, kept.values()))
    if not len(kept) <= limit <= total:
        raise UserError(f"limit is {limit}; use {len(kept)} to {total}")
    ends = np.cumsum([0, *map(len, kept.values())]) * limit // total
    counts = np.maximum(1, np.diff(ends))
    counts[0] += limit - counts.sum()  # what the smallest were given more
    return {
        part: [texts[i * len(texts) // count] for i in range(count)]
        for (part, texts), count in zip(kept.items(), counts.tolist(), strict=True)
    }


def wordnet(
    folder: Path | str | None = None,
    *,
    layers: int = 1,
    limit: int | None = None,
    threads: int | None = None,
    root: Path | None = None,
) -> WordNet:
    """Give WordNet's glosses as vectors; the first call embeds them, later ones read the cache.

    All of them take 15 to 25 minutes of one core; an interrupted call resumes where it was.

    Args:
        folder: of the cache; None is `cache_folder`.
        layers: 1 for 384 dimensions; 2 or 4 for 768 or 1,536, the last layers' means side by side.
        limit: how many texts; each part of speech keeps its share, evenly spread.
        threads: of torch; None leaves its setting.
        root: folder of data.noun and the others; None is where Debian puts them.

    Raises:
        EnvironmentLack: WordNet or the model is not installed; the message names the package.
        UserError: The cached vectors are not those that were written.
    """
    minilm.check_layers(layers)
    texts, boundaries = glosses(root, limit)
    rows, dim = len(texts), layers * minilm.DIM
    path = Path(folder or cache_folder()) / f"wordnet-minilm-{rows}x{dim}.npy"
    key = {
        "version": VERSION,
        "rows": rows,
        "layers": layers,
        "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "model_sha256": sha256(minilm.model_folder() / "model.safetensors"),
    }
    with _alone(path):
        if not _cached(path, key):
            _embed(path, texts, key, layers, threads)
            described = {"order": list(PARTS_OF_SPEECH), "boundaries": boundaries}
            write_json(_manifest(path), key | described | {"sha256": sha256(path)})
    return WordNet(read_vectors(path), tuple(texts), boundaries, path)


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes a file; the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(path: Path, key: dict[str, Any]) -> bool:
    if not path.is_file() or not _manifest(path).is_file():
        return False
    manifest = read_json(_manifest(path))
    if not isinstance(manifest, dict) or any(manifest.get(k) != key[k] for k in key):
        return False
    if manifest.get("sha256") != sha256(path):
        raise UserError(f"{path}: damaged, its SHA-256 is not its manifest's; delete it")
    return True


def _embed(
    path: Path, texts: Sequence[str], key: dict[str, Any], layers: int, threads: int | None
) -> None:
    """Embed texts part by part, shortest first, and put the parts together in the texts' order."""
    parts = path.with_suffix(".parts")
    if not (parts / "key.json").is_file() or read_json(parts / "key.json") != key:
        shutil.rmtree(parts, ignore_errors=True)
        write_json(parts / "key.json", key)
    model = minilm.load()
    tokens = [model.tokens(text) for text in texts]
    order = np.array(sorted(range(len(texts)), key=lambda i: (len(tokens[i]), i)))
    starts = range(0, len(order), _PART)
    files = [parts / f"{number:04}.npy" for number in range(len(starts))]
    done = [start for start, file in zip(starts, files, strict=True) if file.is_file()]
    costs = [sum(len(tokens[i]) for i in order[start : start + _PART]) for start in starts]
    before = sum(costs[start // _PART] for start in done)
    with (
        minilm.threads(threads),
        bar(sum(costs), "WordNet, tokens embedded", initial=before) as progress,
    ):
        for start, file in zip(starts, files, strict=True):
            if start in done:
                continue
            found = []
            for first in range(start, min(start + _PART, len(order)), _BATCH):
                batch = [tokens[i] for i in order[first : min(first + _BATCH, start + _PART)]]
                found.append(model.encode(batch, layers))
                progress.update(sum(map(len, batch)))
            write_vectors(file, np.concatenate(found))
    with replacing(path) as temporary:
        shape = len(texts), layers * minilm.DIM
        out = np.lib.format.open_memmap(temporary, "w+", np.dtype(np.float32), shape)
        for start, file in zip(starts, files, strict=True):
            out[order[start : start + _PART]] = read_vectors(file)
        out.flush()
    shutil.rmtree(parts)
