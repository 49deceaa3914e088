"""Texts and tokens: what is there is read, what is not is named, and both are the same again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, UserError
from smart_testing import words

from smart_infinity import corpora
from smart_infinity.corpora import Batches, Tokenizer

MIXED = "The quick brown fox — jumps over “13” lazy dögs. 日本語 \x00\t\n" * 40


def test_a_file_a_folder_and_what_python_carries_are_read(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("b" * 600)
    (tmp_path / "one.txt").write_text("a" * 600)
    (tmp_path / "other.rst").write_text("c" * 600)
    assert corpora.load(str(tmp_path)) == "b" * 600 + "\n" + "a" * 600
    (tmp_path / "long").write_bytes(b"\xffabc" * 300)
    assert corpora.load(str(tmp_path / "long")) == "\ufffdabc" * 300
    text = corpora.load("python-topics")
    assert len(text) > 100_000
    assert "lambda" in text
    assert corpora.version("python-topics", corpora.digest(text)) is None
    known, version = next(iter(corpora.SOURCES["kjv"].digests.items()))
    assert corpora.version("kjv", known) == version


def test_a_text_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a" * 999)
    for source, said in (
        ("kvj", "no such file or folder; did you mean 'kjv'"),
        (str(short), "999 characters; give 1,000 or more"),
        (str(tmp_path), r"999 characters in its \*.txt; give 1,000 or more"),
    ):
        with pytest.raises(UserError, match=said):
            corpora.load(source)
    for source, package in (
        ("gcide", "dict-gcide"), ("kjv", "bible-kjv bible-kjv-text"),
        ("python-doc", "python3.11-doc"),
    ):  # fmt: skip
        known = corpora.SOURCES[source]
        gone = corpora.Source(tmp_path / "gone", known.package, known.read, known.digests)
        monkeypatch.setitem(corpora.SOURCES, source, gone)
        with pytest.raises(EnvironmentLack, match=f"apt-get install {package}"):
            corpora.load(source)


def test_a_package_that_is_damaged_or_half_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "gcide.dict.dz"
    damaged.write_bytes(b"\x1f\x8b no gzip")
    monkeypatch.setattr(corpora, "_GCIDE", damaged)
    with pytest.raises(EnvironmentLack, match="reinstall dict-gcide"):
        corpora._gcide()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLack, match="no program bible"):
        corpora._kjv()
    program = tmp_path / "bible"
    program.write_text("#!/bin/sh\necho no text here >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(EnvironmentLack, match=r"bible gave no text \(no text here\)"):
        corpora._kjv()
    program.write_text("#!/bin/sh\necho In the beginning\n")
    assert corpora._kjv() == "In the beginning\n"


@pytest.mark.parametrize("spec", ["bytes", "bpe:400"])
def test_tokens_are_the_same_again_and_for_transformers(spec: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer(spec, MIXED + words())
    again = Tokenizer(spec, MIXED + words())
    tokens = tokenizer.encode(MIXED)
    assert tokenizer.digest == again.digest
    assert np.array_equal(tokens, again.encode(MIXED))
    assert tokens.dtype == np.uint16
    assert int(tokens.max()) < tokenizer.vocabulary
    if spec == "bytes":
        assert bytes(tokens.tolist()) == MIXED.encode()
    else:
        assert len(tokens) < 0.7 * len(MIXED.encode())
    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.encode(MIXED, add_special_tokens=False) == tokens.tolist()
    assert loaded.decode(tokens.tolist(), clean_up_tokenization_spaces=False) == MIXED
    stored = Tokenizer(f"file:{tmp_path / 'tokenizer.json'}", "")
    assert np.array_equal(stored.encode(MIXED), tokens)
    if spec != "bytes":
        assert (stored.digest, stored.vocabulary) == (tokenizer.digest, tokenizer.vocabulary)
        other = Tokenizer(spec, words())
        assert other.digest != tokenizer.digest


def test_a_long_text_is_encoded_in_pieces_that_join() -> None:
    text = words(20_000)
    assert len(text) > 2 * corpora._PIECE
    tokenizer = Tokenizer("bpe:300", text)
    assert tokenizer._model is not None
    assert tokenizer._model.decode(tokenizer.encode(text).tolist()) == text


def test_tokens_that_cannot_be_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "tokenizer.json"
    damaged.write_text("{}")
    for spec, said in (
        ("letters", "tokens = 'letters': write bytes"), ("bytes:2", "write bytes"),
        ("bpe:299", "write bytes, bpe:SIZE with 300 to 131072"), ("bpe:x", "write bytes"),
        ("file:", "write bytes"), (f"file:{tmp_path / 'gone'}", "no such file"),
        (f"file:{damaged}", "no tokenizer.json"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as caught:
            Tokenizer(spec, words())
        assert "\n" not in str(caught.value)


def test_batches_depend_on_seed_and_number_alone() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    batches = Batches(tokens, 10, 4, seed=3)
    found = [batches[number] for number in range(50)]
    assert all(np.array_equal(batches[number], found[number]) for number in (49, 7, 0))
    assert all(batch.shape == (4, 11) for batch in found)
    assert all((np.diff(batch) == 1).all() for batch in found)
    assert len({int(start) for batch in found for start in batch[:, 0]}) > 150
    assert not np.array_equal(found[0], Batches(tokens, 10, 4, seed=4)[0])
    with pytest.raises(UserError, match="a window takes 11: give more text"):
        Batches(tokens[:11], 10, 4, seed=0)
