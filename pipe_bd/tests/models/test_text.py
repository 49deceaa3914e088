"""Decoders on text: rows, bits per byte, and tasks from a name or a folder."""

from __future__ import annotations

import pytest
import torch
from shorthaul.errors import UserError

from pipe_bd.api import distill
from pipe_bd.models import text
from pipe_bd.stitch import stitch, teacher_of

pytest.importorskip("transformers", reason="the hf extra is not installed")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_tenth_row_is_held_out():
    train, held = text.windows(torch.arange(205), 10)
    assert train.shape == (18, 10)
    assert held[:, 0].tolist() == [90, 190]
    with pytest.raises(UserError, match="give 100 tokens or more"):
        text.windows(torch.arange(50), 10)


def test_bits_per_byte_of_a_uniform_model_is_eight():
    uniform = torch.nn.Embedding.from_pretrained(torch.zeros(256, 256))
    assert text.bits_per_byte(uniform, torch.randint(0, 256, (5, 9))) == pytest.approx(8)


def test_a_tiny_llama_learns_and_its_student_follows(tmp_path):
    rows, held = text.byte_rows(16)
    teacher = text.train_teacher(rows, width=32, layers=2, steps=40, batch=8, folder=tmp_path)
    task = text.distillation(teacher, rows, batch=4, steps=3, ffn=0.5)
    own = text.bits_per_byte(teacher, held[:32])
    assert own < 7  # uniform bytes are 8
    assert text.bits_per_byte(teacher_of(task), held[:32]) == own
    distill(task, schedule="sequential")
    assert text.bits_per_byte(stitch(task), held[:32]) < 7


def test_a_folder_and_a_file_make_a_task(tmp_path):
    import transformers

    config = text.llama_config(32, 2, 16)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "words.txt").write_text("a few words, again and again. " * 40)
    task = text.hf_task(
        tmp_path / "model",
        text=str(tmp_path / "words.txt"),
        student="ffn=0.5,attn=none@1",
        tokens=16,
        batch=4,
        steps=2,
    )
    assert task.directory == tmp_path / "model"
    assert task.source.load(0, 0, 4).x.dtype == torch.int64
    distill(task, schedule="sequential")
    with pytest.raises(UserError, match="16 positions"):
        text.hf_task(tmp_path / "model", tokens=32)
