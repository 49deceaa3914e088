"""Students of decoder layers: which channels and heads they keep, and how shapes are written."""

from __future__ import annotations

import pytest
import torch
from shorthaul.errors import UserError

from pipe_bd.adapters.hf_layers import LayerShape, student_config, student_layer
from pipe_bd.adapters.huggingface import from_hf


def test_the_heaviest_channels_are_kept_in_their_order(make_model):
    model = make_model("llama")
    layer = model.model.layers[0]
    heavy = torch.arange(1, 48, 2)
    with torch.no_grad():
        layer.mlp.down_proj.weight[:, heavy] *= 100
    shape = LayerShape(ffn=0.5)
    new = student_config(model.config, shape)
    student = student_layer(layer, 0, model.config, new, shape)
    assert new.intermediate_size == 24
    assert torch.equal(student.mlp.gate_proj.weight, layer.mlp.gate_proj.weight[heavy])
    assert torch.equal(student.mlp.down_proj.weight, layer.mlp.down_proj.weight[:, heavy])


def test_dropping_channels_of_no_weight_changes_nothing(make_model, tokens):
    for family in ("qwen2", "gpt2"):
        model = make_model(family)
        base = model.base_model
        for layer in getattr(base, "layers", None) or base.h:
            mlp = layer.mlp
            with torch.no_grad():
                if hasattr(mlp, "down_proj"):
                    mlp.down_proj.weight[:, 24:] = 0
                else:
                    mlp.c_proj.weight[64:] = 0
        task = from_hf(model, source=tokens, batch_size=4, ffn=0.5)
        x = task.entry(tokens[:4])
        side = task.side_inputs(x, {})[0]
        pair = task.pairs[0]
        torch.testing.assert_close(pair.student(x, **side), pair.teacher(x, **side))


def test_equal_key_value_heads_pool_without_loss(make_model, tokens):
    model = make_model("qwen2")  # its projections have biases
    for layer in model.model.layers:
        attention = layer.self_attn
        with torch.no_grad():
            for p in (attention.k_proj, attention.v_proj):
                p.weight[8:] = p.weight[:8]
                p.bias[8:] = p.bias[:8]
    task = from_hf(model, source=tokens, batch_size=4, kv_heads=1)
    x = task.entry(tokens[:4])
    side = task.side_inputs(x, {})[0]
    pair = task.pairs[0]
    assert pair.student.self_attn.k_proj.out_features == 8
    torch.testing.assert_close(pair.student(x, **side), pair.teacher(x, **side))


def test_silent_query_heads_are_the_ones_dropped(make_model, tokens):
    model = make_model("llama")
    for layer in model.model.layers:
        with torch.no_grad():  # heads 0 and 3: one of each key-value group
            layer.self_attn.o_proj.weight[:, 0:8] = 0
            layer.self_attn.o_proj.weight[:, 24:32] = 0
    task = from_hf(model, source=tokens, batch_size=4, heads=2)
    x = task.entry(tokens[:4])
    side = task.side_inputs(x, {})[0]
    pair = task.pairs[0]
    assert pair.student.self_attn.q_proj.out_features == 16
    torch.testing.assert_close(pair.student(x, **side), pair.teacher(x, **side))


def test_students_do_not_drop(make_model):
    model = make_model("gpt2")
    assert model.config.resid_pdrop > 0
    shape = LayerShape(ffn=0.5)
    student = student_layer(
        model.transformer.h[0], 0, model.config, student_config(model.config, shape), shape
    ).train()
    x = torch.randn(2, 5, 32)
    assert torch.equal(student(x), student(x))


def test_shapes_are_written_as_text():
    shape = LayerShape.parse("ffn=0.5, kv_heads=2,attn=none@1+3-4")
    assert (shape.ffn, shape.kv_heads, shape.heads) == (0.5, 2, None)
    assert [bool(shape.at(i, 6).no_attention) for i in range(6)] == [0, 1, 0, 1, 1, 0]
    only = LayerShape.parse("ffn=0.25,layers=2-3")
    assert [only.at(i, 5).ffn for i in range(5)] == [1, 1, 0.25, 0.25, 1]
    assert LayerShape(no_attention=-1).at(4, 5).no_attention == (4,)


@pytest.mark.parametrize("text", ["ffn", "ffn=half", "attn=some@1", "width=2"])
def test_text_that_is_no_shape(text):
    with pytest.raises(UserError, match="cannot read"):
        LayerShape.parse(text)
