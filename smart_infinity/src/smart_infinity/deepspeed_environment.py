"""Where DeepSpeed lives: a virtual environment of its own, and its operators compiled once.

The environment lies on top of this one: DeepSpeed and the few packages it brings come first, all
else (torch, transformers, this package) is found here, so that both sides of a comparison run the
same torch. Operators are compiled by DeepSpeed itself, into the environment's folder, for the
processor they are compiled on.

    python -m smart_infinity.deepspeed_environment [FOLDER]

makes it, or what it lacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import site
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shorthaul import logs
from shorthaul.errors import EnvironmentLack

_log = logs.get(__name__)

DEEPSPEED = "0.19.8"
TORCH = "2.13.0"
# What is compiled, in this order: the smaller ones first.
OPERATORS = {
    "cpu_adam": "CPUAdamBuilder",
    "deepspeed_shm_comm": "ShareMemCommBuilder",
    "async_io": "AsyncIOBuilder",
}
MINUTES = "about 12 minutes of one processor, once"
VARIABLE = "SMART_INFINITY_DEEPSPEED"
FIX = "python -m smart_infinity.deepspeed_environment"
LIBAIO = Path("/usr/include/libaio.h")
_BUILD = """
import sys
from deepspeed.ops.op_builder import cpu
from deepspeed.ops.op_builder.cpu import comm
name = sys.argv[1]
(getattr(cpu, name, None) or getattr(comm, name))().load(verbose=False)
"""


@dataclass(frozen=True)
class Environment:
    """A folder with DeepSpeed in it; `ready` says which operators it has."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def extensions(self) -> Path:
        """Where its operators lie."""
        return self.folder / "extensions"

    def variables(self, threads: int = 1) -> dict[str, str]:
        """Give the environment variables of a process that is one rank of one."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {
            **own,
            "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}",
            "TORCH_EXTENSIONS_DIR": str(self.extensions),
            "MAX_JOBS": "2",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(threads),
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from compiling or loading operators.

        A process that was killed while it loaded one has left a file `lock`, for which all later
        ones would wait for ever: whoever holds the environment takes such files away. One killed
        while it compiled may also have left half a log, by which ninja would compile the operator
        again each time it is loaded.
        """
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("%s is in use by another process: waiting", self.folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for stale in self.extensions.glob("*/lock"):
                _log.warning("%s was left by a process that was killed: removed", stale)
                stale.unlink()
                if stale.parent.name not in _built(self):
                    for log in (".ninja_deps", ".ninja_log"):
                        (stale.parent / log).unlink(missing_ok=True)
            yield


def default_folder(root: Path | None = None) -> Path:
    """Give the folder: $SMART_INFINITY_DEEPSPEED, or one below `runs/cache`."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    name = f"deepspeed-{DEEPSPEED}-torch-{TORCH}"
    return (root or Path("runs")) / "cache" / "smart_infinity" / name


def lack(folder: Path) -> str:
    """Say in one line that the environment is not there, and how to make it."""
    return (
        f"DeepSpeed {DEEPSPEED} with its operators is not in {folder}: make it by "
        f"`{FIX} {folder}`, {MINUTES}, or name another in {VARIABLE}"
    )


def find(folder: Path, operators: tuple[str, ...] = tuple(OPERATORS)) -> Environment | None:
    """Give the environment if it is there with these operators."""
    there = Environment(folder.absolute())
    if (folder / "ready").is_file() and set(operators) <= set(_built(there)):
        return there
    return None


def make(folder: Path, operators: tuple[str, ...] = tuple(OPERATORS)) -> Environment:
    """Make the environment, or what it lacks.

    Raises:
        EnvironmentLack: pip or a compiler failed, or a library is missing; with their last line.
    """
    there = Environment(folder.absolute())
    folder.mkdir(parents=True, exist_ok=True)
    with there.held():
        if not (folder / "ready").is_file():
            _install(there)
        missing = [name for name in operators if name not in _built(there)]
        if missing:
            _log.warning(
                "DeepSpeed compiles %s in %s: %s", ", ".join(missing), there.extensions, MINUTES
            )
        for name in missing:
            _compile(there, name)
    return there


def _built(there: Environment) -> list[str]:
    """Give the operators that were compiled for this processor."""
    here = _here()
    return [line.split()[0] for line in _lines(there) if line.split()[1:] == [here]]


def _lines(there: Environment) -> list[str]:
    ready = there.folder / "operators"
    return ready.read_text().splitlines() if ready.is_file() else []


def _here() -> str:
    """Give this processor in a word: DeepSpeed compiles for what it can do, and no other."""
    text = Path("/proc/cpuinfo").read_text()
    able = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return f"{zlib.crc32(''.join(able[:1]).encode()):08x}"


def _install(there: Environment) -> None:
    _log.warning("installing DeepSpeed %s in %s", DEEPSPEED, there.folder)
    for name in ("bin", "lib", "include", "extensions", "operators"):
        target = there.folder / name
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(True)
    _run([sys.executable, "-m", "venv", str(there.folder)], "the environment cannot be made")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = there.folder / "lib" / version / "site-packages"
    # Through site, so that editable installs here are found there too.
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "beneath.pth").write_text("\n".join(lines) + "\n")
    wanted = [f"torch=={TORCH}", f"deepspeed=={DEEPSPEED}"]
    pip = [str(there.python), "-m", "pip", "install", "-q", *wanted]
    _run(pip, f"DeepSpeed {DEEPSPEED} cannot be installed")
    (there.folder / "ready").write_text(f"{platform.python_version()}\n")


def _compile(there: Environment, name: str) -> None:
    if name == "async_io" and not LIBAIO.is_file():
        raise EnvironmentLack("DeepSpeed's async_io needs libaio.h: apt-get install libaio-dev")
    begin = time.perf_counter()
    if any(line.startswith(f"{name} ") for line in _lines(there)):  # compiled for another one
        shutil.rmtree(there.extensions / name, ignore_errors=True)
    command = [str(there.python), "-P", "-c", _BUILD, OPERATORS[name]]
    _run(command, f"DeepSpeed's {name} cannot be compiled", there.variables())
    with (there.folder / "operators").open("a") as ready:
        ready.write(f"{name} {_here()}\n")
    _log.warning("%s compiled in %.0f s", name, time.perf_counter() - begin)


def _run(command: list[str], failed: str, variables: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing was said"]
        raise EnvironmentLack(f"{failed}: {last[0]}")


if __name__ == "__main__":
    try:
        print(make(Path(sys.argv[1]) if sys.argv[1:] else default_folder()).folder)
    except EnvironmentLack as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
