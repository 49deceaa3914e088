"""One process per device on torch's elastic agent (what `torchrun` runs); a dead rank ends all.

Workers start as `python -m shorthaul.launch MODULE …`: this module ties them to the launcher's life
before it runs `MODULE`, and writes down what killed them, for the launcher to say in one line.
"""

import contextlib
import ctypes
import json
import logging
import math
import os
import re
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shorthaul import atomic
from shorthaul.errors import EnvironmentLack, Fault, ShorthaulError, UserError

_ERRORS, _PARENT, _LOGS = "SHORTHAUL_ERROR_DIR", "SHORTHAUL_PARENT", "SHORTHAUL_LOG_DIR"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What a healthy rank reports when another one vanishes.
_ECHO = re.compile(
    r"connection|closed by peer|broken pipe|socket|timed? ?out|gloo|nccl|store|rendezvous", re.I
)


class RankDied(Fault):
    """A rank ended the run; the message names it and why, `rank` is its number."""

    def __init__(self, rank: int, why: str) -> None:
        super().__init__(f"rank {rank} {why}")
        self.rank = rank


def bind_to_parent() -> None:
    """Make the kernel kill this process when the one that launched it dies, however it dies."""
    parent = int(os.environ.get(_PARENT, os.getppid()))
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    if libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call, and no signal will come
        os._exit(1)


def run_worker(main: Callable[[], object]) -> NoReturn:
    """Run a worker's main function; leave by an exit code, with what went wrong in a file.

    The file is `rank<N>.json` in the folder named by `SHORTHAUL_ERROR_DIR`; without that folder
    the error goes to standard error as one line.
    """
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code:
            _report("SystemExit", f"exited with {stop.code}", code)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        code = error.exit_code if isinstance(error, ShorthaulError) else 1
        _report(type(error).__name__, str(error), code)
    if code:
        # Not sys.exit: torch's teardown may wait for peers that will never answer.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(0)


def _report(kind: str, message: str, code: int) -> None:
    rank = int(os.environ.get("RANK", "0"))
    folder = os.environ.get(_ERRORS)
    trace = traceback.format_exc()
    if folder is None:
        print(f"rank {rank}: {kind}: {message}", file=sys.stderr)
        return
    if os.environ.get(_LOGS) or logging.getLogger("shorthaul").isEnabledFor(logging.DEBUG):
        print(trace, file=sys.stderr)
    entry = {"rank": rank, "kind": kind, "message": message, "exit_code": code, "at": time.time()}
    with contextlib.suppress(OSError):  # the exit code still tells
        atomic.write_json(Path(folder) / f"rank{rank}.json", {**entry, "trace": trace})


def launch(
    module: str,
    args: Sequence[str],
    nproc: int,
    *,
    env: Mapping[str, str] | None = None,
    threads: int = 1,
    log_dir: Path | None = None,
    timeout_s: float | None = None,
    grace_s: float = 5.0,
) -> None:
    """Run `python -m module args` in `nproc` processes and wait for all of them.

    Call it from the main thread: the kernel ties the workers to the thread that starts them.

    Args:
        module: Module to run as `__main__`, with `args`.
        args: Its arguments.
        nproc: Number of ranks.
        env: Further environment variables of the workers.
        threads: Threads per worker (OpenMP, MKL, OpenBLAS).
        log_dir: Where the ranks other than 0 write `rank<N>.log`; None leaves them the terminal.
        timeout_s: Seconds after which the run is ended.
        grace_s: Seconds between SIGTERM and SIGKILL for ranks that are to end.

    Raises:
        UserError: `nproc` is below 1, or a rank found its input wrong.
        EnvironmentLack: torch is not installed, or a rank found something lacking.
        RankDied: A rank died; all others are gone.
        Fault: The time was up.
        KeyboardInterrupt: The launcher was interrupted; all ranks are gone.
    """
    if nproc < 1:
        raise UserError(f"{nproc} processes: at least 1")
    try:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    except ImportError as error:
        raise EnvironmentLack("torch is not installed; pip install torch") from error
    for name in list(logging.root.manager.loggerDict):
        # The agent's reports are pages long, ours are a line.
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory(prefix="shorthaul-") as folder:
        variables = dict.fromkeys(_THREADS, str(threads)) | {
            _ERRORS: folder,
            _PARENT: str(os.getpid()),
            # One machine: never look for an interface by the host's name, which need not resolve.
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
            **(env or {}),
        }
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
            variables[_LOGS] = str(log_dir.resolve())
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=f"shorthaul-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            rdzv_configs={"is_host": True},
            local_addr="127.0.0.1",
            max_restarts=0,
            shutdown_timeout=math.ceil(grace_s),
            logs_specs=DefaultLogsSpecs(log_dir=f"{folder}/agent"),
        )
        command = ("-m", "shorthaul.launch", module, *args)
        with _agent(variables, grace_s), _alarm(timeout_s) as late:
            try:
                elastic_launch(config, sys.executable)(*command)
            except ChildFailedError as error:
                for failure in error.failures.values():  # what a killed rank had started itself
                    with contextlib.suppress(OSError):
                        os.killpg(failure.pid, signal.SIGKILL)
                raise _cause(Path(folder), error.failures) from None
            except SignalException as stop:
                if late.is_set():
                    raise Fault(f"{module} was not done after {timeout_s:g} s") from None
                if stop.sigval == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise SystemExit(128 + stop.sigval) from None


