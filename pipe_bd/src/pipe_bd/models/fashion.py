"""Fashion-MNIST: a VGG-like teacher and a depthwise-separable student that sees no label.

Shapes: B rows, C channels, H W image. Width w gives blocks of w, 2w, 2w, 4w, 4w, 4w channels at
28², 14², 14², 7², 7², 7².
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from shorthaul import data as shorthaul_data
from shorthaul.errors import UserError
from torch import Tensor, nn

from pipe_bd.adapters.cnn import separable_conv
from pipe_bd.blocks import BlockPair, Task
from pipe_bd.losses import NormalisedMSE, SoftCrossEntropy
from pipe_bd.models._teachers import cached, cosine
from pipe_bd.rng import derive
from pipe_bd.source import Batch, IndexedSource
from pipe_bd.stitch import device_of

MEAN, STD, CLASSES = 0.286, 0.353, 10
BLOCKS = tuple(f"block{i}" for i in range(6))


class Labels:
    """Labels that count who reads them, and that cannot be sent to another process.

    Attributes:
        reads: labels read, by purpose.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self.reads: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: Tensor | slice, purpose: str) -> Tensor:
        """The labels of some rows, counted under ``purpose``."""
        values = self._values[rows]
        self.reads[purpose] += len(values)
        return values

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "labels stay in the process that trains and tests the teacher: they are not sent to "
            "workers"
        )


@dataclass(frozen=True)
class FashionData:
    """Images as bytes (n, 28, 28), labels apart."""

    train: Tensor
    test: Tensor
    train_labels: Labels
    test_labels: Labels


def load(images: int = 60_000, test_images: int = 10_000) -> FashionData:
    """The first ``images`` and ``test_images`` of Debian's Fashion-MNIST."""
    if not (0 < images <= 60_000 and 0 < test_images <= 10_000):
        raise UserError(
            f"{images} training and {test_images} test images: Fashion-MNIST has 60000 and 10000"
        )
    raw = shorthaul_data.fashion_mnist()
    return FashionData(
        torch.from_numpy(raw.train_images[:images].copy()),
        torch.from_numpy(raw.test_images[:test_images].copy()),
        Labels(torch.from_numpy(raw.train_labels[:images].astype("int64"))),
        Labels(torch.from_numpy(raw.test_labels[:test_images].astype("int64"))),
    )


def pixels(images: Tensor) -> Tensor:
    """Bytes (n, 28, 28) → normalised floats (n, 1, 28, 28)."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


class _Images:
    """Fetches rows of images; bytes travel to the workers, not floats."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, rows: Tensor) -> Batch:
        return Batch(pixels(self.images[rows]))


def teacher_blocks(width: int) -> list[nn.Sequential]:
    """Six blocks (rows, 1, 28, 28) → (rows, 10)."""

    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    w = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, CLASSES)]
    return [
        nn.Sequential(*conv(1, w), *conv(w, w), nn.MaxPool2d(2)),
        nn.Sequential(*conv(w, 2 * w)),
        nn.Sequential(*conv(2 * w, 2 * w), nn.MaxPool2d(2)),
        nn.Sequential(*conv(2 * w, 4 * w)),
        nn.Sequential(*conv(4 * w, 4 * w)),
        nn.Sequential(*conv(4 * w, 4 * w), *head),
    ]


def student_block(teacher: nn.Sequential, multiplier: int) -> nn.Sequential:
    """The same block with fresh depthwise-separable convolutions and without BatchNorm.

    The first convolution stays dense and takes the teacher's weights: of one input channel, a
    depthwise convolution has one filter per multiplier and cannot stand for it. Without BatchNorm a
    student may be split over devices and stay exact.
    """
    layers: list[nn.Module] = []
    for m in teacher:
        if isinstance(m, nn.Conv2d):
            dense = nn.Conv2d(m.in_channels, m.out_channels, 3, padding=1)
            if m.in_channels == 1:
                with torch.no_grad():
                    dense.weight.copy_(m.weight)
                layers.append(dense)
            else:
                layers.extend(separable_conv(dense, multiplier))
        elif isinstance(m, nn.Linear):
            layers.append(nn.Linear(m.in_features, m.out_features))
        elif not isinstance(m, nn.BatchNorm2d):
            layers.append(
                type(m)(1)
                if isinstance(m, nn.AdaptiveAvgPool2d)
                else nn.MaxPool2d(2)
                if isinstance(m, nn.MaxPool2d)
                else type(m)()
            )
    return nn.Sequential(*layers)


