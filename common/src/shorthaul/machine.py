"""What machine, software and commit a result comes from."""

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "numpy",
    "scikit-learn",
    "tyro",
    "jinja2",
    "matplotlib",
    "pybind11",
)


def versions() -> dict[str, str]:
    """Give the installed versions of the packages results depend on, importing none of them."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.startswith("shorthaul-"):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def memory_bytes() -> int:
    """Give the machine's physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cores() -> int:
    """Give the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def cpu_model() -> str:
    """Give the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    """Give a command's standard output, or None when it is absent, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def gpu() -> str | None:
    """Give the names of the GPUs the driver reports, or None without any."""
    out = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    names = [line.strip() for line in (out or "").splitlines() if line.strip()]
    if not names:
        return None
    distinct = sorted(set(names))
    return ", ".join(f"{names.count(name)} x {name}" for name in distinct)


def commit(repo: Path | None = None) -> tuple[str | None, bool | None]:
    """Give the commit of a checkout and whether it has uncommitted changes.

    Args:
        repo: A folder in the checkout. None means the checkout this package runs from, else the
            current folder's when that is a shorthaul checkout: a user's own repository around an
            installed copy must not pass for ours.

    Returns:
        `(None, None)` outside a checkout or without git.
    """
    for folder in [repo] if repo else [Path(__file__).parent, Path.cwd()]:
        top = _output("git", "-C", str(folder), "rev-parse", "--show-toplevel")
        if not top or not (repo or Path(top, "common/src/shorthaul").is_dir()):
            continue
        head = _output("git", "-C", top, "rev-parse", "HEAD")
        if head:
            status = _output("git", "-C", top, "status", "--porcelain")
            return head, None if status is None else bool(status)
    return None, None


def describe(repo: Path | None = None) -> dict[str, Any]:
    """Describe the machine and the software, for `env.json` and the report.

    Args:
        repo: A folder in the checkout whose commit counts; see `commit`.

    Returns:
        `cpu`, `cores`, `memory_bytes`, `kernel`, `python`, `versions` (package to version), `gpu`
        (names or None), `commit`, `dirty` (both None outside a checkout) and `load` (the load
        average over 1, 5 and 15 minutes).
    """
    head, dirty = commit(repo)
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "gpu": gpu(),
        "commit": head,
        "dirty": dirty,
        "load": list(os.getloadavg()),
    }
