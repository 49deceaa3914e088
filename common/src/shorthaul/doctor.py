"""What this machine has and lacks, each with its reason."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shorthaul import cli, data, machine
from shorthaul.errors import EnvironmentLack


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found or why it is not there, and how to get it (`fix`).

    Nothing works without what is `required`.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = False


def common(torch: bool = True) -> list[Check]:
    """Look at what every artifact uses; `torch` says whether nothing works without it."""
    found = machine.describe()
    memory = found["memory_bytes"] / 2**30
    free = shutil.disk_usage(".").free / 2**30
    root = os.geteuid() == 0
    images = data.FASHION_MNIST / "train-images-idx3-ubyte.gz"
    version, old = platform.python_version(), "install Python 3.11 or newer"
    return [
        Check("python", sys.version_info >= (3, 11), version, old, required=True),
        Check("processor", True, f"{found['cores']} cores, {found['cpu']}"),
        Check("memory", memory >= 4, f"{memory:.1f} GiB", "scale small wants 4 GiB"),
        Check("disk", free >= 5, f"{free:.1f} GiB free here", "scale small wants 5 GiB"),
        *_torch(torch),
        _program("compiler", [os.environ.get("CXX", "c++"), "g++", "clang++"], "g++"),
        _program("git", ["git"], "git"),
        Check(
            "fashion-mnist",
            images.is_file(),
            f"{images} is {'there' if images.is_file() else 'missing'}",
            data.FASHION_MNIST_FIX,
        ),
        _io_uring(),
        Check("root", root, "yes" if root else "no", "only system packages and networks need it"),
    ]


def _io_uring() -> Check:
    from shorthaul import uring  # a compiled module, for those that ask

    reason = uring.unavailable_reason()
    fix = "files are read by threads instead; in a container: docker/seccomp-io_uring.json"
    return Check("io_uring", not reason, reason or "granted", fix)


def _torch(required: bool) -> list[Check]:
    fix = "needed only for runs on a GPU"
    try:
        found = Check("torch", True, importlib.metadata.version("torch"), required=required)
    except importlib.metadata.PackageNotFoundError:
        lack = Check(
            "torch",
            False,
            "not installed",
            "pip install -c constraints.txt torch",
            required=required,
        )
        return [lack, Check("cuda", False, "torch is not installed", fix)]
    if machine.gpu() is None:  # asked before torch, whose import takes seconds
        return [found, Check("cuda", False, "nvidia-smi finds no GPU", fix)]
    import torch

    ok = torch.cuda.is_available()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    why = "" if ok else ", not usable by torch"
    return [found, Check("cuda", ok, f"{machine.gpu()}, {built}{why}", fix)]


def _program(name: str, commands: Sequence[str], package: str) -> Check:
    for command in commands:
        said = machine.output(command, "--version")
        if said:
            return Check(name, True, said.splitlines()[0])
    return Check(name, False, f"no {' or '.join(commands)}", f"apt-get install {package}")


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
    """Show checks, usually `common()` and an artifact's own, and write them as JSON if asked.

    A lack of something required is an EnvironmentLack, which makes the exit code 3.
    """
    rows = list(checks)
    missing = [check for check in rows if check.required and not check.ok]
    cli.emit({"ok": not missing, "checks": rows}, json_path, table(rows))
    if missing:
        names = ", ".join(check.name for check in missing)
        raise EnvironmentLack(f"required and missing: {names}; {missing[0].fix}")
