"""Fixtures that start ranks and command lines, and small tasks to run on them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

Ranks = Callable[..., Any]
Cli = Callable[..., subprocess.CompletedProcess[str]]

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SHORTHAUL_QUIET": "1"}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    """``ranks(function, n, *args)``: call a function of a test module on n ranks.

    Test modules cannot be imported by the ranks, so what they define travels by value.
    """
    from pipe_bd.runtime.spawn import run_ranks

    def call(function: Callable[..., Any], n: int, *args: Any) -> Any:
        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)
        try:
            return run_ranks(function, n, *args)
        finally:
            cloudpickle.unregister_pickle_by_value(module)

    return call


@pytest.fixture(scope="session")
def cli() -> Cli:
    """``cli("train", "--model", ...)``: run the command line in a process of its own."""

    def call(
        *args: object, cwd: Path | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipe_bd.cli", *map(str, args)]
        return subprocess.run(
            command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
        )

    return call


@pytest.fixture(scope="session")
def script() -> Cli:
    """``script(path, text, *args, torchrun=n)``: run a user's script, alone or under torchrun."""

    def call(
        path: Path, text: str, *args: object, torchrun: int = 0, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        path.write_text(text)
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
            if torchrun
            else []
        )
        command = [sys.executable, *launcher, str(path), *map(str, args)]
        return subprocess.run(
            command,
            cwd=path.parent,
            env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call
