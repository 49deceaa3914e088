"""Small teacher–student pairs for exactness checks and for the speed figures.

Tensor names carry their dimensions: B rows, C channels, H W image, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipe_bd.blocks import BlockPair, OptimizerFactory, Task
from pipe_bd.losses import MSE, Loss, NormalisedMSE
from pipe_bd.rng import derive
from pipe_bd.source import tensor_source

# AdamW divides by √v + ε: with the default ε of 1e-8, rounding noise in gradients that are nearly
# zero becomes steps of full size, and no two summation orders could agree. An ε above the noise
# keeps the comparison about the schedule.
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, eps=1e-5, weight_decay=0.01),
}


def conv_block(c_in: int, c_out: int, convs: int, pool: bool, norm: bool = False) -> nn.Sequential:
    """VGG block: ``convs`` 3×3 convolutions with ReLU, then optionally a 2×2 max pool; x_BCHW."""
    layers: list[nn.Module] = []
    for i in range(convs):
        layers.append(nn.Conv2d(c_in if i == 0 else c_out, c_out, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(c_out))
        layers.append(nn.ReLU())
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def separable_block(
    c_in: int, c_out: int, convs: int, pool: bool, norm: bool = False
) -> nn.Sequential:
    """The same with each 3×3 convolution replaced by a depthwise 3×3 and a pointwise 1×1."""
    layers: list[nn.Module] = []
    for i in range(convs):
        c = c_in if i == 0 else c_out
        # BatchNorm cancels any bias before it: its gradient would be pure rounding noise.
        layers += [
            nn.Conv2d(c, c, 3, padding=1, groups=c, bias=not norm),
            nn.Conv2d(c, c_out, 1, bias=not norm),
        ]
        if norm:
            layers.append(nn.BatchNorm2d(c_out))
        layers.append(nn.ReLU())
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class GPTBlock(nn.Module):
    """Pre-norm transformer block with causal attention; x_BTD → x_BTD.

    Args:
        width: D.
        heads: attention heads.
        hidden: width of the feed-forward layer.
        dropout: after attention and feed-forward.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # No bias: the gradient of a key bias is exactly zero in theory and pure rounding noise in
        # practice.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Attention, then feed-forward, both residual."""
        b, t, d = x_BTD.shape
        q, k, v = (
            self.qkv(self.norm1(x_BTD))
            .view(b, t, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x_BTD = x_BTD + self.dropout(self.out(a))
        return x_BTD + self.dropout(self.down(F.gelu(self.up(self.norm2(x_BTD)))))


def _images(channels: int, size: int, rows: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(derive(seed, "images"))
    return torch.randn(rows, channels, size, size, generator=generator, dtype=torch.float64).to(
        dtype
    )


def _cnn(
    name: str,
    plan: list[tuple[int, int, bool]],
    size: int,
    norm: bool,
    *,
    seed: int,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    optimizer: str,
    channels: int,
) -> Task:
    torch.manual_seed(derive(seed, name))
    pairs, c = [], channels
    for i, (c_out, convs, pool) in enumerate(plan):
        teacher = conv_block(c, c_out, convs, pool, norm).to(dtype)
        student = separable_block(c, c_out, convs, pool, norm).to(dtype)
        if norm:
            _random_statistics(teacher)
        pairs.append(BlockPair(f"block{i}", teacher, student, MSE(), OPTIMIZERS[optimizer]))
        c = c_out
    data = _images(channels, size, batch * 4, seed, dtype)
    return Task(pairs, tensor_source(data, batch, steps=steps, seed=seed, identity=name), name=name)


def _random_statistics(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)


def vgg(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """VGG-like, 6 blocks of width 32 → 128 on 28×28.

    Depthwise-separable student (notes, section 4.2).
    """
    plan = [
        (32, 1, False),
        (64, 1, True),
        (64, 1, False),
        (64, 1, True),
        (128, 1, False),
        (128, 1, False),
    ]
    return _cnn(
        "vgg6",
        plan,
        28,
        False,
        seed=seed,
        batch=batch,
        steps=steps,
        dtype=dtype,
        optimizer=optimizer,
        channels=1,
    )


def toy_vgg(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """A VGG-like pair small enough for exactness checks."""
    plan = [
        (8, 1, False),
        (8, 1, True),
        (12, 1, False),
        (12, 1, True),
        (16, 1, False),
        (16, 1, False),
    ]
    return _cnn(
        "toy-vgg",
        plan,
        12,
        False,
        seed=seed,
        batch=batch,
        steps=steps,
        dtype=dtype,
        optimizer=optimizer,
        channels=3,
    )


def toy_bn(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """A pair with BatchNorm in teacher and student."""
    plan = [(8, 1, False), (8, 1, True), (12, 1, False), (12, 1, True)]
    return _cnn(
        "toy-bn",
        plan,
        12,
        True,
        seed=seed,
        batch=batch,
        steps=steps,
        dtype=dtype,
        optimizer=optimizer,
        channels=3,
    )


def _gpt(
    name: str,
    blocks: int,
    width: int,
    tokens: int,
    heads: int,
    shrink: float,
    dropout: float,
    *,
    seed: int,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    optimizer: str,
    loss: Callable[[], Loss] = MSE,
    candidates: int = 1,
) -> Task:
    torch.manual_seed(derive(seed, name))
    pairs = []
    for i in range(blocks):
        teacher = GPTBlock(width, heads, 4 * width).to(dtype)
        hidden = int(4 * width * shrink)
        students = {
            ("student" if candidates == 1 else f"ffn{c}"): GPTBlock(
                width, heads, max(8, hidden >> c), dropout
            ).to(dtype)
            for c in range(candidates)
        }
        pairs.append(BlockPair(f"block{i}", teacher, students, loss(), OPTIMIZERS[optimizer]))
    entry = nn.Embedding(256, width).to(dtype)
    generator = torch.Generator().manual_seed(derive(seed, "tokens"))
    ids = torch.randint(0, 256, (batch * 4, tokens), generator=generator)
    return Task(
        pairs, tensor_source(ids, batch, steps=steps, seed=seed, identity=name), entry, name=name
    )


def gpt12(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """GPT-like, 12 blocks, width 192, 64 tokens.

    The student's feed-forward is a quarter (notes, section 4.1).
    """
    return _gpt(
        "gpt12",
        12,
        192,
        64,
        6,
        0.25,
        0.0,
        seed=seed,
        batch=batch,
        steps=steps,
        dtype=dtype,
        optimizer=optimizer,
    )


def gpt12_library(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """The same with four candidates per block.

    Each with half the feed-forward of the one before.
    """
    return _gpt(
        "gpt12-library", 12, 192, 64, 6, 0.25, 0.0,
        seed=seed, batch=batch, steps=steps, dtype=dtype, optimizer=optimizer, candidates=4,
    )  # fmt: skip


def toy_gpt(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """A GPT-like pair small enough for exactness checks, with the normalised MSE."""
    return _gpt(
        "toy-gpt", 6, 32, 16, 4, 0.25, 0.0,
        seed=seed, batch=batch, steps=steps, dtype=dtype, optimizer=optimizer, loss=NormalisedMSE,
    )  # fmt: skip


def toy_library(*, seed: int, batch: int, steps: int, dtype: torch.dtype, optimizer: str) -> Task:
    """Four candidates per block with dropout, small enough for exactness checks."""
    return _gpt(
        "toy-library", 4, 32, 16, 4, 0.5, 0.1,
        seed=seed, batch=batch, steps=steps, dtype=dtype, optimizer=optimizer, candidates=4,
    )  # fmt: skip
