"""A device that hosts reach over a socket: one at a time, over TCP only with the token."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shorthaul import logs
from shorthaul.errors import UserError

from smart_infinity.worker import serve_socket

_log = logs.get(__name__)
GREETING_S = 10.0  # a stranger who says nothing does not keep others out for longer


def parse(address: str) -> tuple[str, Any]:
    """Read `unix:PATH` or `tcp:HOST:PORT`; anything else is a UserError."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return "unix", rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit() and int(port) < 65536:
        return "tcp", (host.strip("[]"), int(port))
    raise UserError(f"address {address!r}: write unix:PATH or tcp:HOST:PORT")


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(address: str) -> socket.socket:
    """Make the listening socket; a Unix socket's path is for this user alone."""
    scheme, where = parse(address)
    try:
        if scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                sock.bind(where)
            finally:
                os.umask(before)
        else:
            sock = socket.create_server(where, reuse_port=False)
        sock.listen(4)
    except OSError as error:
        raise UserError(f"--listen {address}: {error.strerror or error}") from error
    return sock


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Give the server's side of TLS; a file that is none is a UserError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"--tls-cert {certificate}: {error}") from error
    return context


def serve(
    folder: Path,
    address: str,
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve hosts one after the other until SIGTERM or SIGINT.

    Raises:
        UserError: TCP beyond this machine without a token, or an address that cannot be had.
    """
    scheme, where = parse(address)
    if scheme == "tcp" and token is None and not is_loopback(where[0]):
        raise UserError(
            f"--listen {address} is open to the network: give --token-file, or listen on 127.0.0.1"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_owned(folder))
        sock = stack.enter_context(listen(address))
        _serve(sock, folder, address, token, tls, ready)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and keep others from serving it.

    The state's own lock is held while a host is there, this one between two hosts as well.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "SERVED").open("ab")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another smart-infinity device serves it; stop that, or give another "
                "folder"
            ) from None
        yield


def _serve(
    sock: socket.socket,
    folder: Path,
    address: str,
    token: str | None,
    tls: ssl.SSLContext | None,
    ready: Callable[[str], None],
) -> None:
    scheme, where = parse(address)
    sock.settimeout(0.2)  # how soon a signal is seen between two hosts
    stopping = threading.Event()
    current: list[socket.socket] = []

    def stop(number: int, frame: object) -> None:
        # No exception: the session ends as if its host had gone, its engine in order.
        stopping.set()
        for connection in current:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    shown = address
    if scheme == "tcp":
        shown = f"tcp:{where[0]}:{sock.getsockname()[1]}"
    ready(f"device {folder} at {shown}")
    try:
        while not stopping.is_set():
            try:
                connection, _ = sock.accept()
            except TimeoutError:
                continue
            if not stopping.is_set():
                _serve_one(connection, folder, token, tls, current)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sock.close()
        if scheme == "unix":
            Path(where).unlink(missing_ok=True)


def _serve_one(
    connection: socket.socket,
    folder: Path,
    token: str | None,
    tls: ssl.SSLContext | None,
    current: list[socket.socket],
) -> None:
    connection.settimeout(GREETING_S)
    try:
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
        current.append(connection)
        serve_socket(connection, folder, token, local=False)
    except (OSError, ssl.SSLError) as error:
        _log.log(logging.WARNING, "connection refused: %s", error)
    finally:
        current.clear()
        connection.close()
