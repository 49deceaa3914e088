"""Two servers on one machine: a pair of network namespaces and the only cable between them.

The kernel counts what crosses it. Nothing of the machine's own network is touched; what a killed
run has left is removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shorthaul.errors import EnvironmentLack

INTERFACE = "link0"
ADDRESSES = {"host": "10.0.0.1", "device": "10.0.0.2"}
_NAME = re.compile(r"smart-infinity-(\d+)-(?:host|device)")


class Pair(contextlib.AbstractContextManager["Pair"]):
    """Namespaces `host` and `device`, joined by a veth pair whose ends are called `INTERFACE`.

    Raises:
        EnvironmentLack: No root, or no network namespaces; the message says which.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise EnvironmentLack("network namespaces need root")
        if shutil.which("ip") is None:
            raise EnvironmentLack("network namespaces need ip (Debian: iproute2)")
        self._names = {end: f"smart-infinity-{os.getpid()}-{end}" for end in ADDRESSES}

    def __enter__(self) -> Pair:
        _remove_stale()
        host, device = self._names["host"], self._names["device"]
        try:
            for name in self._names.values():
                _ip("netns", "add", name)
            ends = ("type", "veth", "peer", "name", INTERFACE, "netns", device)
            _ip("-n", host, "link", "add", INTERFACE, *ends)
            for end, name in self._names.items():
                _ip("-n", name, "address", "add", f"{ADDRESSES[end]}/30", "dev", INTERFACE)
                for interface in (INTERFACE, "lo"):
                    _ip("-n", name, "link", "set", interface, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names.values():
            with contextlib.suppress(EnvironmentLack):
                _ip("netns", "delete", name)

    def command(self, end: str, command: Sequence[str]) -> list[str]:
        """Give the command that runs another one at an end."""
        return ["ip", "netns", "exec", self._names[end], *command]


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise EnvironmentLack(f"ip {' '.join(words)}: {said}")
    return done.stdout


def _remove_stale() -> None:
    for line in _ip("netns", "list").splitlines():
        found = _NAME.match(line)
        if found and not Path(f"/proc/{found[1]}").exists():
            with contextlib.suppress(EnvironmentLack):
                _ip("netns", "delete", found[0])


def interface_bytes() -> dict[str, dict[str, int]]:
    """Give what the kernel has counted of each interface of this process's namespace."""
    counted: dict[str, dict[str, int]] = {}
    for interface in Path("/sys/class/net").iterdir():
        statistics = interface / "statistics"
        counted[interface.name] = {
            "down": int((statistics / "tx_bytes").read_text()),
            "up": int((statistics / "rx_bytes").read_text()),
        }
    return counted
