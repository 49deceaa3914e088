"""Top-k is exact, and error feedback loses nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from smart_infinity import _core
from smart_infinity.compress import Compressor, TopK, parse
from smart_infinity.layout import Tile
from smart_infinity.optimizer import SmartOptimizer

Floats = npt.NDArray[np.float32]


def expected(gradient: Floats, k: int) -> npt.NDArray[np.int64]:
    """The k largest magnitudes, of equals the earlier; by a stable sort."""
    order = np.argsort(-np.abs(gradient.astype(np.float64)), kind="stable")
    return np.sort(order[:k])


def round_trip(gradient: Floats, k: int, values: Any, residual: Floats | None = None) -> Floats:
    room = np.full(_core.topk_bytes(len(gradient), k, values), 0xAB, np.uint8)
    length = _core.topk_encode(gradient, k, values, room, residual)
    assert length == len(room)
    out = np.full(len(gradient), np.nan, np.float32)
    _core.topk_decode(room, values, out)
    return out


@given(
    st.integers(1, 3000), st.floats(0.001, 1), st.integers(0, 2**31),
    st.sampled_from(["normal", "ties", "zeros", "tiny"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_exactly_the_k_largest_of_equals_the_earlier(
    n: int, ratio: float, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    gradient = {
        "normal": rng.standard_normal(n), "ties": rng.integers(-2, 3, n), "zeros": np.zeros(n),
        "tiny": rng.standard_normal(n) * 1e-42,
    }[kind].astype(np.float32)  # fmt: skip
    k = _core.topk_kept(n, ratio)
    assert k == max(1, int(ratio * n))
    out = round_trip(gradient, k, _core.Dtype.float32)
    chosen = expected(gradient, k)
    want = np.zeros(n, np.float32)
    want[chosen] = gradient[chosen]
    assert np.array_equal(out.view(np.uint32), want.view(np.uint32)) or np.array_equal(out, want)


def test_blocks_of_65536_and_their_ends() -> None:
    rng = np.random.default_rng(0)
    for n in (65535, 65536, 65537, 200_003):
        gradient = rng.standard_normal(n).astype(np.float32)
        gradient[[0, n - 1]] = 100
        k = n // 50
        out = round_trip(gradient, k, _core.Dtype.float32)
        assert np.array_equal(np.nonzero(out)[0], expected(gradient, k))


@given(
    st.integers(1, 2000),
    st.integers(0, 2**31),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
@settings(max_examples=100, deadline=None)
def test_what_is_sent_and_what_is_left_is_what_there_was(n: int, seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    values = _core.Dtype[name]
    residual = np.zeros(n, np.float32)
    for step in range(5):
        gradient = rng.standard_normal(n).astype(np.float32)
        there = residual + gradient
        out = round_trip(gradient, max(1, n // 10), values, residual)
        assert np.array_equal(out + residual, there), step  # exact: one of them is the rest
        if name == "float32":
            assert not (out * residual).any()


def test_nan_counts_as_largest() -> None:
    gradient = np.arange(10, dtype=np.float32)
    gradient[3] = np.nan
    out = round_trip(gradient, 2, _core.Dtype.float32)
    assert np.isnan(out[3])
    assert out[9] == 9


@given(st.binary(max_size=400), st.integers(1, 300))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_encoding_are_refused(data: bytes, n: int) -> None:
    out = np.zeros(n, np.float32)
    with contextlib.suppress(UserError):
        _core.topk_decode(np.frombuffer(data, np.uint8), _core.Dtype.float32, out)


def test_sizes_by_the_formula() -> None:
    for n in (1, 1000, 65536, 100_000):
        for ratio in (0.01, 0.1, 1.0):
            k = max(1, int(ratio * n))
            for name, width in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
                blocks, padded = -(-n // 65536), -(-2 * k // 4) * 4
                assert TopK(ratio, name).bytes(n) == 4 * blocks + padded + width * k


def test_momentum_is_built_up_before_the_choice_and_begins_anew_where_it_is_sent() -> None:
    n, ratio = 500, 0.1
    rng = np.random.default_rng(0)
    tile = Tile(0, 0, "float32", n, ())
    compressor = Compressor(TopK(ratio))
    assert compressor.topk.momentum == 0.9
    velocity, owed = np.zeros(n, np.float32), np.zeros(n, np.float32)
    room = bytearray(compressor.topk.bytes(n))
    for _ in range(6):
        gradient = rng.standard_normal(n).astype(np.float32)
        velocity = np.float32(0.9) * velocity + gradient
        owed = owed + velocity
        chosen = expected(owed, 50)
        length = compressor.encode(tile, gradient.copy(), memoryview(room))
        out = np.zeros(n, np.float32)
        _core.topk_decode(np.frombuffer(room, np.uint8)[:length], _core.Dtype.float32, out)
        want = np.zeros(n, np.float32)
        want[chosen] = owed[chosen]
        assert np.array_equal(out, want)
        owed[chosen] = velocity[chosen] = 0


def test_what_is_owed_is_owed_as_it_was_clipped(tmp_path: Path) -> None:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1000))
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    compress = TopK(0.1, warmup=0, momentum=0.0)
    with SmartOptimizer(
        [parameter], devices=[tmp_path / "s"], lr=0.1, compress=compress, max_norm=0.5
    ) as optimizer:
        parameter.grad = gradient.clone()
        optimizer.step()
        assert optimizer.compressor is not None
        (residual,) = optimizer.compressor.residuals.values()
    clip = np.float32(0.5 / (float(torch.linalg.vector_norm(gradient)) + 1e-6))
    chosen = expected(gradient.numpy(), 100)
    want = gradient.numpy() * clip
    want[chosen] = 0
    assert np.allclose(residual, want, rtol=1e-6)
    assert not residual[chosen].any()


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "adagrad"])
def test_a_step_of_momentum_is_one_without_the_optimizers_own(kind: str, tmp_path: Path) -> None:
    import torch

    more = {"sgd": {"momentum": 0.9, "nesterov": True}}.get(kind, {})
    without = {"sgd": {"momentum": 0.0}, "adagrad": {}}.get(kind, {"betas": (0.0, 0.999)})
    ours, theirs = (torch.nn.Parameter(torch.ones(64)) for _ in range(2))
    reference: Any = {
        "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }[kind]([theirs], lr=0.1, fused=True, **without)  # fmt: skip
    with SmartOptimizer(
        [ours],
        devices=[tmp_path / "s"],
        optimizer=kind,
        lr=0.1,
        compress=TopK(1.0, warmup=0),
        **more,
    ) as optimizer:
        for step in range(3):
            gradient = torch.randn(64, generator=torch.Generator().manual_seed(step))
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            optimizer.step()
            reference.step()
            assert torch.equal(ours, theirs)


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"momentum=1\.0"):
        TopK(momentum=1.0)
    with pytest.raises(UserError, match="leave error_feedback on"):
        TopK(error_feedback=False, momentum=0.5)
    assert TopK(error_feedback=False).momentum == 0


def test_parsing() -> None:
    assert parse("none") is None
    assert parse("topk:0.05") == TopK(0.05)
    for text in ("topk", "topk:x", "none:1", "top:0.1"):
        with pytest.raises(UserError, match="write none or topk"):
            parse(text)