@contextlib.contextmanager
def _agent(variables: Mapping[str, str], grace_s: float) -> Iterator[None]:
    """Fit this process to the agent while it runs, and undo what it leaves behind.

    It passes its own environment to the workers, installs signal handlers for good, and when a
    rank fails gives the others 30 s, whatever is set.
    """
    from torch.distributed.elastic.multiprocessing import PContext, SignalException

    def stop(signum: int, frame: Any) -> None:  # until the agent has handlers of its own
        raise SignalException("", signal.Signals(signum))

    def close(self: Any, death_sig: Any = None, timeout: int = 30) -> None:
        plain_close(self, death_sig, min(timeout, math.ceil(grace_s)))

    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.signal(number, stop) for number in watched}
    before, plain_close = {name: os.environ.get(name) for name in variables}, PContext.close
    os.environ.update(variables)
    PContext.close = close  # type: ignore[method-assign]
    try:
        yield
    finally:
        PContext.close = plain_close  # type: ignore[method-assign]
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _alarm(timeout_s: float | None) -> Iterator[threading.Event]:
    """Send this process SIGTERM when the time is up, which the agent turns into an orderly end."""
    late = threading.Event()

    def ring() -> None:
        late.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(timeout_s or 0, ring)
    timer.daemon = True
    if timeout_s is not None:
        timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _cause(folder: Path, failures: Mapping[int, Any]) -> ShorthaulError:
    """Find which rank failed first, among those that merely noticed or were ended by the agent.

    `failures` maps ranks to the agent's records, in the order it saw them end.
    """
    entries = [json.loads(path.read_bytes()) for path in folder.glob("rank*.json")]
    entries.sort(key=lambda entry: (bool(_ECHO.search(entry["message"])), entry["at"]))
    first = min(failure.timestamp for failure in failures.values())
    for rank, failure in failures.items():
        # What the agent ended itself shows SIGTERM, or SIGKILL after the grace time.
        own = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        told = bool(entries) and not _ECHO.search(entries[0]["message"])
        if own and failure.timestamp <= first + 1 and not told:
            return RankDied(rank, _exit(failure))
    if not entries:
        rank, failure = next(iter(failures.items()))
        return RankDied(rank, _exit(failure))
    entry = entries[0]
    for kind in (UserError, EnvironmentLack):
        if entry["exit_code"] == kind.exit_code:  # the class may be a package's own
            return kind(entry["message"])
    lines = entry["message"].strip().splitlines() or [""]
    return RankDied(entry["rank"], f"failed: {entry['kind']}: {lines[0]}")


def _exit(failure: Any) -> str:
    if failure.exitcode >= 0:
        return f"exited with code {failure.exitcode}"
    name = signal.Signals(-failure.exitcode).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}, pid {failure.pid}"


def _worker() -> NoReturn:
    """Run the module named by the first argument as a rank."""
    bind_to_parent()
    rank, logs = os.environ.get("RANK", "0"), os.environ.get(_LOGS)
    if logs and rank != "0":
        file = os.open(f"{logs}/rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
    module = sys.argv.pop(1)
    run_worker(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


if __name__ == "__main__":
    _worker()
