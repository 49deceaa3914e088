"""WordNet's glosses: parsed, spread, embedded in parts that survive an interruption, cached."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.atomic import read_json, write_json
from shorthaul.errors import EnvironmentLack, UserError

from navis.datasets import minilm, wordnet
from navis.datasets.wordnet import glosses

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n"
LINES = {
    "noun": "00001740 03 n 02 entity 0 living_thing 0 001 ~ 00001930 n 0 | what exists; 'a|b'  \n",
    "verb": "00001740 29 v 01 breathe 0 000 01 + 02 00 | draw air into the lungs\n",
    "adj": "00019731 00 s 02 handy 0 ready_to_hand(p) 0 001 & 00019131 a 0000 | easy to reach\n",
    "adv": "00001740 02 r 01 a_cappella 0 000 | without musical accompaniment\n",
}
COUNTS = {"noun": 60, "verb": 10, "adj": 13, "adv": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part, line in LINES.items():
        numbered = [line.replace("\n", f" {i:03}\n") for i in range(COUNTS[part])]
        (folder / f"data.{part}").write_text(LICENCE + "".join(numbered))
    return folder


class Stub:
    """Stands in for the model: vectors tell the tokens and the batch they were made in."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.batches = 0
        self.fail_after = fail_after

    def tokens(self, text: str) -> list[int]:
        return [len(text), *text.encode()[-3:]] + [0] * (sum(text.encode()) % 5)

    def encode(self, texts: Sequence[Sequence[int]], layers: int = 1) -> np.ndarray:
        if self.batches == self.fail_after:
            raise KeyboardInterrupt
        self.batches += 1
        out = np.zeros((len(texts), layers * minilm.DIM), np.float32)
        for row, tokens in enumerate(texts):
            out[row, :4] = tokens[:4]
            out[row, 4] = len(texts)
        return out


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    model = Stub()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(minilm, "model_folder", lambda: tmp_path)
    monkeypatch.setattr(minilm, "load", lambda: model)
    monkeypatch.setattr(wordnet, "_BATCH", 4)
    monkeypatch.setattr(wordnet, "_PART", 12)
    return model


def test_texts_are_words_and_gloss_in_the_order_of_parts_of_speech(root: Path) -> None:
    texts, boundaries = glosses(root)
    assert texts[0] == "entity, living thing: what exists; 'a|b'   000"
    assert texts[70] == "handy, ready to hand: easy to reach 000"
    assert texts[83] == "a cappella: without musical accompaniment 000"
    assert boundaries == {"noun": (0, 60), "verb": (60, 70), "adj": (70, 83), "adv": (83, 86)}
    assert len(texts) == 86


@pytest.mark.parametrize("limit", [4, 5, 20, 43, 85, 86])
def test_a_limit_keeps_the_shares_and_spreads_evenly(root: Path, limit: int) -> None:
    texts, boundaries = glosses(root, limit)
    assert len(texts) == limit == boundaries["adv"][1]
    for part, (start, stop) in boundaries.items():
        wanted = limit * COUNTS[part] / 86
        assert stop - start == pytest.approx(max(1, wanted), abs=2 if limit < 6 else 1)
        numbers = [int(text[-3:]) for text in texts[start:stop]]
        steps = np.diff(numbers)
        assert numbers[0] == 0
        assert not steps.size or 0 < steps.min() >= steps.max() - 1
    for wrong in (3, 87):
        with pytest.raises(UserError, match=f"limit is {wrong}; use 4 to 86"):
            glosses(root, wrong)


def test_what_is_missing_or_damaged_is_told(root: Path) -> None:
    (root / "data.adv").write_text(LICENCE)
    with pytest.raises(UserError, match="adv: holds no synsets"):
        glosses(root)
    (root / "data.adv").write_text("00001740 02 r\n")
    with pytest.raises(UserError, match="not a synset: '00001740 02 r"):
        glosses(root)
    (root / "data.adv").unlink()
    with pytest.raises(EnvironmentLack, match="apt-get install wordnet-base") as error:
        glosses(root)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("layers", [1, 2])
