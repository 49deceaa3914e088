"""Exported students: loadable, equal, and never half written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from shorthaul import atomic
from shorthaul.errors import Fault, UserError
from torch import nn

from pipe_bd import export as exporting
from pipe_bd.adapters.hf_layers import LayerShape
from pipe_bd.adapters.huggingface import from_hf
from pipe_bd.api import distill
from pipe_bd.blocks import BlockPair, Task
from pipe_bd.cli import main
from pipe_bd.commands.export import parse_choice
from pipe_bd.export import export, export_hf, export_weights, load_weights
from pipe_bd.models import build
from pipe_bd.source import tensor_source
from pipe_bd.stitch import stitch

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 48, (16, 10), generator=torch.Generator().manual_seed(1))


def chain_task(seed=0):
    torch.manual_seed(seed)
    pairs = [
        BlockPair(f"b{i}", nn.Linear(3, 3), {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        for i in range(2)
    ]
    return Task(pairs, tensor_source(X, 4), name="chain")


def tiny(family="llama"):
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=48,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    else:
        kind = {
            "llama": transformers.LlamaConfig,
            "qwen2": transformers.Qwen2Config,
            "qwen3": transformers.Qwen3Config,
        }[family]
        config = kind(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            **({"head_dim": 8} if family == "qwen3" else {}),
        )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def reload(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


# -- any task


def test_weights_come_back_equal(tmp_path):
    task = chain_task()
    folder = export_weights(task, tmp_path / "out", {"b0": "b", "b1": "a"})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(b["name"], b["candidate"]) for b in manifest["blocks"]] == [("b0", "b"), ("b1", "a")]
    assert manifest["version"] == 1
    assert set(load_file(folder / "student.safetensors")) == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    other = chain_task(seed=1)
    assert torch.equal(load_weights(other, folder)(X), stitch(task, {"b0": "b", "b1": "a"})(X))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_use_is_not_overwritten_unless_told(tmp_path):
    task = chain_task()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        export(task, tmp_path / "out", "a")
    assert (tmp_path / "out" / "precious").exists()
    export(task, tmp_path / "out", "a", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json", "student.safetensors",
    ]  # fmt: skip
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        export(task, tmp_path / "file", "a")


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    task = chain_task()
    export(task, tmp_path / "out", "a")
    before = (tmp_path / "out" / "student.safetensors").read_bytes()

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "save_file", broken)
    with pytest.raises(OSError, match="No space"):
        export(task, tmp_path / "out", "b", overwrite=True)
    assert (tmp_path / "out" / "student.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_damaged_or_foreign_exports_are_refused(tmp_path):
    task = chain_task()
    folder = export(task, tmp_path / "out", "a")
    raw = bytearray((folder / "student.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "student.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        load_weights(task, folder)
    manifest = atomic.read_json(folder / "manifest.json")
    atomic.write_json(folder / "manifest.json", {**manifest, "version": 9})
    with pytest.raises(UserError, match="version 9"):
        load_weights(task, folder)
    atomic.write_json(folder / "manifest.json", {"format": "other"})
    with pytest.raises(UserError, match="not a student"):
        load_weights(task, folder)
    other = export(task, tmp_path / "other", "a")
    task.pairs[0].name = "renamed"
    with pytest.raises(UserError, match="renamed"):
        load_weights(task, other)


# -- Hugging Face


@pytest.mark.parametrize(
    "options",
    [{"ffn": 0.5}, {"ffn": 0.5, "kv_heads": 1, "heads": 2}, {"no_attention": "1"}],
    ids=["ffn", "heads", "no-attention"],
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_the_folder_loads_plainly_with_equal_logits(tmp_path, family, options):
    if family == "gpt2" and "heads" in options:
        pytest.skip("GPT-2 ties its heads to its width")
    task = from_hf(tiny(family), source=TOKENS, batch_size=4, steps=2, **options)
    distill(task, schedule="sequential")
    folder = export_hf(task, tmp_path / "out")
    again = reload(folder)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, stitch(task)(TOKENS))
    assert not list(folder.glob("*.py"))  # nothing to trust
    if "ffn" in options:
        assert sum(p.numel() for p in again.parameters()) < sum(
            p.numel() for p in task.model.parameters()
        )


def test_export_leaves_the_teacher_as_it_was(tmp_path):
    model = tiny()
    with torch.no_grad():
        before = model(TOKENS).logits
    task = from_hf(model, source=TOKENS, batch_size=4, steps=1, ffn=0.5)
    export_hf(task, tmp_path / "out")
    assert model.config.intermediate_size == 32
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, before)


def test_layers_of_different_shapes_cannot_be_exported(tmp_path):
    task = from_hf(tiny(), source=TOKENS, batch_size=4, ffn=0.5, layers="1")
    with pytest.raises(UserError, match=r"layer 1 has .*0\.5.*layer 0 has .*1\.0"):
        export(task, tmp_path / "out")
    library = {"half": LayerShape(ffn=0.5), "quarter": LayerShape(ffn=0.25)}
    task = from_hf(tiny(), source=TOKENS, batch_size=4, library=library)
    with pytest.raises(UserError, match="several candidates"):
        export(task, tmp_path / "out")
    with pytest.raises(UserError, match="one shape"):
        export(task, tmp_path / "out", {"layer0": "half", "layer1": "quarter"})
    export(task, tmp_path / "out", "quarter")
    assert reload(tmp_path / "out").config.intermediate_size == 8


def test_a_model_that_computes_something_else_is_a_fault(tmp_path, monkeypatch):
    task = from_hf(tiny(), source=TOKENS, batch_size=4, ffn=0.5)
    wrong = exporting.student_model(task)
    with torch.no_grad():
        # The head of its own: the teacher's weights are shared, not to be touched.
        wrong.lm_head.weight = nn.Parameter(wrong.lm_head.weight * 2)
    monkeypatch.setattr(exporting, "student_model", lambda *a: wrong)
    with pytest.raises(Fault, match="differs from the student"):
        export_hf(task, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_travels_along(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "tokenizer_config.json").write_text('{"x": 1}')
    task = from_hf(tmp_path / "teacher", source=TOKENS, batch_size=4, ffn=0.5)
    export_hf(task, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"x": 1}'


# -- the command


def test_choices_on_the_command_line():
    assert parse_choice([]) is None
    assert parse_choice(["half"]) == "half"
    assert parse_choice(["b0=a", "b1=b"]) == {"b0": "a", "b1": "b"}
    for bad in (["half", "b0=a"], ["b0="]):
        with pytest.raises(UserError, match="BLOCK=CANDIDATE"):
            parse_choice(bad)


def test_a_link_stays_a_link(tmp_path):
    task = build("toy-vgg", steps=2)
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "disk" / "real" / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    export_weights(task, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["real"]
    assert sorted(p.name for p in (tmp_path / "disk" / "real").iterdir()) == [
        "manifest.json",
        "student.safetensors",
    ]


def test_train_then_export(tmp_path, capsys):
    save = tmp_path / "run"
    train = ["train", "--model", "toy-vgg", "--steps", "2", "--schedule", "sequential"]
    assert main([*train, "--checkpoint", str(save)]) == 0
    assert main(["export", "--checkpoint", str(save), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "student.safetensors").is_file()
    capsys.readouterr()
    assert main(["export", "--checkpoint", str(save), "--out", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["export", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "no finished run" in capsys.readouterr().err
