"""Models: made by their seed, loaded from folders, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul.errors import UserError

from smart_infinity import models
from smart_infinity.models import ModelConfig

GPT2 = ModelConfig(layers=1, width=16, heads=2, context=16)
BERT = replace(GPT2, family="bert")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def windows(vocabulary: int, batch: int = 3) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_makes_the_same_weights(config: ModelConfig, dtype: str) -> None:
    config = replace(config, dtype=dtype)
    first = models.build(config, 256, 7)
    assert same(weights(first), weights(models.build(config, 256, 7)))
    assert not same(weights(first), weights(models.build(config, 256, 8)))
    assert {p.dtype for p in first.parameters()} == {getattr(torch, dtype)}
    assert first.training


def test_a_causal_loss_is_that_of_the_next_token() -> None:
    model = models.build(GPT2, 256, 0).eval()
    given = windows(256)
    with torch.no_grad():
        found = models.loss(model, GPT2, given, 5)
        logits = model(input_ids=given[:, :-1]).logits
        chosen = logits.log_softmax(-1).gather(2, given[:, 1:, None])
    assert found.item() == pytest.approx(-chosen.mean().item(), rel=1e-5)
    assert found.item() == models.loss(model, GPT2, given, 6).item()  # no dice


def test_a_masked_loss_is_that_of_the_hidden_tokens() -> None:
    model = models.build(BERT, 256, 0).eval()
    assert model.config.vocab_size == 257  # the mask is a token of its own
    assert model.config.mask_token_id == 256
    asked: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["input_ids"]), with_kwargs=True
    )
    given = windows(256, batch=40)
    with torch.no_grad():
        found = models.loss(model, BERT, given, 5)
        again = models.loss(model, BERT, given, 5)
        other = models.loss(model, BERT, given, 6)
    assert found.item() == again.item() != other.item()
    hidden = asked[0] == 256
    assert torch.equal(asked[0][~hidden], given[:, :-1][~hidden])
    assert 0.1 < hidden.float().mean() < 0.3
    with torch.no_grad():
        logits = model(input_ids=asked[0]).logits[hidden]
        expected = torch.nn.functional.cross_entropy(logits, given[:, :-1][hidden])
    assert found.item() == expected.item()


@pytest.mark.parametrize("config", [GPT2, BERT], ids=["gpt2", "bert"])
def test_a_folder_gives_its_model(config: ModelConfig, tmp_path: Path) -> None:
    made = models.build(config, 256, 7)
    made.save_pretrained(tmp_path)
    loaded = models.build(replace(config, path=str(tmp_path)), 256, 0)
    assert same(weights(made), weights(loaded))
    # What hid a token while it was trained hides one now.
    assert getattr(loaded.config, "mask_token_id", None) == getattr(
        made.config, "mask_token_id", None
    )


def test_a_folder_that_does_not_fit_is_named(tmp_path: Path) -> None:
    models.build(GPT2, 256, 7).save_pretrained(tmp_path / "gpt2")
    models.build(BERT, 256, 7).save_pretrained(tmp_path / "bert")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((tmp_path / "gpt2" / "config.json").read_text())
    for config, name, vocabulary, said in (
        (GPT2, "gone", 256, "no config.json there"),
        (GPT2, "damaged", 256, "damaged"),
        (GPT2, "unknown", 256, "unknown"),
        (GPT2, "empty", 256, "empty"),
        (GPT2, "bert", 256, "holds BertForMaskedLM: set model.family = 'bert'"),
        (BERT, "gpt2", 256, "holds GPT2LMHeadModel: set model.family = 'gpt2'"),
        (GPT2, "gpt2", 300, "knows 256 tokens, the text has 300"),
        (replace(GPT2, context=17), "gpt2", 256, "has 16 positions"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            models.build(replace(config, path=str(tmp_path / name)), vocabulary, 0)
        assert "\n" not in str(caught.value)


def test_bad_configurations_are_named() -> None:
    for options, said in (
        ({"family": "t5"}, "use gpt2 or bert"),
        ({"layers": 0}, "model.layers = 0: use 1 or more"),
        ({"width": 10, "heads": 4}, "use a multiple of heads = 4"),
        ({"dtype": "float16"}, "use float32 or bfloat16"),
        ({"dropout": 1.0}, "use 0 or more, below 1"),
    ):
        with pytest.raises(UserError, match=said):
            ModelConfig(**options)