def train_teacher(
    data: FashionData,
    *,
    width: int = 16,
    epochs: int = 3,
    batch: int = 64,
    seed: int = 0,
    folder: Path | str | None = None,
) -> list[nn.Sequential]:
    """Train the teacher with labels, or take it from the cache.

    Args:
        data: images and labels; the only place where training labels are read.
        width: channels of the first block.
        epochs: passes over the training images.
        batch: rows per step.
        seed: of weights and order.
        folder: where trained teachers are kept, see :func:`~pipe_bd.models._teachers.workdir`.

    Returns:
        The six blocks in eval mode.
    """
    recipe = {
        "images": len(data.train),
        "width": width,
        "epochs": epochs,
        "batch": batch,
        "seed": seed,
        "version": 1,
    }

    def make() -> nn.Module:
        torch.manual_seed(derive(seed, "fashion-teacher"))
        model = nn.Sequential(*teacher_blocks(width))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
        per_epoch = len(data.train) // batch
        for step in range(epochs * per_epoch):
            epoch, index = divmod(step, per_epoch)
            if index == 0:
                generator = torch.Generator().manual_seed(derive(seed, "fashion-teacher", epoch))
                order = torch.randperm(len(data.train), generator=generator)
            rows = order[index * batch : (index + 1) * batch]
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * cosine(step, epochs * per_epoch)
            loss = F.cross_entropy(
                model(pixels(data.train[rows])), data.train_labels.read(rows, "teacher")
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return model

    state, _ = cached(folder, "fashion", recipe, make)
    model = nn.Sequential(*teacher_blocks(width))
    model.load_state_dict(state)
    return list(model.eval())  # type: ignore[arg-type]


def build_fashion(
    data: FashionData,
    teacher: list[nn.Sequential],
    *,
    batch: int = 64,
    steps: int | None = None,
    multiplier: int = 2,
    lr: float = 4e-3,
    seed: int = 0,
) -> Task:
    """The distillation task: images alone, no label is reachable from it.

    Inner blocks learn by normalised MSE; the last one ends in logits and learns the teacher's
    distribution.
    """
    source = IndexedSource(
        _Images(data.train),
        len(data.train),
        batch,
        steps=steps,
        seed=seed,
        identity=f"fashion-{len(data.train)}",
        threaded=True,
    )
    pairs = []
    for i, block in enumerate(teacher):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "fashion-student", i))
            student = student_block(block, multiplier)
        pairs.append(
            BlockPair(
                BLOCKS[i],
                block,
                student,
                loss=NormalisedMSE() if i < len(teacher) - 1 else SoftCrossEntropy(),
                optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
                lr_schedule=partial(cosine, steps=source.steps),
            )
        )
    return Task(pairs, source, name="fashion")


def fashion_task(
    *,
    seed: int = 0,
    batch: int | None = None,
    steps: int | None = None,
    images: int = 12_000,
    width: int = 16,
    teacher_epochs: int = 3,
    multiplier: int = 2,
    workdir: str | None = None,
) -> Task:
    """The task by its options alone, for the registry; trains the teacher if none is cached."""
    data = load(images, 1)
    teacher = train_teacher(data, width=width, epochs=teacher_epochs, seed=seed, folder=workdir)
    return build_fashion(
        data, teacher, batch=batch or 64, steps=steps, multiplier=multiplier, seed=seed
    )


def evaluate(model: nn.Module, images: Tensor, labels: Labels) -> float:
    """Share of test images classified correctly, in percent."""
    hits, device = 0, device_of(model)
    with torch.no_grad():
        for first in range(0, len(images), 500):
            part = slice(first, first + 500)
            guess = model(pixels(images[part]).to(device)).argmax(1).cpu()
            hits += int((guess == labels.read(part, "evaluation")).sum())
    return 100 * hits / len(images)
