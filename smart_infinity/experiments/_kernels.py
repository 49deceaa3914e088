"""Single pieces of a device's work on data in memory, by one thread: updates, codecs, top-k."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from smart_infinity import _core, kinds, layout
from smart_infinity.array import plan
from smart_infinity.core_types import plan_of, segments_of
from smart_infinity.formulas import MOMENT_BYTES
from smart_infinity.layout import BYTES

TILE = 1 << 18
# Read and written per parameter by an update in memory: gradient, parameter and two moments in,
# all but the gradient out. The paper's GB/s of its updater are of such bytes.
UPDATE_BYTES = 28
Rate = Callable[[], float]  # measures once, and gives things a second


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Compute at a level: one of `_core.simd_levels()`."""
    before = _core.simd()
    _core.use_simd(name)
    try:
        yield
    finally:
        _core.use_simd(before)


def per_second(work: Callable[[], object], count: float, repeats: int) -> float:
    """Do the work some times and give how many of `count` a second that was.

    Seconds are those that this thread was running: whoever else uses the processor is not counted.
    """
    begin = time.thread_time()
    for _ in range(repeats):
        work()
    return repeats * count / (time.thread_time() - begin)


# Where torch keeps what we call the moments, in our order.
_STATE = {
    "adamw": ("exp_avg", "exp_avg_sq"), "adam": ("exp_avg", "exp_avg_sq"), "adagrad": ("sum",),
    "sgd": ("momentum_buffer",),
}  # fmt: skip


