"""Small teacher–student pairs for exactness checks and for the speed figures.

Tensor names carry their dimensions: B rows, C channels, H W image, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


def conv_block(c_in: int, c_out: int, pool: bool, norm: bool) -> nn.Sequential:
    """3x3 convolution, BatchNorm if any, ReLU, then optionally a 2x2 max pool; x_BCHW."""
    # BatchNorm cancels any bias before it, whose gradient would be pure rounding noise.
    return _block(nn.Conv2d(c_in, c_out, 3, padding=1, bias=not norm), c_out, pool, norm)


def separable_block(c_in: int, c_out: int, pool: bool, norm: bool) -> nn.Sequential:
    """The same with the 3x3 convolution replaced by a depthwise 3x3 and a pointwise 1x1."""
    depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=not norm)
    pointwise = nn.Conv2d(c_in, c_out, 1, bias=not norm)
    return _block(nn.Sequential(depthwise, pointwise), c_out, pool, norm)


def _block(convolution: nn.Module, c_out: int, pool: bool, norm: bool) -> nn.Sequential:
    layers = [convolution, *([nn.BatchNorm2d(c_out)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


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


@dataclass(frozen=True)
class Setting:
    """How a toy is to be trained; the same for all of them.

    Attributes:
        seed: of weights and data.
        batch: rows per batch.
        steps: batches.
        dtype: of weights and boundaries.
        optimizer: a name in :data:`OPTIMIZERS`.
    """

    seed: int
    batch: int
    steps: int
    dtype: torch.dtype
    optimizer: str

    def task(
        self, name: str, pairs: list[BlockPair], data: Tensor, entry: nn.Module | None
    ) -> Task:
        """The blocks with their batches."""
        source = tensor_source(data, self.batch, steps=self.steps, seed=self.seed, identity=name)
        return Task(pairs, source, entry, name=name)


@dataclass(frozen=True)
class CNN:
    """A VGG-like teacher of 3x3 convolutions and its depthwise-separable student.

    Attributes:
        widths: output channels per block.
        pools: blocks that end in a 2x2 max pool.
        size: height and width of the input.
        channels: of the input.
        batch: usual rows per batch.
        norm: BatchNorm in teacher and student.
    """

    widths: tuple[int, ...]
    pools: tuple[int, ...]
    size: int
    channels: int
    batch: int = 10
    norm: bool = False

    def build(self, name: str, setting: Setting) -> Task:
        """The task."""
        torch.manual_seed(derive(setting.seed, name))
        pairs, c, make = [], self.channels, OPTIMIZERS[setting.optimizer]
        for i, width in enumerate(self.widths):
            teacher = conv_block(c, width, i in self.pools, self.norm).to(setting.dtype)
            student = separable_block(c, width, i in self.pools, self.norm).to(setting.dtype)
            if self.norm:
                _random_statistics(teacher)
            pairs.append(BlockPair(f"block{i}", teacher, student, MSE(), make))
            c = width
        generator = torch.Generator().manual_seed(derive(setting.seed, "images"))
        shape = (setting.batch * 4, self.channels, self.size, self.size)
        images = torch.randn(shape, generator=generator, dtype=torch.float64).to(setting.dtype)
        return setting.task(name, pairs, images, None)


def _random_statistics(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)


@dataclass(frozen=True)
class GPT:
    """A GPT-like teacher and students with a narrower feed-forward.

    Attributes:
        blocks: number of blocks.
        width: D.
        tokens: T.
        heads: attention heads.
        shrink: the first candidate's share of the teacher's feed-forward width.
        batch: usual rows per batch.
        candidates: students per block, each with half the feed-forward of the one before.
        dropout: of the students.
        loss: of every block.
    """

    blocks: int
    width: int
    tokens: int
    heads: int
    shrink: float
    batch: int = 10
    candidates: int = 1
    dropout: float = 0.0
    loss: Loss = field(default_factory=MSE)

    def build(self, name: str, setting: Setting) -> Task:
        """The task."""
        torch.manual_seed(derive(setting.seed, name))
        hidden = int(4 * self.width * self.shrink)
        pairs = []
        for i in range(self.blocks):
            teacher = GPTBlock(self.width, self.heads, 4 * self.width).to(setting.dtype)
            students = {}
            for c in range(self.candidates):
                narrow = GPTBlock(self.width, self.heads, max(8, hidden >> c), self.dropout)
                label = "student" if self.candidates == 1 else f"ffn{c}"
                students[label] = narrow.to(setting.dtype)
            make = OPTIMIZERS[setting.optimizer]
            pairs.append(BlockPair(f"block{i}", teacher, students, self.loss, make))
        entry = nn.Embedding(256, self.width).to(setting.dtype)
        generator = torch.Generator().manual_seed(derive(setting.seed, "tokens"))
        ids = torch.randint(0, 256, (setting.batch * 4, self.tokens), generator=generator)
        return setting.task(name, pairs, ids, entry)


# The first three are small enough for exactness checks; sizes of the others: notes, sections 4.1
# and 4.2.
TOYS: dict[str, CNN | GPT] = {
    "toy-vgg": CNN((8, 8, 12, 12, 16, 16), pools=(1, 3), size=12, channels=3),
    "toy-gpt": GPT(6, 32, 16, 4, 0.25, loss=NormalisedMSE()),
    "toy-bn": CNN((8, 8, 12, 12), pools=(1, 3), size=12, channels=3, norm=True),
    "toy-library": GPT(4, 32, 16, 4, 0.5, candidates=4, dropout=0.1),
    "vgg6": CNN((64, 64, 64, 64, 128, 128), pools=(1, 3), size=28, channels=1, batch=64),
    "gpt12": GPT(12, 192, 64, 6, 0.25, batch=16),
    "gpt12-library": GPT(12, 192, 64, 6, 0.25, batch=16, candidates=4),
}
