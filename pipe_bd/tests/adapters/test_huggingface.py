"""Replay of decoder layers is the model itself, bit by bit; side inputs are cached and light."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch
from shorthaul.errors import EnvironmentLack, UserError
from torch import nn

from pipe_bd.adapters.hf_layers import LayerShape
from pipe_bd.adapters.huggingface import from_hf
from pipe_bd.api import distill
from pipe_bd.blocks import check
from pipe_bd.losses import normalised_error
from pipe_bd.models._teachers import cosine
from pipe_bd.stitch import block_errors, stitch, teacher_of

FAMILIES = ["llama", "qwen2", "qwen2-sliding", "qwen3", "gpt2", "mistral", "gemma2", "gemma3"]
DIFFERENT_MASKS = {"qwen2-sliding", "gemma2", "gemma3"}


def _mask(rows):
    mask = torch.ones_like(rows)
    mask[0, :4] = 0
    mask[1, -3:] = 0
    return mask


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_replay_is_bitwise(make_model, tokens, family, masked):
    model = make_model(family)
    rows = tokens[:4]
    carry = {"attention_mask": _mask(rows)} if masked else {}
    with torch.no_grad():
        own = model(input_ids=rows, output_hidden_states=True, use_cache=False, **carry)
        task = from_hf(model, source=tokens, batch_size=4, ffn=0.5)
        x = task.entry(rows)
        sides = task.side_inputs(x, carry)
        assert torch.equal(x, own.hidden_states[0])
        for i, pair in enumerate(task.pairs):
            x = pair.teacher(x, **sides[i])
            if i + 1 < len(task.pairs):
                assert torch.equal(x, own.hidden_states[i + 1])
        assert torch.isfinite(x).all()
        assert torch.equal(teacher_of(task)(rows, **carry), own.logits)
    masks = [side["attention_mask"] for side in sides]
    differ = any(m is not masks[0] for m in masks)
    assert differ == (family in DIFFERENT_MASKS)


def test_a_model_fresh_from_its_configuration_teaches_without_dropout(make_model, tokens):
    model = make_model("gpt2")
    task = from_hf(model.config, source=tokens, batch_size=4, ffn=0.5)  # in train mode
    assert not any(p.teacher.training for p in task.pairs)
    whole = teacher_of(task)
    assert torch.equal(whole(tokens[:2]), whole(tokens[:2]))


def test_side_inputs_are_taken_once_per_shape(make_model, tokens):
    task = from_hf(make_model("llama"), source=tokens, batch_size=4, ffn=0.5)
    x = task.entry(tokens[:4])
    first = task.side_inputs(x, {})
    assert task.side_inputs(x + 1, {}) is first
    assert task.side_inputs(x[:2], {}) is not first
    masked = task.side_inputs(x, {"attention_mask": _mask(tokens[:4])})
    assert task.side_inputs(x, {"attention_mask": torch.ones_like(tokens[:4])}) is not masked


def test_only_the_mask_travels(make_model, tokens):
    task = from_hf(make_model("llama"), source=tokens, batch_size=4, ffn=0.5)
    with pytest.raises(UserError, match="position_ids"):
        task.side_inputs(task.entry(tokens[:2]), {"position_ids": tokens[:2]})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_sent_holds_neither_head_nor_embeddings_twice(make_model, tokens, family):
    model = make_model(family)
    with torch.no_grad():  # leaves hooks behind that cannot be pickled
        model(input_ids=tokens[:1], output_hidden_states=True)
    task = from_hf(model, source=tokens, batch_size=4, ffn=0.5)
    side = cloudpickle.dumps(task.side)
    assert len(side) < 30_000
    there = cloudpickle.loads(cloudpickle.dumps(task))
    assert there.model is None
    assert there.tail is None
    x = task.entry(tokens[:4])
    assert torch.equal(there.entry(tokens[:4]), x)
    a, b = task.side_inputs(x, {}), there.side_inputs(x, {})
    assert torch.equal(task.pairs[0].student(x, **a[0]), there.pairs[0].student(x, **b[0]))


def test_the_model_of_the_user_stays_whole(make_model, tokens):
    model = make_model("llama")
    with torch.no_grad():
        before = model(input_ids=tokens[:2]).logits
    model.train()
    from_hf(model, source=tokens, batch_size=4, ffn=0.5)
    assert model.training
    assert len(model.model.layers) == 3
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=tokens[:2]).logits, before)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_distilling_lowers_every_blocks_error(make_model, family):
    # Few distinct tokens: like text, unlike uniform noise, they leave something to compress.
    rows = torch.randint(0, 8, (64, 12), generator=torch.Generator().manual_seed(2))
    task = from_hf(
        make_model(family),
        source=rows,
        batch_size=8,
        steps=80,
        ffn=0.5,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0),
        lr_schedule=lambda step: cosine(step, 80),
    )
    before = block_errors(task, rows, normalised_error)
    distill(task, schedule="sequential")
    after = block_errors(task, rows, normalised_error)
    for name in before:
        assert after[name]["student"] < 0.5 * before[name]["student"]


def test_a_mask_travels_with_the_tokens_through_training(make_model, tokens):
    from pipe_bd.source import tensor_source

    source = tensor_source(tokens, 4, carry={"attention_mask": _mask(tokens)}, steps=2)
    task = from_hf(make_model("qwen2-sliding"), source=source, ffn=0.5)
    check(task)
    result = distill(task, schedule="sequential")
    assert all(len(v["student"]) == 2 for v in result.losses.values())


def test_unlisted_layers_stay_as_they_are(make_model, tokens):
    model = make_model("llama")
    task = from_hf(model, source=tokens, batch_size=4, steps=2, ffn=0.5, layers="1")
    distill(task, schedule="sequential")
    teacher, student = task.pairs[0].teacher, task.pairs[0].student
    for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(a, b)
    assert task.pairs[1].student.mlp.gate_proj.out_features == 24


def test_a_library_feeds_on_one_teacher_pass(make_model, tokens):
    library = {"half": LayerShape(ffn=0.5), "no_attention": LayerShape(no_attention="0-2")}
    task = from_hf(make_model("llama"), source=tokens, batch_size=4, steps=2, library=library)
    check(task)
    result = distill(task, schedule="sequential")
    assert set(result.losses["layer1"]) == {"half", "no_attention"}
    assert sum(result.total("teacher_calls").values()) == 3 * 2
    assert stitch(task, "half")(tokens[:2]).shape == (2, 12, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "equals its teacher"),
        ({"ffn": 0.0}, "fraction"),
        ({"ffn": 1.5}, "fraction"),
        ({"heads": 3}, "divisor"),
        ({"kv_heads": 4}, "at most"),
        ({"heads": 0}, "no head"),
        ({"no_attention": "2-9"}, "layer 3"),
        ({"layers": "first", "ffn": 0.5}, "20-27"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make_model, tokens, options, words):
    with pytest.raises(UserError, match=words):
        from_hf(make_model("llama"), source=tokens, batch_size=4, **options)


def test_gpt2_heads_cannot_change(make_model, tokens):
    with pytest.raises(UserError, match=r"gpt2.*only ffn and no_attention"):
        from_hf(make_model("gpt2"), source=tokens, batch_size=4, heads=2)


def test_a_layer_kind_without_a_plain_feed_forward_is_named(tokens):
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    config = transformers.Phi3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with pytest.raises(UserError, match="Phi3DecoderLayer"):
        from_hf(config, source=tokens, batch_size=4, ffn=0.5)
    task = from_hf(config, source=tokens, batch_size=4, no_attention="1")  # needs no such part
    check(task)


def test_without_transformers_the_error_says_what_to_install(monkeypatch, tmp_path, tokens):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentLack, match="pip install transformers"):
        from_hf(tmp_path, source=tokens, batch_size=4, ffn=0.5)


def test_folders_that_are_no_model(tmp_path, tokens):
    pytest.importorskip("transformers", reason="the hf extra is not installed")
    with pytest.raises(UserError, match=r"config\.json.*nothing is downloaded"):
        from_hf(tmp_path / "absent", source=tokens, batch_size=4, ffn=0.5)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        from_hf(tmp_path, source=tokens, batch_size=4, ffn=0.5)
