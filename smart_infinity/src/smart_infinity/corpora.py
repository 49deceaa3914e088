"""Text to train on: what Debian packages and Python carry, or the user's own files.

Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.cli import nearest
from shorthaul.data import text_corpus
from shorthaul.errors import EnvironmentLack, UserError

Tokens = npt.NDArray[np.uint16 | np.uint32]
SHORTEST = 1000  # characters
LARGEST = 1 << 17  # vocabulary
_PIECE = 65536  # characters that are encoded as one: the encoder's time rises faster than its text
_BIBLE = Path("/usr/lib/bible.data")
_GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
_PYTHON_DOC = Path("/usr/share/doc/python3.11/html/_sources")


@dataclass(frozen=True)
class Source:
    """A text that a package carries.

    Attributes:
        file: What the package brings, and its absence means that it is not installed.
        package: Its Debian name.
        read: Gives the text.
        digests: SHA-256 of texts that are known, and the version of the package each came with.
    """

    file: Path | None
    package: str
    read: Callable[[], str]
    digests: dict[str, str]


def _gcide() -> str:
    try:
        return gzip.decompress(_GCIDE.read_bytes()).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error) as error:
        raise EnvironmentLack(
            f"{_GCIDE}: cannot be read ({error}); apt-get install --reinstall dict-gcide"
        ) from error


def _kjv() -> str:
    # Without -p it would take a bible.data of the current folder first. With -f a verse is a line.
    command = ["bible", "-p", str(_BIBLE.parent), "-f", "gen1:1-rev22:21"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise EnvironmentLack("no program bible: apt-get install bible-kjv (Debian)") from error
    if done.returncode or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
        raise EnvironmentLack(f"bible gave no text ({said}): apt-get install bible-kjv (Debian)")
    return done.stdout.decode("utf-8", "replace")


def _python_doc() -> str:
    return _folder(_PYTHON_DOC)


def _python_topics() -> str:
    return text_corpus("python-topics").decode()


SOURCES = {
    "gcide": Source(
        _GCIDE, "dict-gcide", _gcide,
        {"3da686892d28a5f0394ff9fcb385ba6b470a4dccbafbccdac9e20bb576f8bb34": "0.48.5+nmu2"},
    ),
    "kjv": Source(
        _BIBLE, "bible-kjv bible-kjv-text", _kjv,
        {"cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d": "4.38"},
    ),
    "python-doc": Source(
        _PYTHON_DOC, "python3.11-doc", _python_doc,
        {"069155bcc6c658e8414d2ab85619c5fc107e5052176dbb25ff6a48b86f5decbf": "3.11.2-6+deb12u9"},
    ),
    "python-topics": Source(None, "libpython3-stdlib", _python_topics, {}),
}  # fmt: skip


def load(source: str) -> str:
    """Give a text by name, or that of a file, or of all *.txt of a folder and those below it.

    Raises:
        EnvironmentLack: The Debian package that carries it is not installed.
        UserError: No such name, file or folder, or too little text in it.
    """
    known = SOURCES.get(source)
    if known is not None:
        if known.file is not None and not known.file.exists():
            raise EnvironmentLack(
                f"--data {source}: there is no {known.file}; apt-get install {known.package} "
                "(Debian)"
            )
        return known.read()
    path = Path(source)
    try:
        if path.is_dir():
            text = _folder(path)
        elif path.is_file():
            text = path.read_text("utf-8", "replace")
        else:
            raise UserError(f"--data {source!r}: no such file or folder{nearest(source, SOURCES)}")
    except OSError as error:
        raise UserError(f"--data {source}: cannot be read ({error.strerror})") from error
    if len(text) < SHORTEST:
        where = "characters in its *.txt" if path.is_dir() else "characters"
        raise UserError(f"--data {source}: {len(text)} {where}; give {SHORTEST:,} or more")
    return text


def _folder(path: Path) -> str:
    files = sorted(path.rglob("*.txt"))
    return "\n".join(file.read_text("utf-8", "replace") for file in files)


def digest(text: str) -> str:
    """Give what names a text in a record: the SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def version(source: str, sha256: str) -> str | None:
    """Give the package's version that is known to carry this very text, if any is."""
    known = SOURCES.get(source)
    return None if known is None else known.digests.get(sha256)


