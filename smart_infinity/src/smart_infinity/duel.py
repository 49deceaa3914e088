"""Two sides that train the same model, each in a process of its own, driven by lines of JSON.

`smart`: a torch loop with `SmartOptimizer`; `bare`: without any. `deepspeed`: its engine, ZeRO-3,
in its own environment (see `deepspeed_environment`). `duel_sides` is what they do, `duel_process`
what they run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from shorthaul.errors import Fault

if TYPE_CHECKING:
    from smart_infinity.deepspeed_environment import Environment

_END_S = 30.0


class Driver(contextlib.AbstractContextManager["Driver"]):
    """A side in a process of its own.

    Args:
        name: smart, bare or deepspeed.
        environment: DeepSpeed's; None runs here, for the others.
        threads: Of OpenMP.
    """

    def __init__(
        self, name: str, environment: Environment | None = None, *, threads: int = 1
    ) -> None:
        self.name, self.environment = name, environment
        self.pids: list[int] = []
        """Of the devices of an open side."""
        python, own = sys.executable, {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if environment is not None:
            python, own = str(environment.python), environment.variables(threads)
        self._said = tempfile.TemporaryFile("w+")
        # -P: the working folder holds modules that are no business of a side.
        self._process = subprocess.Popen(
            [python, "-P", "-m", "smart_infinity.duel_process", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, env=own,
        )  # fmt: skip

    def open(self, **given: Any) -> dict[str, Any]:
        """Make the model and its optimizer; DeepSpeed loads its operators here.

        Args:
            given: `model` (of `models.ModelConfig`), `vocabulary`, `batch`, `seed`, `max_norm`, 0
                for none, `optimizer`, the hyperparameters of both sides' AdamW, and `settings`, see
                the side in `duel_sides`.
        """
        with self.environment.held() if self.environment else contextlib.nullcontext():
            answer = self.ask("open", **given)
        self.pids = answer["pids"]
        return answer

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            Fault: The side could not, or its process has ended.
        """
        self.begin(do, **given)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Fault(f"{self.name} died while asked to {do}: {self.said(1)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Fault(f"{self.name} cannot {do}: {answer['error']}")
        return answer

    def begin(self, do: str, **given: Any) -> None:
        """Send a request and wait for nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: no answer will say so
            self._process.stdin.write(json.dumps({"do": do, **given}, default=str) + "\n")
            self._process.stdin.flush()

    def said(self, lines: int) -> str:
        """Give the last lines it has written to its standard error."""
        self._said.seek(0)
        return "\n".join(self._said.read().strip().splitlines()[-lines:]) or "it said nothing"

    def kill(self) -> None:
        """End the process by SIGKILL; its devices, which are left to themselves, end with it.

        Raises:
            Fault: One of them outlived it.
        """
        self._process.kill()
        self._process.wait()
        until = time.monotonic() + _END_S
        for pid in self.pids:
            while _runs(pid):
                if time.monotonic() > until:
                    raise Fault(f"device {pid} outlived its host")
                time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(") ")[2][:1] != "Z"
    except OSError:
        return False


def kernel_rates(environment: Environment, elements: int, rounds: int) -> dict[str, Any]:
    """Give what `duel_process.kernels` measures, in DeepSpeed's environment."""
    with Driver("deepspeed", environment) as driver, environment.held():
        return driver.ask("kernels", elements=elements, rounds=rounds)
