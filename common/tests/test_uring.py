"""shorthaul.uring: both backends give the same bytes, errors and counts."""

import errno
import gc
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shorthaul import uring
from shorthaul.uring import Backend, File, Mode, Ring, buffer

PAGE = uring.ALIGNMENT
REFUSED = uring.unavailable_reason()
needs_uring = pytest.mark.skipif(bool(REFUSED), reason=f"no io_uring here: {REFUSED}")
BACKENDS = [pytest.param(Backend.uring, marks=needs_uring, id="uring"), Backend.posix]
BOTH = [Backend.posix] if REFUSED else [Backend.uring, Backend.posix]


def finish(ring: Ring) -> dict[int, tuple[int, int]]:
    """Waits for everything: (error, bytes) by tag."""
    return {done.tag: (done.error, done.bytes) for done in ring.submit_and_wait(ring.in_flight)}


def make_file(path: Path, pages: int, seed: int = 0) -> NDArray[np.uint8]:
    """Writes a file of random pages and gives its bytes."""
    content = np.random.default_rng(seed).integers(0, 256, pages * PAGE, np.uint8)
    path.write_bytes(content.tobytes())
    return content


def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_reads_and_writes_at_depth(
    tmp_path: Path, backend: Backend, registered: bool
) -> None:
    content = make_file(tmp_path / "a", 512)
    file, ring, memory = File(tmp_path / "a", Mode.write), Ring(64, backend), buffer(64 * PAGE)
    slots = [memory[at * PAGE : (at + 1) * PAGE] for at in range(64)]
    if registered:
        assert ring.register_files([file]) == (backend is Backend.uring)
        ring.register_buffers(slots)
    draw = random.Random(1)
    free, busy, asked = set(range(64)), dict[int, int](), 0
    while asked < 4000 or busy:
        while free and asked < 4000:
            page = draw.randrange(512)
            if page in busy.values():
                break
            slot = free.pop()
            busy[slot] = page
            where = slice(page * PAGE, (page + 1) * PAGE)
            if draw.random() < 0.7:
                slots[slot][:] = 0
                ring.read(file, page * PAGE, slots[slot], slot)
            else:
                content[where] = slots[slot][:] = draw.randrange(256)
                ring.write(file, page * PAGE, slots[slot], slot)
            asked += 1
        for done in ring.submit_and_wait(draw.randrange(3)):
            assert (done.error, done.bytes) == (0, PAGE)
            page = busy.pop(done.tag)
            assert np.array_equal(slots[done.tag], content[page * PAGE : (page + 1) * PAGE])
            free.add(done.tag)
    assert (tmp_path / "a").read_bytes() == content.tobytes()
    counters = ring.counters
    assert counters.reads + counters.writes == 4000
    assert counters.read_bytes == counters.reads * PAGE
    assert counters.write_bytes == counters.writes * PAGE
    assert counters.continued == 0
    assert 0 < counters.waits <= counters.submits


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_ends_inside_a_request(tmp_path: Path, backend: Backend, direct: bool) -> None:
    content = make_file(tmp_path / "a", 3)[: 2 * PAGE + 777]
    os.truncate(tmp_path / "a", content.size)
    file, ring, memory = File(tmp_path / "a", direct=direct), Ring(8, backend), buffer(8 * PAGE)
    ring.read(file, 0, memory[: 4 * PAGE], 1)
    ring.read(file, 2 * PAGE, memory[4 * PAGE : 5 * PAGE], 2)
    ring.read(file, 4 * PAGE, memory[5 * PAGE : 6 * PAGE], 3)
    assert finish(ring) == {
        1: (errno.ENODATA, content.size),
        2: (errno.ENODATA, 777),
        3: (errno.ENODATA, 0),
    }
    assert np.array_equal(memory[: content.size], content)
    assert ring.counters.read_bytes == content.size + 777
    assert ring.counters.continued == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_size_limit_is_efbig_after_what_fitted(tmp_path: Path, backend: Backend) -> None:
    file, ring = File(tmp_path / "a", Mode.create), Ring(8, backend)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * PAGE, before[1]))  # Python ignores SIGXFSZ
    try:
        ring.write(file, 0, buffer(8 * PAGE), 1)
        assert finish(ring) == {1: (errno.EFBIG, 3 * PAGE)}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.size == 3 * PAGE


