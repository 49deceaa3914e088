"""One process that listens, and stops in good order: uvicorn, a socket of ours, two signals."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from shorthaul import logs
from shorthaul.errors import UserError

from navis.serve.engine import Engine

_LOG = logs.get(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BODIES_S = 1.0  # for bodies still arriving when the server is to stop


def listen(host: str, port: int) -> socket.socket:
    """Take the address before anything else is done; nobody is let in yet.

    Raises:
        UserError: The port is in use, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take the rest of a division
        raise UserError(f"--port {port}: use 0 to 65535; 0 takes a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: no such address ({reason})") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        says = f"--host {host} --port {port}: cannot be listened at ({error.strerror})"
        raise UserError(f"{says}; choose another") from error
    return taken


def url(taken: socket.socket) -> str:
    """Give the address of a socket as a client writes it."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's, with our signals and a word when it listens and when it stops."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready, self._stop = ready, stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours hold until the index is closed, and are not raised again afterwards

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop()
        await super().shutdown(sockets)


def serve(
    app: FastAPI,
    engine: Engine,
    taken: socket.socket,
    *,
    grace_s: float = 30.0,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until a signal; the index is closed when this returns.

    SIGTERM or SIGINT: no new connections, requests under way are finished (those not finished after
    `grace_s` are answered 503), the index is made durable and closed. A second signal ends the
    process at once, with the exit code shells give to that signal; what was acknowledged is as
    durable as was promised all the same.

    Args:
        app: Of `create_app`.
        engine: The same that `app` was made of.
        taken: Of `listen`.
        grace_s: Seconds.
        ready: Called when connections are accepted.
    """

    def stop() -> None:
        engine.stop()
        app.state.bodies.hurry(_BODIES_S)

    config = uvicorn.Config(
        app,
        http="h11",  # strict, and bounded in what it holds of headers; httptools is neither
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        log_config=None,
        log_level="error",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type] # whole seconds, says uvicorn
    )
    server = _Server(config, ready, stop)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            os.write(2, b"navis: a second signal: stopped at once\n")
            os._exit(128 + number)
        server.should_exit = True

    before: dict[int, Any] = {s: signal.signal(s, on_signal) for s in _SIGNALS}
    try:
        try:
            server.run(sockets=[taken])
        finally:
            _LOG.info("stopping: %d requests answered", server.server_state.total_requests)
            _close(engine)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close(engine: Engine) -> None:
    """Close in a thread: signals are handled between lines of Python, and C++ has none."""
    failed: list[BaseException] = []

    def close() -> None:
        try:
            engine.close()
        except BaseException as error:
            failed.append(error)

    closing = threading.Thread(target=close, name="navis-close")
    closing.start()
    closing.join()
    if failed:
        raise failed[0]