class Data:
    """Parameters, gradients and moments of n elements, the very same memory for whoever steps them.

    How fast memory is depends on which pages of the machine it got, by a factor of 1.5.
    """

    def __init__(self, elements: int, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        self.n = elements
        self.parameters, self.gradient = torch.randn(elements), torch.randn(elements) * 1e-2
        self.moments = [torch.full_like(self.parameters, 1e-4) for _ in range(2)]

    def ours(self, kind: str, options: dict[str, Any], name: str, repeats: int) -> Rate:
        """Give the measure of our kernel at a level, in parameters a second."""
        settings = _core.Settings()
        optimizer = kinds.OPTIMIZERS[kind]
        given = kinds.merged(optimizer, options)
        for key, value in kinds.settings(given).items():
            setattr(settings, key, value)
        count = len(optimizer.moments(given))
        moments = [one.numpy() for one in self.moments[:count]] + [None] * (2 - count)
        parameters, gradient = self.parameters.numpy(), self.gradient.numpy()
        steps = [0]

        def step() -> None:
            steps[0] += 1
            _core.update(
                _core.Kind[kind], settings, steps[0], 1.0, 1.0, False, parameters, gradient,
                *moments,
            )  # fmt: skip

        def rate() -> float:
            with level(name):
                return per_second(step, self.n, repeats)

        return rate

    def torchs(self, kind: str, options: dict[str, Any], way: str, repeats: int) -> Rate:
        """Give the measure of torch's optimizer: fused, foreach or single-tensor."""
        from smart_infinity.against_torch import CLASSES

        flags = {
            "fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}
        }[way]  # fmt: skip
        param = self.parameters.detach().requires_grad_()
        param.grad = self.gradient
        optimizer = CLASSES[kind]([param], **options, **flags)
        optimizer.step()  # makes its state
        optimizer.state[param].update(zip(_STATE[kind], self.moments, strict=False))
        return lambda: per_second(optimizer.step, self.n, repeats)


class Tiles:
    """Tiles as a device has them in memory, stepped by AdamW as it steps them.

    `grad` and `out` are the types gradients come down and parameters go up in, `moments` how
    moments are stored.
    """

    def __init__(self, count: int, *, grad: str, out: str, moments: str, seed: int) -> None:
        laid = layout.build([layout.Parameter("flat", (count * TILE,))], tile=TILE)
        self.stepper = _core.Stepper(
            _core.Kind.adamw, True, _core.Moments[moments], TILE, laid.tile_elements(0),
            segments_of(laid.segments(0)),
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        record = int(TILE * (4 + 2 * MOMENT_BYTES[moments]))
        self.records = [np.zeros(record, np.uint8) for _ in range(count)]
        for one in self.records:
            one[: 4 * TILE] = rng.standard_normal(TILE, np.float32).view(np.uint8)
        floats = rng.standard_normal(TILE, np.float32) * np.float32(1e-2)
        self.gradient = np.empty(TILE * BYTES[grad], np.uint8)
        self.grad, self.out = _core.Dtype[grad], _core.Dtype[out]
        if grad == "float32":
            self.gradient[:] = floats.view(np.uint8)
        else:
            _core.from_float(self.grad, floats, self.gradient)
        self.up = np.empty(TILE * BYTES[out], np.uint8)
        self.steps = 0
        self.settings = kinds.settings(kinds.merged(kinds.OPTIMIZERS["adamw"], {}))

    def rate(self) -> float:
        """Step every tile once; parameters a second."""
        self.steps += 1
        body = plan([self.settings], [self.steps], np.zeros(1, np.uint16))
        made = plan_of(_core.Kind.adamw, self.steps, body)

        def work() -> None:
            for tile, record in enumerate(self.records):
                self.stepper.run(tile, made, self.gradient, self.grad, record, self.up, self.out)

        return per_second(work, len(self.records) * TILE, 1)


class TopKs:
    """The largest entries of tiles: ours with indices and values encoded, torch's gathered."""

    def __init__(self, ratio: float, seed: int, count: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.k = _core.topk_kept(TILE, ratio)
        self.tiles = [rng.standard_normal(TILE, np.float32) for _ in range(count)]
        # In the last one many are equal: of these the first are to be taken.
        self.tiles[-1] = np.round(self.tiles[-1], 1).astype(np.float32)
        self.type = _core.Dtype.float32
        self.out = np.empty(_core.topk_bytes(TILE, self.k, self.type), np.uint8)
        self.dense = np.empty(TILE, np.float32)

    def ours(self) -> float:
        """Encode every tile; entries looked at a second."""

        def work() -> None:
            for tile in self.tiles:
                _core.topk_encode(tile, self.k, self.type, self.out)

        return per_second(work, len(self.tiles) * TILE, 1)

    def torchs(self) -> float:
        """Do the same by torch.topk of magnitudes, unsorted, and a gather of the values."""
        import torch

        tensors = [torch.from_numpy(tile) for tile in self.tiles]

        def work() -> None:
            for tile in tensors:
                _, places = torch.topk(tile.abs(), self.k, sorted=False)
                tile[places]

        return per_second(work, len(self.tiles) * TILE, 1)

    def decoded(self) -> float:
        """Decompress every tile and step it; parameters a second."""
        settings = _core.Settings()
        arrays = [np.zeros(TILE, np.float32) for _ in range(3)]
        _core.topk_encode(self.tiles[0], self.k, self.type, self.out)

        def work() -> None:
            for step in range(len(self.tiles)):
                _core.topk_decode(self.out, self.type, self.dense)
                _core.update(
                    _core.Kind.adamw, settings, step + 1, 1.0, 1.0, False, arrays[0], self.dense,
                    *arrays[1:],
                )  # fmt: skip

        return per_second(work, len(self.tiles) * TILE, 1)

    def wrong(self) -> int:
        """Count entries that are not those of a stable sort by falling magnitude."""
        count = 0
        for tile in self.tiles:
            _core.topk_encode(tile, self.k, self.type, self.out)
            _core.topk_decode(self.out, self.type, self.dense)
            chosen = np.argsort(-np.abs(tile), kind="stable")[: self.k]
            expected = np.zeros_like(tile)
            expected[chosen] = tile[chosen]
            count += int((self.dense != expected).sum())
        return count


def conversions(seed: int, elements: int = 1 << 20) -> dict[str, Rate]:
    """Give measures of what else passes over every number: numbers a second."""
    rng = np.random.default_rng(seed)
    floats: npt.NDArray[np.float32] = rng.standard_normal(elements, np.float32)
    back = np.empty_like(floats)
    found: dict[str, Rate] = {}
    for name in ("bfloat16", "float16"):
        half, dtype = np.empty(2 * elements, np.uint8), _core.Dtype[name]
        _core.from_float(dtype, floats, half)
        narrow = partial(_core.from_float, dtype, floats, half)
        widen = partial(_core.to_float, dtype, half, back)
        found[f"float32 to {name}"] = _repeated(narrow, elements)
        found[f"{name} to float32"] = _repeated(widen, elements)
    found["CRC-32C of float32"] = _repeated(lambda: _core.crc32c(floats), elements)
    found["search for NaN and Inf"] = _repeated(lambda: _core.finite(floats), elements)
    return found


def _repeated(work: Callable[[], object], elements: int) -> Rate:
    return lambda: per_second(work, elements, 8)