FILL = """
import errno, sys
from shorthaul.uring import *
for backend in Backend:
    if backend is Backend.uring and not is_available(): continue
    file, ring = File(sys.argv[1] + "/a", Mode.create), Ring(8, backend)
    ring.write(file, 0, buffer(1 << 20), 1)
    (done,) = ring.submit_and_wait(1)
    assert done.error == errno.ENOSPC, done.error
    assert done.bytes == file.size == 65536, (done.bytes, file.size)
    try:
        file.allocate(1 << 20)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    else:
        raise AssertionError("allocated")
print("done")
"""


@pytest.mark.system
def test_a_full_file_system_is_enospc(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting a small tmpfs needs root and unshare")
    mount = 'mount -t tmpfs -o size=64k none "$1" 2>/dev/null || exit 77; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", tmp_path, sys.executable, FILL],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this root may not mount")
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_and_wrong_files_complete_with_an_error(tmp_path: Path, backend: Backend) -> None:
    make_file(tmp_path / "a", 1)
    file, readable = File(tmp_path / "a"), File(tmp_path / "a")
    file.close()
    ring, memory = Ring(8, backend), buffer(PAGE)
    ring.read(file, 0, memory, 1)
    ring.write(file, 0, memory, 2)
    ring.sync(file, 3)
    ring.write(readable, 0, memory, 4)
    assert finish(ring) == dict.fromkeys((1, 2, 3, 4), (errno.EBADF, 0))
    with pytest.raises(OSError, match="Bad file descriptor"):
        _ = file.size


def test_opening_what_is_not_there_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing: No such file") as caught:
        File(tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_request_too_many(tmp_path: Path, backend: Backend) -> None:
    make_file(tmp_path / "a", 1)
    file, ring, memory = File(tmp_path / "a"), Ring(2, backend), buffer(3 * PAGE)
    ring.read(file, 0, memory[:PAGE], 0)
    ring.read(file, 0, memory[PAGE : 2 * PAGE], 1)
    with pytest.raises(ValueError, match="depth"):
        ring.read(file, 0, memory[2 * PAGE :], 2)
    assert ring.in_flight == ring.depth == ring.counters.reads == 2
    assert finish(ring) == {0: (0, PAGE), 1: (0, PAGE)}
    with pytest.raises(ValueError, match="depth"):
        Ring(0, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ring_that_goes_finishes_what_is_in_flight(tmp_path: Path, backend: Backend) -> None:
    content = np.random.default_rng(0).integers(0, 256, 64 * PAGE, np.uint8)
    file, ring, memory = File(tmp_path / "a", Mode.create), Ring(64, backend), buffer(64 * PAGE)
    memory[:] = content
    for at in range(0, content.size, PAGE):
        ring.write(file, at, memory[at : at + PAGE])
        if at == 30 * PAGE:
            ring.submit_and_wait()
    del ring, memory
    gc.collect()
    assert (tmp_path / "a").read_bytes() == content.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_lives_until_its_completion(tmp_path: Path, backend: Backend) -> None:
    make_file(tmp_path / "a", 1)
    file, ring, memory = File(tmp_path / "a"), Ring(2, backend), buffer(PAGE)
    alive = weakref.ref(memory)
    ring.read(file, 0, memory)
    del memory, file
    gc.collect()
    assert alive() is not None
    assert finish(ring) == {0: (0, PAGE)}
    gc.collect()
    assert alive() is None
    registered = buffer(PAGE)
    alive = weakref.ref(registered)
    ring.register_buffers([registered])
    del registered
    assert alive() is not None
    ring.register_buffers([])
    assert alive() is None


def test_arrays_are_checked(tmp_path: Path) -> None:
    make_file(tmp_path / "a", 4)
    file, ring, memory = File(tmp_path / "a"), Ring(4), buffer(4 * PAGE)
    for wrong in (memory.view(np.int32), memory.reshape(2, -1), memory[::2]):
        with pytest.raises(ValueError, match="flat, contiguous array of uint8"):
            ring.read(file, 0, wrong)
    fixed = memory.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        ring.read(file, 0, fixed)
    buffered = File(tmp_path / "a", direct=False)
    ring.read(buffered, 3, memory[5:105], 1)
    ring.write(File(tmp_path / "b", Mode.create, direct=False), 7, fixed[:99], 2)
    assert finish(ring) == {1: (0, 100), 2: (0, 99)}
    if file.direct:
        for offset, array in ((1, memory), (0, memory[:100]), (0, memory[1 : PAGE + 1])):
            with pytest.raises(ValueError, match="multiples of 4096"):
                ring.read(file, offset, array)
    assert ring.in_flight == 0


def test_a_buffer_is_aligned_zeroed_memory() -> None:
    memory = buffer(PAGE + 1)
    assert (memory.size, memory.dtype, memory.ctypes.data % PAGE) == (2 * PAGE, np.uint8, 0)
    assert not memory.any()
    assert buffer(0).size == 0


@needs_uring
def test_the_gil_is_released_and_a_second_thread_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # a read of it waits until somebody writes
    file, ring, memory = File(tmp_path / "fifo", Mode.write, direct=False), Ring(2), buffer(PAGE)
    ring.read(file, 0, memory, 5)
    found: list[dict[int, tuple[int, int]]] = []
    waiter = threading.Thread(target=lambda: found.append(finish(ring)))
    waiter.start()
    time.sleep(0.2)
    with pytest.raises(RuntimeError, match="another thread"):
        ring.submit_and_wait()
    with (tmp_path / "fifo").open("wb") as writer:
        writer.write(b"x" * PAGE)
    waiter.join(20)
    assert found == [{5: (0, PAGE)}]


@pytest.mark.parametrize("backend", BACKENDS)
def test_direct_bytes_are_those_the_kernel_counted(tmp_path: Path, backend: Backend) -> None:
    pages = 4096
    make_file(tmp_path / "a", pages)
    file, ring, memory = File(tmp_path / "a", Mode.write), Ring(32, backend), buffer(32 * PAGE)
    if not file.direct:
        pytest.skip(f"{tmp_path} is on a file system without O_DIRECT")
    file.sync()

    def transfer(count: int) -> None:
        order = random.Random(2).sample(range(pages), count)
        for start in range(0, count, 32):
            for at, page in enumerate(order[start : start + 32]):
                move = ring.read if reads else ring.write
                move(file, page * PAGE, memory[at * PAGE : (at + 1) * PAGE], at)
            assert set(finish(ring).values()) == {(0, PAGE)}

    for reads in (True, False):
        transfer(64)  # code and tables of files are in memory from here on
        before, counted = resource.getrusage(resource.RUSAGE_SELF), ring.counters
        transfer(pages)
        after, now = resource.getrusage(resource.RUSAGE_SELF), ring.counters
        if reads:
            ours = now.read_bytes - counted.read_bytes
            kernels = 512 * (after.ru_inblock - before.ru_inblock)
        else:
            ours = now.write_bytes - counted.write_bytes
            kernels = 512 * (after.ru_oublock - before.ru_oublock)
        assert ours == pages * PAGE
        assert kernels == pytest.approx(ours, rel=0.02)


Operation = tuple[str, int, int, int]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "resize", "sync"]),
        st.integers(0, 40000),
        st.integers(0, 20000),
        st.integers(0, 255),
    ),
    max_size=30,
)


