"""What this machine has and lacks, each with its reason."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shorthaul import cli, data, machine
from shorthaul.errors import EnvironmentLack


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What it is.
        ok: Whether it is there.
        detail: What was found, or why it is not there.
        fix: How to get it, when it is not there.
        required: Whether nothing works without it; otherwise it is a lack some commands feel.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = False


def common() -> list[Check]:
    """Look at what every artifact uses."""
    return [
        Check(
            "python",
            sys.version_info >= (3, 11),
            platform.python_version(),
            "install Python 3.11 or newer",
            required=True,
        ),
        Check("processor", True, f"{machine.cores()} cores, {machine.cpu_model()}"),
        _memory(),
        _disk(),
        torch(),
        cuda(),
        _compiler(),
        _program("git", "apt-get install git"),
        _fashion_mnist(),
        Check(
            "root",
            os.geteuid() == 0,
            "runs as root" if os.geteuid() == 0 else f"runs as user {os.geteuid()}",
            "needed only to install system packages and to shape networks",
        ),
    ]


def _memory() -> Check:
    size = machine.memory_bytes() / 2**30
    return Check("memory", size >= 4, f"{size:.1f} GiB", "4 GiB or more for scale small")


def _disk(folder: Path = Path()) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    return Check("disk", free >= 5, f"{free:.1f} GiB free here", "free 5 GiB or change folder")


def torch() -> Check:
    """Look for torch without importing it."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Check("torch", False, "not installed", "pip install torch", required=True)
    return Check("torch", True, version, required=True)


def cuda() -> Check:
    """Look for a GPU torch can use; the reason says which part is missing."""
    fix = "needed only for NCCL and GPU runs"
    if importlib.util.find_spec("torch") is None:
        return Check("cuda", False, "torch is not installed", fix)
    if machine.gpu() is None:
        return Check("cuda", False, "no GPU (nvidia-smi finds none)", fix)
    import torch as module

    if module.version.cuda is None:
        return Check("cuda", False, f"{machine.gpu()}, but torch is built for CPU only", fix)
    if not module.cuda.is_available():
        return Check("cuda", False, f"{machine.gpu()}, but torch cannot use the driver", fix)
    return Check("cuda", True, f"{machine.gpu()}, CUDA {module.version.cuda}")


def _compiler() -> Check:
    for name in (os.environ.get("CXX", "c++"), "g++", "clang++"):
        if shutil.which(name):
            return _program(name, "", "compiler")
    fix = "apt-get install g++ (needed to install from source)"
    return Check("compiler", False, "no C++ compiler found", fix)


def _program(name: str, fix: str, called: str = "") -> Check:
    if shutil.which(name) is None:
        return Check(called or name, False, "not found", fix)
    done = subprocess.run(
        [name, "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    return Check(called or name, done.returncode == 0, (done.stdout or "?").splitlines()[0])


def _fashion_mnist() -> Check:
    there = (data.FASHION_MNIST / "train-images-idx3-ubyte.gz").is_file()
    return Check(
        "fashion-mnist",
        there,
        str(data.FASHION_MNIST) if there else f"nothing at {data.FASHION_MNIST}",
        "apt-get install dataset-fashion-mnist (Debian non-free)",
    )


def table(checks: Iterable[Check]) -> str:
    """Give the checks as aligned text."""
    rows = list(checks)
    width = max((len(check.name) for check in rows), default=0)
    lines = []
    for check in rows:
        mark = "ok  " if check.ok else "LACK" if check.required else "-   "
        fix = f" ({check.fix})" if check.fix and not check.ok else ""
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}{fix}")
    return "\n".join(lines)


def run(checks: Iterable[Check], json_path: Path | None = None) -> None:
    """Show the checks.

    Args:
        checks: Usually `common()` and the artifact's own.
        json_path: Where to write them as JSON, if anywhere.

    Raises:
        EnvironmentLack: Something required is missing, which makes the exit code 3.
    """
    rows = list(checks)
    missing = [check for check in rows if check.required and not check.ok]
    cli.emit({"ok": not missing, "checks": rows}, json_path, table(rows))
    if missing:
        names = ", ".join(check.name for check in missing)
        raise EnvironmentLack(f"required and missing: {names}; {missing[0].fix}")
