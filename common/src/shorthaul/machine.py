"""What machine, software and commit a result comes from."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = "torch torchvision transformers numpy scikit-learn tyro jinja2 matplotlib".split()


def versions() -> dict[str, str]:
    """Give the versions of the installed packages results depend on, importing none of them."""
    found = {
        distribution.metadata["Name"]: distribution.version
        for distribution in importlib.metadata.distributions()
    }
    wanted = (name for name in found if name.lower() in _PACKAGES or name.startswith("shorthaul-"))
    return {name: found[name] for name in sorted(wanted)}


@functools.cache
def cpu_model() -> str:
    """Give the processor's name."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def output(*command: str) -> str | None:
    """Give a command's standard output, or None when it is absent, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def gpu() -> str | None:
    """Give number and names of the GPUs the driver reports, or None without any."""
    names = (output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()
    return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))) or None


def commit(repo: Path | None = None) -> tuple[str | None, bool | None]:
    """Give the commit of a checkout and whether it has uncommitted changes.

    Without `repo` it is the checkout this package runs from, else the current folder's when that
    is a shorthaul checkout: a user's own repository around an installed copy must not pass for
    ours. Outside a checkout both are None.
    """
    for folder in [repo] if repo else [Path(__file__).parent, Path.cwd()]:
        top = output("git", "-C", str(folder), "rev-parse", "--show-toplevel")
        if top and (repo or Path(top, "common/src/shorthaul").is_dir()):
            status = output("git", "-C", top, "status", "--porcelain")
            return output("git", "-C", top, "rev-parse", "HEAD"), bool(status)
    return None, None


def describe(repo: Path | None = None) -> dict[str, Any]:
    """Describe the machine and the software, for `env.json` and the report.

    `cores` are those this process may use, `gpu` is None without any, `commit` and `dirty` as
    `commit` gives them, `load` is the load average over 1, 5 and 15 minutes.
    """
    head, dirty = commit(repo)
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "gpu": gpu(),
        "commit": head,
        "dirty": dirty,
        "load": list(os.getloadavg()),
    }