def play(backend: Backend, path: Path, direct: bool, operations: list[Operation]) -> None:
    """Does the operations to a file and to a bytearray; writes that do not touch overlap."""
    file, ring, memory = File(path, Mode.create, direct), Ring(4, backend), buffer(32768)
    model = bytearray()
    pending: list[tuple[int, int]] = []

    def settle() -> None:
        assert all(done.error == 0 for done in ring.submit_and_wait(ring.in_flight))
        pending.clear()

    for kind, offset, size, byte in operations:
        if direct and kind != "resize":
            offset, size = offset // PAGE * PAGE, size // PAGE * PAGE
        touches = any(offset < end and start < offset + size for start, end in pending)
        if kind != "write" or touches or ring.in_flight == ring.depth:
            settle()
        if kind == "resize":
            file.resize(offset)
            model[offset:] = bytes(max(0, offset - len(model)))
        elif kind == "sync":
            ring.sync(file)
        elif kind == "write":
            written = buffer(size)[:size]
            written[:] = byte
            ring.write(file, offset, written)
            pending.append((offset, offset + size))
            if size:  # a write of nothing extends nothing
                model.extend(bytes(max(0, offset + size - len(model))))
                model[offset : offset + size] = bytes([byte]) * size
        else:
            ring.read(file, offset, memory[:size], 9)
            expected = model[offset : offset + size]
            error = 0 if len(expected) == size else errno.ENODATA
            assert finish(ring) == {9: (error, len(expected))}
            assert memory[: len(expected)].tobytes() == expected
    settle()
    assert path.read_bytes() == model


