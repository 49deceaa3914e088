"""A side's process: answers requests of `duel.Driver`, one line of JSON each.

A request is `{"do": "open" | "step" | …}` with what it needs. The answer to a step has its loss,
its phases in seconds, and the bytes that the kernel has counted for its processes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIRECTIONS = ("read", "write")


def _moved(pids: Sequence[int]) -> dict[str, float]:
    """Give the bytes that processes have read from and written to disk, by the kernel's count.

    NaN where the kernel does not tell.
    """
    found = dict.fromkeys(DIRECTIONS, 0.0)
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        except OSError:
            return dict.fromkeys(DIRECTIONS, math.nan)
        for line in lines:
            name, _, value = line.partition("_bytes: ")
            if name in found:
                found[name] += int(value)
    return found


def _peak_rss(pids: Sequence[int]) -> int:
    """Give the sum of processes' peak resident memory, bytes."""
    found = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found += 1024 * int(line.split()[1])
    return found


class Process:
    """Answers requests about one side, see `duel_sides`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.side: Any = None
        self.given: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked: open, step, kernels, or what the side itself offers."""
        do = request.pop("do")
        if do == "open":
            return self._open(request)
        if do == "step":
            return self._step(request["number"])
        if do == "kernels":
            return kernels(**request)
        done = getattr(self.side, do)(**request)
        return done if isinstance(done, dict) else {}

    def _open(self, given: dict[str, Any]) -> dict[str, Any]:
        from smart_infinity import duel_sides

        self.given = given
        self.side = duel_sides.SIDES[self.name](given)
        # DeepSpeed's parameters are empty between passes; it notes how large they are.
        count = sum(
            getattr(param, "ds_numel", param.numel()) for param in self.side.model.parameters()
        )
        return {"params": count, "opening_s": self.side.opening_s, "pids": self.side.pids()}

    def _step(self, number: int) -> dict[str, Any]:
        """Train on batch `number`, the same for every side."""
        import torch

        shape = (self.given["batch"], self.given["model"]["context"] + 1)
        generator = torch.Generator().manual_seed(10_000 + number)
        windows = torch.randint(0, self.given["vocabulary"], shape, generator=generator)
        who = {"host": [os.getpid()], "devices": self.side.pids()}
        before = {name: _moved(pids) for name, pids in who.items()}
        loss, backward_s = self.side.train(windows)
        between = {name: _moved(pids) for name, pids in who.items()}
        phases = self.side.step()
        after = {name: _moved(pids) for name, pids in who.items()}
        moved = {
            name: {
                "backward": {d: between[name][d] - before[name][d] for d in DIRECTIONS},
                "step": {d: after[name][d] - between[name][d] for d in DIRECTIONS},
            }
            for name in who
        }
        peak = {name: _peak_rss(pids) for name, pids in who.items()}
        return {
            "loss": loss, "backward_s": backward_s, "phases": phases, "bytes": moved, "peak": peak
        }  # fmt: skip


def kernels(elements: int, rounds: int) -> dict[str, Any]:
    """Step the same data by turns with DeepSpeedCPUAdam and with our kernel, one thread.

    Both work on the very same memory: how fast it is depends on which pages it got.

    Returns:
        `deepspeed` and `smart`: parameters a second of each round; `differs`: the largest
        difference of a parameter after a step of each from the same state.
    """
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    from smart_infinity import _core

    torch.set_num_threads(1)
    torch.manual_seed(0)
    param = torch.randn(elements).requires_grad_()
    param.grad = gradient = torch.randn(elements) * 1e-2
    moments = [torch.zeros(elements), torch.zeros(elements)]
    mine = [one.detach().clone() for one in (param, *moments)]
    optimizer = DeepSpeedCPUAdam([param], lr=1e-3, weight_decay=0.01, adamw_mode=True)
    settings = _core.Settings()
    settings.lr, settings.weight_decay = 1e-3, 0.01
    settings.beta1, settings.beta2, settings.eps = 0.9, 0.999, 1e-8

    def step(turn: int, arrays: list[torch.Tensor]) -> None:
        parameters, first, second = (one.numpy() for one in arrays)
        _core.update(
            _core.Kind.adamw, settings, turn, 1.0, 1.0, False, parameters, gradient.numpy(),
            first, second,
        )  # fmt: skip

    optimizer.step()  # makes its moments
    step(1, mine)
    found: dict[str, Any] = {"differs": float((param.detach() - mine[0]).abs().max())}
    optimizer.state[param].update(exp_avg=moments[0], exp_avg_sq=moments[1])
    seconds: dict[str, list[float]] = {"deepspeed": [], "smart": []}
    for turn in range(2, rounds + 3):
        begin = time.perf_counter()
        optimizer.step()
        between = time.perf_counter()
        step(turn, [param.detach(), *moments])
        seconds["deepspeed"].append(between - begin)
        seconds["smart"].append(time.perf_counter() - between)
    for name, taken in seconds.items():
        found[name] = [elements / one for one in taken[1:]]
    return found


def serve(name: str) -> None:
    """Be that side: answer requests until standard input ends."""
    # Libraries print what they like; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    process = Process(name)
    for line in sys.stdin:
        try:
            answer = process.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    with contextlib.suppress(Exception):
        process.side.close()


if __name__ == "__main__":
    serve(sys.argv[1])
