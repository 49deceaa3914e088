"""Codes: sizes that waste nothing, and training in parts whatever the dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import UserError

import navis
from navis import quantizer
from navis.datasets.synthetic import clustered


def test_default_codes_waste_no_byte() -> None:
    assert [quantizer.default_bytes(d) for d in (1, 48, 128, 384, 768, 1536, 3072)] == [
        *(1, 12, 32, 77, 154, 256, 256)
    ]
    for dim in range(1, 3100):
        size = quantizer.default_bytes(dim)
        assert 1 <= size <= min(dim, 256)
        assert -(-dim // -(-dim // size)) == size, dim
        assert size >= min(dim // 6, 200)


def test_codes_leave_a_tight_budget_to_the_cache() -> None:
    assert quantizer.fitting_bytes(768, 60_000, None) == 154
    assert quantizer.fitting_bytes(768, 60_000, 64 << 20) == 154
    assert quantizer.fitting_bytes(768, 60_000, 18_432_000) == 128
    assert quantizer.fitting_bytes(128, 60_000, 1 << 20) == 32


@pytest.mark.parametrize(("dim", "size"), [(129, 32), (49, 12), (33, 32), (40, 8), (7, 7)])
@pytest.mark.parametrize("at_once", [1, 25, 10**6])
def test_training_in_parts_gives_codes_of_any_size(dim: int, size: int, at_once: int) -> None:
    sample = np.random.default_rng(0).standard_normal((600, dim)).astype(np.float32)
    books = quantizer.train_in_parts(lambda low, high: sample[:, low:high], dim, size, at_once)
    width = -(-dim // size)
    assert books.shape == (size, 256, width)
    whole = books.transpose(1, 0, 2).reshape(256, size * width)
    assert np.all(whole[:, dim:] == 0)
    for part in range(-(-dim // width)):
        low, high = part * width, min((part + 1) * width, dim)
        away = sample[:, None, low:high] - books[None, part, :, : high - low]
        error = (away**2).sum(2).min(1).mean()
        assert error < 0.6 * sample[:, low:high].var(0).sum()
    for bad in (0, dim + 1):
        with pytest.raises(UserError, match=f"use 1 to {dim}"):
            quantizer.train_in_parts(lambda low, high: sample[:, low:high], dim, bad, 25)


@pytest.mark.parametrize("code_bytes", [None, 32])
def test_inner_product_of_128_dimensions_is_built(tmp_path: Path, code_bytes: Any) -> None:
    base = clustered(600, 128, clusters=20).base()
    with navis.Index.build(
        tmp_path / "ix", base, metric="inner_product", code_bytes=code_bytes
    ) as index:
        assert len(index) == 600
