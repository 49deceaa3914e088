"""OpenCL's kernels step to the bits of the processor's, or the lack of a device is said.

Where no OpenCL device is, the tests of the kernels are not there; where one is, those of its lack.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from shorthaul.errors import EnvironmentLack, UserError
from smart_testing import Make, differing_bits, gradients, set_gradients, tensors

from smart_infinity import _core
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import TopK

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {"weight_decay": 0.01}),
    "adam": ("adam", {"weight_decay": 0.01, "beta1": 0.4, "maximize": True}),
    "adagrad": ("adagrad", {"lr_decay": 0.1, "eps": 1e-10, "weight_decay": 0.01}),
    "sgd": ("sgd", {"weight_decay": 0.01}),
    "sgd-nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "sgd-dampening": ("sgd", {"momentum": 0.9, "dampening": 0.1}),
}
REASON = _core.opencl_reason()
TYPES = (_core.Dtype.float32, _core.Dtype.bfloat16, _core.Dtype.float16)
WIDTH = {_core.Dtype.float32: 4, _core.Dtype.bfloat16: 2, _core.Dtype.float16: 2}
Bits = npt.NDArray[np.uint8]


def settings(options: dict[str, Any], lr: float = 1e-2) -> _core.Settings:
    made = _core.Settings()
    for name, value in {"lr": lr, **options}.items():
        setattr(made, name, value)
    return made


class Tile:
    """Three parameters in a tile of n elements, with room between them; the second is skipped."""

    def __init__(self, n: int) -> None:
        self.n = n
        ends = sorted({max(n // 3, 1), max(2 * n // 3 - n % 2, 1), n})
        columns: dict[str, list[Any]] = {
            name: [] for name in ("tile", "begin", "end", "parameter", "rest", "element")
        }
        begin = 0
        for parameter, end in enumerate(ends):
            cut = begin + (end - begin) // 8 * 8
            for first, last, rest in ((begin, cut, False), (cut, end, True)):
                if first < last:
                    row = (0, first, last, parameter, rest, first - begin)
                    for column, value in zip(columns.values(), row, strict=True):
                        column.append(value)
            begin = end + (3 if n > 100 else 0)
        self.segments = _core.Segments(**columns)
        self.hyper_of = [0, 0xFFFF, 1][: len(ends)] if len(ends) > 1 else [0]

    def stepper(self, kind: str, options: dict[str, Any], updater: _core.Updater) -> _core.Stepper:
        return _core.Stepper(
            _core.Kind[kind], "momentum" in options, _core.Moments.float32, 1 << 17, [self.n],
            self.segments, updater,
        )  # fmt: skip

    def plan(self, kind: str, options: dict[str, Any], step: int) -> _core.Plan:
        both = [settings(options), settings(options, 3e-3)]
        return _core.Plan(
            _core.Kind[kind], step, both, [step, step + 4], self.hyper_of, unscale=0.5, clip=0.25
        )


def record(kind: str, options: dict[str, Any], n: int) -> npt.NDArray[np.float32]:
    """Parameters, and moments as they are before the first step."""
    moments = {"adagrad": 1, "sgd": int("momentum" in options)}.get(kind, 2)
    made = np.zeros((1 + moments) * n, np.float32)
    made[:n] = np.random.default_rng(n).standard_normal(n)
    return made


def encoded(gradient: npt.NDArray[np.float32], encoding: _core.Encoding, type_: Any) -> Bits:
    if encoding is _core.Encoding.topk:
        k = _core.topk_kept(len(gradient), 0.1)
        out = np.zeros(_core.topk_bytes(len(gradient), k, type_), np.uint8)
        _core.topk_encode(gradient, k, type_, out)
        return out
    out = np.zeros(len(gradient) * WIDTH[type_], np.uint8)
    _core.from_float(type_, gradient, out)
    return out


def spread(n: int, seed: int) -> npt.NDArray[np.float32]:
    """Numbers of magnitudes from denormal to 10, and both zeros."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal(n) * 10.0 ** rng.integers(-44, 2, n)
    found[::17] = rng.standard_normal(len(found[::17]))
    found[3::29] = -0.0
    return found.astype(np.float32)


def test_16_bit_moments_are_refused_in_one_line(smart: Make) -> None:
    options = DeviceOptions(update="opencl")
    with pytest.raises((UserError, EnvironmentLack)) as caught:
        smart(tensors((9,)), moments="bfloat16", options=options)
    assert "\n" not in str(caught.value)
    assert REASON or "moments=float32 or update=cpu" in str(caught.value)


