"""Run a function on N ranks under the real torchrun agent and bring back rank 0's answer.

The function and its arguments travel by cloudpickle, so a user's classes need not be importable and
no ``__main__`` guard is needed.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
from shorthaul.errors import UserError
from shorthaul.launch import launch

from pipe_bd.rng import borrowed

# Each rank imports torch, about 250 MB: a slip of the keyboard must not take the machine down.
MOST_RANKS = 64


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, threads: int = 1) -> Any:
    """Call ``function(*args)`` on every rank.

    Args:
        function: called on each rank; talks to the others through torch.distributed.
        ranks: number of processes.
        *args: its arguments, copied to every rank.
        threads: intra-operation threads per rank.

    Returns:
        What rank 0's call returned.

    Raises:
        RankDied: a rank was killed or failed; names it.
        UserError: a rank found bad input.
    """
    if ranks > MOST_RANKS:
        raise UserError(
            f"{ranks} processes on one machine: at most {MOST_RANKS}; pipe-bd simulate goes further"
        )
    with tempfile.TemporaryDirectory(prefix="pipe-bd-") as folder:
        job, answer = Path(folder) / "job.pkl", Path(folder) / "answer.pkl"
        with job.open("wb") as f:
            # A user's script finds modules beside itself; so must its ranks, before they unpickle.
            cloudpickle.dump(sys.path, f)
            cloudpickle.dump((function, args), f)
        with borrowed():  # the agent draws from Python's generator
            launch("pipe_bd.runtime.worker", [str(job), str(answer)], ranks, threads=threads)
        with answer.open("rb") as f:
            return cloudpickle.load(f)


def work(job: Path, answer: Path) -> None:
    """What one worker process does with a job of :func:`run_ranks`."""
    import os

    import torch

    from pipe_bd.runtime.world import leave

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with job.open("rb") as f:
        sys.path += [p for p in cloudpickle.load(f) if p not in sys.path]
        function, args = cloudpickle.load(f)
    result = function(*args)
    if os.environ["RANK"] == "0":
        with answer.open("wb") as f:
            cloudpickle.dump(result, f)
    with contextlib.suppress(RuntimeError):
        leave()


def main() -> None:
    """Entry point of ``python -m pipe_bd.runtime.worker JOB ANSWER``."""
    work(Path(sys.argv[1]), Path(sys.argv[2]))