class Tokenizer:
    """Bytes, byte-level BPE trained on the text itself (`bpe:8192`), or a `tokenizer.json`.

    Args:
        spec: `bytes`, `bpe:SIZE`, or `file:PATH` of a `tokenizer.json`.
        text: What BPE is trained on; the same text gives the same tokens.

    Attributes:
        vocabulary: Tokens are below it.
        digest: SHA-256 of the tokenizer, as `tokenizer.json` has it; of bytes, `bytes`.
    """

    def __init__(self, spec: str, text: str) -> None:
        kind, _, rest = spec.partition(":")
        self.spec, self._model, self.digest = spec, None, spec
        if kind == "bytes" and not rest:
            self.vocabulary = 256
            return
        if kind == "bpe" and rest.isdigit() and 300 <= int(rest) <= LARGEST:
            self._model, self.vocabulary = _trained(text, int(rest)), int(rest)
        elif kind == "file" and rest:
            self._model = _stored(rest)
            self.vocabulary = self._model.get_vocab_size()
        else:
            raise UserError(
                f"tokens = {spec!r}: write bytes, bpe:SIZE with 300 to {LARGEST}, or file:PATH of "
                "a tokenizer.json"
            )
        self.digest = hashlib.sha256(self._model.to_str().encode()).hexdigest()

    @property
    def mask(self) -> int | None:
        """The token that stands for one to be found (BERT), if it has any."""
        return None if self._model is None else self._model.token_to_id("[MASK]")

    def encode(self, text: str) -> Tokens:
        """Give a text's tokens."""
        dtype = np.uint16 if self.vocabulary <= 1 << 16 else np.uint32
        if self._model is None:
            return np.frombuffer(text.encode(), np.uint8).astype(dtype)
        pieces, batch = list(_pieces(text)), 64
        found = [np.zeros(0, dtype)]
        for at in range(0, len(pieces), batch):  # an encoding takes far more room than its tokens
            encoded = self._model.encode_batch_fast(
                pieces[at : at + batch], add_special_tokens=False
            )
            found += [np.array(one.ids, dtype) for one in encoded]
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and what lets transformers' AutoTokenizer load it."""
        model = _of_bytes() if self._model is None else self._model
        model.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}\n'
        )


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise EnvironmentLack("tokenizers is not installed; pip install tokenizers") from error
    return tokenizers


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))


def _byte_level(model: Any, *, words: bool) -> Any:
    library = _tokenizers()
    made = library.Tokenizer(model)
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    made.decoder = library.decoders.ByteLevel()
    return made


def _trained(text: str, size: int) -> Any:
    library = _tokenizers()
    made = _byte_level(library.models.BPE(), words=True)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_pieces(text), trainer)
    return made


def _stored(path: str) -> Any:
    library = _tokenizers()
    if not Path(path).is_file():
        raise UserError(f"tokens = 'file:{path}': no such file; write bytes or bpe:SIZE")
    try:
        return library.Tokenizer.from_file(path)
    except Exception as error:  # the library has no class of its own for it
        raise UserError(f"tokens = 'file:{path}': no tokenizer.json ({error})") from error


def _of_bytes() -> Any:
    """Give the tokenizer whose tokens are the bytes of UTF-8 themselves."""
    # Byte-level tokenizers write a byte as a letter: itself where it can be seen, else 256 and up.
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    letters = {chr(byte): byte for byte in seen}
    letters |= {chr(256 + n): byte for n, byte in enumerate(unseen)}
    return _byte_level(_tokenizers().models.BPE(vocab=letters, merges=[]), words=False)


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
