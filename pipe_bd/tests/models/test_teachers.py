"""Trained teachers are kept, checked and made again."""

from __future__ import annotations

import torch
from torch import nn

from pipe_bd.models._teachers import cached, cosine, workdir


def test_a_teacher_is_trained_once_and_a_damaged_one_again(tmp_path):
    made = []

    def make():
        made.append(1)
        torch.manual_seed(3)
        return nn.Linear(2, 2)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, record = cached(tmp_path, "m", {"width": 2}, make)
    assert torch.equal(torch.rand(1), expected)  # the caller's random state is untouched
    second, _ = cached(tmp_path, "m", {"width": 2}, make)
    assert len(made) == 1
    assert torch.equal(first["weight"], second["weight"])
    assert record["recipe"] == {"width": 2}
    file = next(tmp_path.glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 255
    file.write_bytes(raw)
    third, _ = cached(tmp_path, "m", {"width": 2}, make)
    assert len(made) == 2
    assert torch.equal(first["weight"], third["weight"])
    cached(tmp_path, "m", {"width": 3}, make)
    assert len(made) == 3


def test_where_teachers_are_kept(tmp_path, monkeypatch):
    assert workdir(tmp_path) == tmp_path
    monkeypatch.setenv("PIPE_BD_CACHE", str(tmp_path / "named"))
    assert workdir(None) == tmp_path / "named"
    monkeypatch.delenv("PIPE_BD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert workdir(None) == tmp_path / "cache" / "pipe_bd"


def test_the_learning_rate_rises_and_falls():
    values = [cosine(s, 100) for s in range(101)]
    assert values.index(max(values)) == 9
    assert values[-1] == 0
