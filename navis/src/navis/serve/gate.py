"""The outermost layer: who may ask, how much at once, and what is counted."""

from __future__ import annotations

import asyncio
import time

from shorthaul import logs
from shorthaul.errors import ShorthaulError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from navis.serve import errors
from navis.serve.auth import Guard
from navis.serve.bodies import too_large
from navis.serve.config import Limits
from navis.serve.engine import Engine
from navis.serve.metrics import Metrics

_LOG = logs.get(__name__)
_VECTOR = "/v1/vectors/"
# Answered however much there is to do, and taking nobody's place.
_WATCHING = ("/healthz", "/readyz", "/metrics")
_HARMLESS = (b"x-content-type-options", b"nosniff")


class Gate:
    """ASGI middleware around everything else.

    Each request is refused before its body is read, or passed on; whatever is raised becomes one
    line of JSON; and it is counted under its endpoint. Paths that do not exist are counted as
    `other`, so that clients cannot make metrics grow.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Guard,
        limits: Limits,
        engine: Engine,
        metrics: Metrics,
        endpoints: frozenset[str],
    ) -> None:
        self._app, self._guard, self._limits = app, guard, limits
        self._engine, self._metrics, self._endpoints = engine, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        work = scope["path"] not in _WATCHING

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), _HARMLESS]
            await send(message)

        self._metrics.under_way += work
        try:
            try:
                self._check(scope)
                await self._app(scope, receive, counted)
            except ClientDisconnect:
                status = 499  # nobody is left to be answered
            except (Exception, asyncio.CancelledError) as error:
                refused = self._refused(error)
                if status:  # half an answer cannot be taken back
                    raise
                await errors.answer(refused)(scope, receive, counted)
        finally:
            self._metrics.under_way -= work
            seconds = time.perf_counter() - started
            self._metrics.observe(self._endpoint(scope["path"]), status, seconds)

    def _check(self, scope: Scope) -> None:
        path = scope["path"]
        self._guard.check(path, scope["headers"])
        if path in _WATCHING:
            return
        if self._engine.stopping:
            raise errors.busy("the server is shutting down")
        if self._metrics.under_way > self._limits.under_way:
            raise errors.busy("too many requests at once")
        for name, value in scope["headers"]:
            # Anything but digits has been refused by the parser of HTTP.
            if name == b"content-length" and int(value) > self._limits.request_bytes:
                raise too_large(self._limits)

    def _refused(self, error: BaseException) -> errors.Refused:
        if isinstance(error, errors.Refused):
            return error
        if isinstance(error, asyncio.CancelledError):
            if not self._engine.stopping:
                raise error
            says = "the server stopped before this was finished; whether it was done is not known"
            return errors.busy(says)
        if isinstance(error, ShorthaulError):
            refused = errors.of_engine(error)
            if refused.status >= 500:
                _LOG.error("%s", refused)
            return refused
        _LOG.error("unexpected", exc_info=error)
        return errors.Refused(500, f"unexpected {type(error).__name__}; the server's log says more")

    def _endpoint(self, path: str) -> str:
        if path.startswith(_VECTOR):
            return _VECTOR + "{id}"
        return path if path in self._endpoints else "other"