@pytest.mark.parametrize("direct", [False, True])
@given(operations=OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_any_sequence_is_what_a_bytearray_says(direct: bool, operations: list[Operation]) -> None:
    for backend in BOTH:
        with tempfile.TemporaryDirectory() as folder:
            play(backend, Path(folder) / "a", direct, operations)


# What a container's seccomp profile does: io_uring_setup, number 425 everywhere, is an errno.
REFUSE = """
import ctypes, struct, sys
code = int(sys.argv[1])
filter = ctypes.create_string_buffer(
    struct.pack("HBBI", 0x20, 0, 0, 0)  # load the number
    + struct.pack("HBBI", 0x15, 0, 1, 425)  # is it io_uring_setup?
    + struct.pack("HBBI", 0x06, 0, 0, 0x50000 | code)  # then SECCOMP_RET_ERRNO
    + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # else SECCOMP_RET_ALLOW
)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(filter))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
if libc.prctl(22, 2, program, 0, 0) != 0:  # PR_SET_SECCOMP
    sys.exit(77)
"""
FALLBACK = (
    REFUSE
    + """
from shorthaul import doctor, logs, uring
from shorthaul.uring import *
logs.setup()
file, memory = File(sys.argv[2], Mode.create), buffer(4096)
ring, other = Ring(), Ring()
assert ring.backend is other.backend is Backend.posix
assert not uring.is_available() and uring.unavailable_reason() == ring.reason
memory[:] = 7
ring.write(file, 0, memory)
ring.submit_and_wait(1)
memory[:] = 0
ring.read(file, 0, memory)
(done,) = ring.submit_and_wait(1)
assert done.error == 0 and memory.min() == 7
try:
    Ring(backend=Backend.uring)
except OSError as error:
    assert error.errno == code, error
else:
    raise AssertionError("granted")
(check,) = [check for check in doctor.common() if check.name == "io_uring"]
assert not check.ok and check.detail == ring.reason and check.fix
print(ring.reason)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EACCES, errno.ENOMEM])
def test_a_refusal_falls_back_and_says_why(tmp_path: Path, code: int) -> None:
    done = run(FALLBACK, str(code), str(tmp_path / "a"), SHORTHAUL_IO="")
    if done.returncode == 77:
        pytest.skip("this kernel or container takes no seccomp filter")
    assert done.returncode == 0, done.stderr
    name = errno.errorcode[code]
    if REFUSED == "built without liburing":
        name = REFUSED
    assert done.stdout.startswith(name)
    assert done.stderr.count("not by io_uring") == 1  # one line for two rings
    assert f"not by io_uring: {name}" in done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("posix", "Backend.posix SHORTHAUL_IO=posix\n"),
        pytest.param("uring", "Backend.uring \n", marks=needs_uring),
        ("", f"Backend.posix {REFUSED}\n" if REFUSED else "Backend.uring \n"),
    ],
)
def test_the_environment_decides(value: str, said: str) -> None:
    code = "from shorthaul.uring import *; r = Ring(); print(r.backend, r.reason)"
    assert run(code, SHORTHAUL_IO=value).stdout == said


def test_an_unknown_choice_is_refused() -> None:
    done = run("from shorthaul.uring import *; Ring()", SHORTHAUL_IO="fast")
    assert done.stderr.endswith("ValueError: SHORTHAUL_IO=fast: use uring or posix\n")


def test_who_needs_no_ring_loads_none() -> None:
    code = "import sys, shorthaul.cli, shorthaul.doctor; print('shorthaul._uring' in sys.modules)"
    assert run(code).stdout == "False\n"


def test_another_package_can_build_against_it() -> None:
    folder = uring.cmake_dir()
    assert (folder / "uring.cmake").is_file()
    assert (folder / "include" / "shorthaul" / "uring.hpp").is_file()
    assert (folder / "src" / "ring.cpp").is_file()
