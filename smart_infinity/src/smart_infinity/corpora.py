"""Text to train on: what Debian packages carry, or the user's own files; nothing is downloaded."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
from shorthaul.cli import nearest
from shorthaul.errors import EnvironmentLack, UserError

GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
PYTHON_DOC = Path("/usr/share/doc/python3.11/html/_sources")
NAMES = ("gcide", "kjv", "python-doc")
Tokens = npt.NDArray[np.uint16]


def load(source: str) -> str:
    """Give a text by name, or that of a file or of all text files of a folder.

    Raises:
        EnvironmentLack: The Debian package that carries it is not installed.
        UserError: No such name, file or folder, or no text in it.
    """
    if source == "gcide":
        if not GCIDE.exists():
            raise EnvironmentLack("no dictionary at hand: apt-get install dict-gcide (Debian)")
        return gzip.decompress(GCIDE.read_bytes()).decode("utf-8", "replace")
    if source == "kjv":
        program = shutil.which("bible")
        if program is None:
            raise EnvironmentLack("no bible at hand: apt-get install bible-kjv (Debian)")
        done = subprocess.run(
            [program, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=False
        )
        if done.returncode or len(done.stdout) < 1_000_000:
            raise EnvironmentLack("bible printed no text: apt-get install bible-kjv-text (Debian)")
        return done.stdout
    if source == "python-doc":
        if not PYTHON_DOC.is_dir():
            raise EnvironmentLack("no manual at hand: apt-get install python3.11-doc (Debian)")
        return _folder(PYTHON_DOC, "*.txt")
    path = Path(source)
    if path.is_dir():
        text = _folder(path, "*.txt")
    elif path.is_file():
        text = path.read_text(errors="replace")
    else:
        raise UserError(f"--data {source!r}: no such file or folder{nearest(source, NAMES)}")
    if len(text) < 1000:
        raise UserError(f"--data {source!r}: {len(text)} characters; give 1,000 or more")
    return text


def _folder(path: Path, pattern: str) -> str:
    files = sorted(path.rglob(pattern))
    return "\n".join(file.read_text(errors="replace") for file in files)


def digest(text: str) -> str:
    """Give what names a text in a record."""
    return hashlib.sha256(text.encode()).hexdigest()


class Tokenizer:
    """Bytes, or byte-level BPE trained on the text itself (`bpe:8192`)."""

    def __init__(self, spec: str, text: str) -> None:
        kind, _, size = spec.partition(":")
        self.spec = spec
        self._bpe = None
        if kind == "bytes" and not size:
            self.vocabulary = 256
            return
        if kind != "bpe" or not size.isdigit() or not 300 <= int(size) <= 65535:
            raise UserError(f"tokens={spec!r}: write bytes, or bpe:SIZE with 300 to 65535")
        from tokenizers import ByteLevelBPETokenizer

        self._bpe = ByteLevelBPETokenizer()
        # In pieces: its trainer wants lines of moderate length.
        pieces = (text[at : at + 65536] for at in range(0, len(text), 65536))
        self._bpe.train_from_iterator(pieces, vocab_size=int(size), show_progress=False)
        self.vocabulary = int(size)

    def encode(self, text: str) -> Tokens:
        """Give a text's tokens."""
        if self._bpe is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
        pieces = [text[at : at + 65536] for at in range(0, len(text), 65536)]
        found = [np.array(e.ids, np.uint16) for e in self._bpe.encode_batch(pieces)]
        return np.concatenate(found)


class Batches:
    """Windows of a token stream, drawn by the step's number: the same again after a resume."""

    def __init__(self, tokens: Tokens, context: int, batch: int, seed: int) -> None:
        if len(tokens) <= context + 1:
            raise UserError(
                f"the text has {len(tokens)} tokens, a window takes {context + 1}: give more text"
            )
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed

    def __getitem__(self, step: int) -> npt.NDArray[np.int64]:
        """Give a batch [batch, context + 1]."""
        rng = np.random.default_rng((self.seed, step))
        starts = rng.integers(0, len(self.tokens) - self.context - 1, self.batch)
        return np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
