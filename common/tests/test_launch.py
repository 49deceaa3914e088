"""Real processes under torch's real agent; the workers import no torch, to stay quick."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from shorthaul import launch as module
from shorthaul.errors import EnvironmentLack, Fault, UserError
from shorthaul.launch import RankDied, launch

pytest.importorskip("torch", reason="torch is not installed")

WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from shorthaul.errors import EnvironmentLack, Fault, UserError

what, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
if what == "late-cause":  # however slow this machine is, rank 1 lives to say what it has to say
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"rank{rank}.pid").write_text(str(os.getpid()))
if what == "ok":
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "EXTRA")
    (folder / f"rank{rank}.env").write_text(" ".join(os.environ.get(n, "-") for n in names))
    print(f"said by {rank}", flush=True)
    sys.exit(0)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "child" and rank == 1:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (folder / "child.pid").write_text(str(child.pid))
deadline = time.monotonic() + 60
while len(list(folder.glob("rank*.pid"))) < int(os.environ["WORLD_SIZE"]):
    assert time.monotonic() < deadline
    time.sleep(0.01)
if what == "echo":
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    raise RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1234")
if what == "late-cause":
    if rank == 0:
        raise RuntimeError("Connection reset by peer")
    time.sleep(0.02)
    raise ValueError("block 3 diverged")
if rank == 1:
    time.sleep(0.1)
    if what == "user":
        raise UserError("block 3: teacher gives 4 channels, student wants 8")
    if what == "lack":
        raise EnvironmentLack("no GPU; get one")
    if what == "fault":
        raise ValueError("boom\\nsecond line")
    if what == "exit":
        sys.exit(7)
    if what == "hard-exit":
        os._exit(7)
    if what == "words":
        sys.exit("these words")
    if what in ("kill", "child", "deaf"):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(120)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "worker_under_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path
    gone(tmp_path)


def gone(folder: Path, within_s: float = 10) -> None:
    """Every process that left its number behind has to end."""
    deadline = time.monotonic() + within_s
    for file in folder.glob("*.pid"):
        pid = int(file.read_text())
        while psutil.pid_exists(pid):
            try:
                if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                    break
            except psutil.NoSuchProcess:
                break
            assert time.monotonic() < deadline, f"{file.name}: process {pid} is an orphan"
            time.sleep(0.02)


def run(folder: Path, what: str, nproc: int = 3, **more: object) -> None:
    given = {"grace_s": 1.0, "timeout_s": 60.0, **more}
    launch("worker_under_test", [what, str(folder)], nproc, **given)  # type: ignore[arg-type]


def test_ranks_get_their_environment_and_the_launcher_keeps_its_own(folder: Path) -> None:
    before = dict(os.environ)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    run(folder, "ok", threads=2, env={"EXTRA": "yes"})
    found = [(folder / f"rank{rank}.env").read_text() for rank in range(3)]
    assert found == [f"{rank} 3 127.0.0.1 2 yes" for rank in range(3)]
    changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
    assert changed <= {"TORCHELASTIC_SIGNALS_TO_HANDLE", "PYTEST_CURRENT_TEST"}
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


def test_logs_of_ranks_go_to_files(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(folder, "ok", nproc=2, log_dir=folder / "logs")
    assert (folder / "logs" / "rank1.log").read_text() == "said by 1\n"
    captured = capfd.readouterr()
    assert captured.out == "said by 0\n"
    assert captured.err == ""


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("user", UserError, r"block 3: teacher gives 4 channels, student wants 8$"),
        ("lack", EnvironmentLack, r"no GPU; get one$"),
        ("fault", RankDied, r"rank 1 failed: ValueError: boom$"),
        ("exit", RankDied, r"rank 1 failed: SystemExit: exited with 7$"),
        ("words", RankDied, r"rank 1 failed: SystemExit: exited with these words$"),
        ("hard-exit", RankDied, r"rank 1 exited with code 7$"),
        ("late-cause", RankDied, r"rank 1 failed: ValueError: block 3 diverged$"),
    ],
)
def test_what_a_rank_says_is_what_the_launcher_raises(
    folder: Path, what: str, kind: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=message):
        run(folder, what, nproc=2)
    assert capfd.readouterr().err == ""


@pytest.mark.system
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("kill", r"rank 1 was killed by SIGKILL \(out of memory\?\), pid \d+$"),
        ("segv", r"rank 1 was killed by SIGSEGV, pid \d+$"),
        ("term", r"rank 1 was killed by SIGTERM, pid \d+$"),
        ("echo", r"rank 1 was killed by SIGKILL"),
        ("deaf", r"rank 1 was killed by SIGKILL"),
        ("child", r"rank 1 was killed by SIGKILL"),
    ],
)
def test_a_killed_rank_is_named_and_ends_the_others(
    folder: Path, what: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RankDied, match=message) as error:
        run(folder, what)
    assert error.value.rank == 1
    assert error.value.exit_code == 1
    gone(folder, within_s=2)
    assert capfd.readouterr().err == ""


def test_time_is_limited(folder: Path) -> None:
    with pytest.raises(Fault, match="worker_under_test was not done after 3 s"):
        run(folder, "sleep", nproc=2, timeout_s=3.0)
    gone(folder, within_s=2)


LAUNCHER = """
import sys
from shorthaul.launch import launch
launch("worker_under_test", ["sleep", sys.argv[1]], 2, grace_s=1)
"""


@pytest.mark.system
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)],
)
def test_no_rank_outlives_its_launcher(folder: Path, number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(folder)},
    ) as launcher:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("rank*.pid"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        launcher.send_signal(number)
        launcher.wait(20)
        gone(folder, within_s=5)
        assert launcher.returncode == code


def test_a_worker_whose_launcher_is_gone_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from shorthaul.launch import bind_to_parent; bind_to_parent(); print('alive')"
    monkeypatch.setenv("SHORTHAUL_PARENT", "1" if os.getpid() != 1 else "2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    monkeypatch.delenv("SHORTHAUL_PARENT")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_without_a_launcher_a_worker_says_its_error_itself() -> None:
    code = (
        "from shorthaul import launch; from shorthaul.errors import UserError\n"
        "def main(): raise UserError('wrong')\n"
        "launch.run_worker(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "rank 0: UserError: wrong\n")


def test_no_ranks_are_no_run() -> None:
    with pytest.raises(UserError, match="0 processes"):
        launch("x", [], 0)


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(RankDied, match="no_such_module"):
        launch("no_such_module", [], 1, timeout_s=60)


def test_without_torch_it_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed.launcher.api", None)
    with pytest.raises(EnvironmentLack, match="pip install torch"):
        module.launch("x", [], 1)
