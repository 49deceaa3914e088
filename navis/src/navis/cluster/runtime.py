"""Ray: started on this machine or joined, and left again. The only module that imports it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shorthaul.errors import EnvironmentLack, Fault, UserError

from navis.cluster.shard import Shard

START_S = 120.0  # until a process that was asked for must be there
_CONNECT_S = 10.0
_CALLS_AT_ONCE = 16  # of one shard
_SOCKET_ROOM = 40  # of a socket path's 107 characters; Ray needs the rest

_lock = threading.Lock()
_users = 0
_ours = False
_folder: Path | None = None
_handler: Any = None  # of SIGTERM, before Ray


def imported() -> Any:
    """Import Ray, or say how to get it."""
    try:
        import ray
    except ImportError as error:
        raise EnvironmentLack(
            "a cluster needs Ray, which is not installed; pip install 'shorthaul-navis[cluster]' "
            f"({error})"
        ) from None
    return ray


def acquire(address: str | None, shards: int) -> None:
    """Use the Ray this process is in; otherwise join one, or start one on this machine.

    Args:
        address: Of the Ray to join; RAY_ADDRESS by default, and none of both: start one.
        shards: CPUs Ray is told of, if it is started.
    """
    global _users, _ours
    ray = imported()
    with _lock:
        if not ray.is_initialized():
            address = address or os.environ.get("RAY_ADDRESS")
            if address in (None, "", "local"):
                _lasting(lambda: _start(ray, shards))
            else:
                _join(ray, str(address))
            _ours = True
            atexit.unregister(_stop)
            atexit.register(_stop)  # after Ray's own, so it comes before
        _users += 1


def release() -> None:
    """Leave; the last one stops the Ray that `acquire` has started or joined."""
    global _users
    with _lock:
        _users = max(0, _users - 1)
        if _users == 0:
            _stop()


def place(shards: int, nodes: list[str] | None) -> tuple[str | None, ...]:
    """Choose the node of each shard, in turn; None where there is but one to choose from."""
    if nodes is None:
        known = _addresses()
        nodes = known if len(known) > 1 else []
    for node in nodes:
        if node not in _addresses():
            raise UserError(f"node {node!r} is not in the Ray cluster; {_those_there()}")
    return tuple(nodes[i % len(nodes)] if nodes else None for i in range(shards))


def spawn(path: Path, cluster: str, number: int, of: int, node: str | None) -> Any:
    """Start a shard's process; gives its actor. Does not wait for it."""
    ray = imported()
    if node is not None and node not in _addresses():
        raise Fault(f"shard {number}: its node {node} is not there; {_those_there()}")
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": _CALLS_AT_ONCE}
    if node is not None:
        options["resources"] = {f"node:{node}": 0.0001}
    return ray.remote(Shard).options(**options).remote(path, cluster, number, of)


def kill(actor: Any) -> None:
    """End a shard's process, if there is one still."""
    with contextlib.suppress(Exception):
        imported().kill(actor, no_restart=True)


def lost_errors() -> tuple[type[Exception], ...]:
    """Give what Ray raises for an actor that is gone."""
    errors = imported().exceptions
    return (errors.RayActorError, errors.NodeDiedError, errors.ObjectLostError)


def _addresses() -> list[str]:
    nodes = imported().nodes()
    return sorted({node["NodeManagerAddress"] for node in nodes if node["Alive"]})


def _those_there() -> str:
    return f"there are {', '.join(_addresses()) or 'none'}"


def _start(ray: Any, shards: int) -> None:
    """Start Ray for this process alone. Its ports are open to the network; it asks for a token."""
    global _folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parent = tempfile.gettempdir()
    _folder = Path(
        tempfile.mkdtemp(prefix="navis-", dir=parent if len(parent) < _SOCKET_ROOM else "/tmp")
    )
    try:
        with _quietly():
            ray.init(
                address="local",
                num_cpus=max(shards, 1),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(_folder),
            )
    except Exception as error:
        _stop()
        raise Fault(f"Ray could not be started here: {_first_line(error)}") from error


def _join(ray: Any, address: str) -> None:
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            # Ray itself tries for a minute, and then ends the process.
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        with _quietly():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        ray.shutdown()
        raise UserError(
            f"no Ray could be joined at {address!r} ({_first_line(error)}); give HOST:PORT as "
            "`ray start` told it, or none, to start one here"
        ) from error


def _stop() -> None:
    global _ours, _folder
    if _ours or _folder is not None:
        imported().shutdown()
        _put_back_handler()
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
    _ours, _folder = False, None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hold back Ray's notices of its defaults, and keep a handler of SIGTERM that it replaces.

    Where there was none, Ray's own is good while it runs: it ends what Ray has started.
    """
    global _handler
    logger, _handler = logging.getLogger("ray"), signal.getsignal(signal.SIGTERM)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if _handler is not signal.SIG_DFL:
            _put_back_handler()


def _put_back_handler() -> None:
    if _handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _handler)


def _lasting(act: Callable[[], None]) -> None:
    """Act in the main thread, or in one that never ends.

    Ray's processes ask the kernel to be killed with their parent, and to the kernel that is the
    thread that started them.
    """
    if threading.current_thread() is threading.main_thread():
        act()
        return
    done = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)
        done.set()
        if not failed:
            threading.Event().wait()

    threading.Thread(target=run, name="navis-ray", daemon=True).start()
    done.wait()
    if failed:
        raise failed[0]