def test_the_first_call_embeds_and_later_ones_read(
    root: Path, tmp_path: Path, stub: Stub, layers: int
) -> None:
    first = wordnet.wordnet(tmp_path / "cache", layers=layers, root=root)
    assert stub.batches == 86 // 12 * 3 + 1
    assert first.vectors.shape == (86, layers * 384)
    for text, vector in zip(first.texts, first.vectors, strict=True):
        assert vector[:4].tolist() == stub.tokens(text)[:4]
    again = wordnet.wordnet(tmp_path / "cache", layers=layers, root=root)
    assert stub.batches == 86 // 12 * 3 + 1
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert (again.texts, again.boundaries) == (first.texts, first.boundaries)
    manifest = read_json(first.path.with_suffix(".json"))
    assert manifest["boundaries"]["adv"] == [83, 86]
    assert (manifest["rows"], manifest["layers"], manifest["version"]) == (86, layers, 1)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {first.path.name, first.path.stem + ".json", first.path.stem + ".lock"}


@pytest.mark.parametrize("batches", [0, 2, 3, 10, 21])
def test_an_interrupted_run_resumes_with_the_same_result(
    root: Path, tmp_path: Path, stub: Stub, batches: int
) -> None:
    wanted = wordnet.wordnet(tmp_path / "whole", root=root).vectors
    stub.batches, stub.fail_after = 0, batches
    with pytest.raises(KeyboardInterrupt):
        wordnet.wordnet(tmp_path / "cache", root=root)
    assert not list((tmp_path / "cache").glob("*.npy"))
    stub.fail_after = 10**9
    found = wordnet.wordnet(tmp_path / "cache", root=root).vectors
    assert stub.batches == batches + 22 - batches // 3 * 3  # only the begun part is done again
    np.testing.assert_array_equal(found, wanted)


def test_other_texts_or_another_model_are_embedded_anew(
    root: Path, tmp_path: Path, stub: Stub
) -> None:
    wordnet.wordnet(tmp_path / "cache", root=root)
    data = root / "data.noun"
    data.write_text(data.read_text().replace("what exists", "what there is"))
    stub.fail_after = stub.batches + 7
    with pytest.raises(KeyboardInterrupt):
        wordnet.wordnet(tmp_path / "cache", root=root)
    (tmp_path / "model.safetensors").write_bytes(b"others")  # the parts are of the first model
    stub.fail_after = 10**9
    before = stub.batches
    found = wordnet.wordnet(tmp_path / "cache", root=root)
    assert stub.batches == before + 22
    assert found.texts[0].startswith("entity, living thing: what there is")


def test_damage_in_the_cache_is_told(root: Path, tmp_path: Path, stub: Stub) -> None:
    path = wordnet.wordnet(tmp_path / "cache", root=root).path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged, its SHA-256 is not its manifest's; delete it"):
        wordnet.wordnet(tmp_path / "cache", root=root)
    write_json(path.with_suffix(".json"), [])
    wordnet.wordnet(tmp_path / "cache", root=root)  # a manifest that tells nothing: made anew


def test_the_cache_is_below_xdgs_unless_a_folder_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert wordnet.cache_folder() == Path("/somewhere/shorthaul/navis")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert wordnet.cache_folder() == Path.home() / ".cache/shorthaul/navis"


def test_layers_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layers is 7"):
        wordnet.wordnet(tmp_path, layers=7, root=tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        return wordnet.wordnet(tmp_path_factory.mktemp("cache"), limit=300, threads=1)
    except EnvironmentLack as lack:
        pytest.skip(str(lack))


def test_300_real_glosses_mean_what_they_say(real: wordnet.WordNet) -> None:
    texts, vectors = real.texts, np.asarray(real.vectors)
    assert vectors.shape == (300, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    asked = minilm.embed([texts[7], "dog", "puppy", "stock market crash"])
    assert (vectors @ asked[0]).argmax() == 7
    assert asked[1] @ asked[2] > 0.55
    assert asked[1] @ asked[3] < 0.2
    cosines = vectors @ vectors.T
    assert cosines[~np.eye(300, dtype=bool)].mean() < 0.2


def test_all_the_real_glosses_are_read_and_the_near_ones_are_near() -> None:
    try:
        texts, boundaries = glosses()
        found = {
            word: next(text for text in texts if text.startswith(word))
            for word in ("dog, domestic dog", "puppy: ", "crash, collapse: a sudden large decline")
        }
        dog, puppy, crash = minilm.embed(list(found.values()))
    except EnvironmentLack as lack:
        pytest.skip(str(lack))
    assert dog @ puppy > 0.3
    assert abs(dog @ crash) < 0.1
    assert boundaries["adv"][1] == len(texts) == 117_659
