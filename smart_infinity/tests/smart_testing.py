"""What the tests share: parameters, gradients, and a comparison of bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from smart_infinity import SmartOptimizer

Make = Callable[..., SmartOptimizer]

SIZES = (1, 7, 8, 9, 15, 16, 17, 1023, 4096)


def tensors(sizes: tuple[int, ...] = SIZES, seed: int = 0, dtype: Any = torch.float32) -> list[Any]:
    """Parameters of these sizes, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype).requires_grad_() for n in sizes]


def gradients(params: list[Any], step: int, seed: int = 0) -> list[Any]:
    """Gradients of magnitudes from 1e-6 to 10, of a step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    found = []
    for param in params:
        scale = 10 ** (torch.rand(param.shape, generator=generator) * 7 - 6)
        found.append((torch.randn(param.shape, generator=generator) * scale).to(param.dtype))
    return found


def set_gradients(params: list[Any], given: list[Any]) -> None:
    for param, gradient in zip(params, given, strict=True):
        param.grad = None if gradient is None else gradient.clone()


def differing_bits(a: list[Any], b: list[Any]) -> int:
    """Elements of two lists of float32 tensors that differ in any bit."""
    return sum(
        int((x.detach().view(torch.int32) != y.detach().view(torch.int32)).sum())
        for x, y in zip(a, b, strict=True)
    )


def words(count: int = 4000) -> str:
    """A text to train on: numbers, and their squares."""
    return " ".join(f"{n} {n * n}" for n in range(count))