def test_a_device_that_is_not_there_is_refused_in_one_line() -> None:
    """In a process of its own: which device there is is looked up once."""
    code = (
        "from smart_infinity import _core\n"
        "reason = _core.opencl_reason()\n"
        "try:\n    _core.opencl_device()\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "assert reason, 'a device'\n"
    )
    environment = {**os.environ, "SMART_INFINITY_OPENCL_DEVICE": "no such device"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EnvironmentLack no OpenCL: ")
    assert done.stdout.count("\n") == 1
    assert REASON or "SMART_INFINITY_OPENCL_DEVICE=no such device is none of: 0:0" in done.stdout


if REASON:

    def test_without_a_device_the_lack_is_said_in_one_line(smart: Make) -> None:
        with pytest.raises(EnvironmentLack, match="no OpenCL"):
            _core.opencl_device()
        with pytest.raises(EnvironmentLack, match="no OpenCL") as caught:
            smart(tensors((9,)), options=DeviceOptions(update="opencl"))
        assert "\n" not in str(caught.value)

else:

    @pytest.mark.parametrize("encoding", ["dense", "topk"])
    @pytest.mark.parametrize("case", CASES)
    def test_its_steps_are_the_processors_to_the_bit(case: str, encoding: str) -> None:
        kind, options = CASES[case]
        how = _core.Encoding[encoding]
        for n in (1, 7, 8, 9, 511, 1023, 66_001):  # tails, runs, and blocks of compressed entries
            tile = Tile(n)
            steppers = [tile.stepper(kind, options, updater) for updater in _core.Updater]
            records = [record(kind, options, n) for _ in steppers]
            for step in range(1, 4):
                # By turns: every type gradients come in, and parameters go out in.
                types = TYPES[(step + n) % 3], TYPES[(step + n + 1) % 3]
                gradient = encoded(spread(n, step), how, types[0])
                outs = [np.full(n * WIDTH[types[1]], 0xAB, np.uint8) for _ in steppers]
                plan = tile.plan(kind, options, step)
                for stepper, kept, out in zip(steppers, records, outs, strict=True):
                    finite = stepper.run(0, plan, gradient, types[0], kept, out, types[1], how)
                    assert finite
                assert records[0].tobytes() == records[1].tobytes(), (n, step)
                assert outs[0].tobytes() == outs[1].tobytes(), (n, step)
            assert not np.array_equal(records[0], record(kind, options, n))

    @pytest.mark.parametrize("encoding", ["dense", "topk"])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_it_sees_what_is_not_finite_and_only_where_it_counts(bad: float, encoding: str) -> None:
        how, tile = _core.Encoding[encoding], Tile(900)
        stepper = tile.stepper("adamw", {}, _core.Updater.opencl)
        plan = tile.plan("adamw", {}, 1)
        for place, counts in ((5, True), (400, False), (899, True)):  # 400: of the skipped one
            gradient = spread(900, 1)
            gradient[place] = bad
            finite = stepper.run(
                0, plan, encoded(gradient, how, TYPES[0]), TYPES[0], record("adamw", {}, 900),
                np.zeros(3600, np.uint8), TYPES[0], how,
            )  # fmt: skip
            assert finite is not counts

    def test_bytes_that_are_no_gradient_change_nothing() -> None:
        tile = Tile(900)
        stepper = tile.stepper("adamw", {}, _core.Updater.opencl)
        kept = record("adamw", {}, 900)
        for how in _core.Encoding:
            with pytest.raises(UserError, match="gradient"):
                stepper.run(
                    0, tile.plan("adamw", {}, 1), np.zeros(7, np.uint8), TYPES[0], kept,
                    np.zeros(3600, np.uint8), TYPES[0], how,
                )  # fmt: skip
        assert np.array_equal(kept, record("adamw", {}, 900))

    @pytest.mark.parametrize("compress", [None, TopK(0.1, warmup=1)])
    def test_devices_with_it_give_the_same_model(compress: TopK | None, tmp_path: Any) -> None:
        from smart_infinity import SmartOptimizer

        found = []
        for update in ("cpu", "opencl"):
            params = tensors((100, 3000))
            folders = [tmp_path / f"{update}-{d}" for d in range(2)]
            with SmartOptimizer(
                params, devices=folders, tile=1024, lr=1e-2, compress=compress,
                options=DeviceOptions(update=update),
            ) as optimizer:  # fmt: skip
                for step in range(3):
                    set_gradients(params, gradients(params, step))
                    optimizer.step()
            found.append(params)
        assert differing_bits(*found) == 0
