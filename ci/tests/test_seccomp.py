"""docker/seccomp-io_uring.json, loaded into a process as a container engine does."""

from __future__ import annotations

import ctypes.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROFILE = Path(__file__).resolve().parents[2] / "docker" / "seccomp-io_uring.json"
RING = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
FORBIDDEN = {
    "add_key", "bpf", "delete_module", "finit_module", "init_module", "kexec_load", "keyctl",
    "mount", "move_mount", "open_by_handle_at", "perf_event_open", "pivot_root", "reboot", "setns",
    "swapon", "umount2", "unshare", "userfaultfd",
}  # fmt: skip

# Loads the profile, then does what it is for and what it is against.
CONFINED = """
import ctypes, errno, json, subprocess, sys, threading

OPERATORS = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}

class Argument(ctypes.Structure):
    _fields_ = [("index", ctypes.c_uint), ("op", ctypes.c_int),
                ("value", ctypes.c_uint64), ("two", ctypes.c_uint64)]

def action(rule, name, code):
    if rule[name] == "SCMP_ACT_ALLOW":
        return 0x7FFF0000
    assert rule[name] == "SCMP_ACT_ERRNO", rule[name]
    return 0x50000 | rule.get(code, 1)

profile = json.load(open(sys.argv[1]))
library = ctypes.CDLL(sys.argv[2])
library.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(library.seccomp_init(action(profile, "defaultAction", "defaultErrnoRet")))
for rule in profile["syscalls"]:
    arguments = [Argument(a["index"], OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0))
                 for a in rule.get("args", [])]
    array = (Argument * len(arguments))(*arguments)
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue  # newer than this library
        code = library.seccomp_rule_add_array(
            context, action(rule, "action", "errnoRet"), number, len(arguments), array)
        assert code == 0, (name, code)
if library.seccomp_load(context) != 0:
    sys.exit(77)

from shorthaul import uring

page = uring.buffer(4096)
file = uring.File(sys.argv[3], uring.Mode.create)
page[:] = 7
for backend in uring.Backend:
    if backend is uring.Backend.uring and sys.argv[4] == "refused":
        continue
    ring = uring.Ring(8, backend)
    ring.register_files([file])
    ring.write(file, 0, page)
    (done,) = ring.submit_and_wait(1)
    assert done.error == 0, done.error
threading.Thread(target=print, args=("thread",)).start()
subprocess.run(["true"], check=True)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.mount(b"none", b"/", b"tmpfs", 0, None) == -1 and ctypes.get_errno() == errno.EPERM
print("done")
"""


def test_it_allows_the_ring_and_nothing_that_reaches_out() -> None:
    profile = json.loads(PROFILE.read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed: list[str] = []
    for rule in profile["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule:
            allowed += rule["names"]
    assert len(allowed) == len(set(allowed))
    assert set(allowed) >= RING
    assert FORBIDDEN.isdisjoint(allowed)


def test_a_ring_works_under_it(tmp_path: Path) -> None:
    uring = pytest.importorskip("shorthaul.uring")
    library = ctypes.util.find_library("seccomp")
    if library is None:
        pytest.skip("libseccomp is not installed")
    here = "granted" if uring.is_available() else "refused"
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, PROFILE, library, tmp_path / "file", here],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("this kernel or container takes no seccomp filter")
    assert (done.stdout, done.stderr) == ("thread\ndone\n", "")
