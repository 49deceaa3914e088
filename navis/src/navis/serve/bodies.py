"""Request bodies: bounded in size, in time, and all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from starlette.requests import Request

from navis.serve import wire
from navis.serve.config import Limits
from navis.serve.errors import Refused, busy

Kind = Literal["json", "binary"]
Body = bytes | bytearray
_KINDS: dict[str, Kind] = {"application/json": "json", wire.MEDIA_TYPE: "binary"}


def kind(request: Request, *, binary: bool) -> Kind:
    """Say by its content type how a body is written.

    A type must be named: a web page can send other types to this machine without asking first.
    """
    named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    found = _KINDS.get(named)
    if found is None or (found == "binary" and not binary):
        known = " or ".join(_KINDS if binary else ["application/json"])
        raise Refused(415, f"content-type {named[:80] or 'missing'}: send {known}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "content-encoding: send the body as it is")
    return found


def too_large(limits: Limits) -> Refused:
    """Give the refusal of a large body.

    The connection stays open, and what still comes is thrown away: most clients read no answer
    before they have sent everything, and would see a broken connection instead of the reason.
    """
    return Refused(413, f"a body of more than {limits.request_bytes} bytes: split the request")


class Bodies:
    """Reads bodies and counts the bytes that are held until their requests are answered.

    Attributes:
        held: Bytes.
    """

    def __init__(self, limits: Limits) -> None:
        self.held = 0
        self._limits = limits
        self._waiting: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """Give a request's body, held to the end of the `with` block."""
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_s) as limit:
                    self._waiting.add(limit)
                    try:
                        await self._arrive(request, body)
                    finally:
                        self._waiting.discard(limit)
            except TimeoutError:
                late = "the body did not arrive in time"
                raise Refused(408, late, {"connection": "close"}) from None
            yield body
        finally:
            self.held -= len(body)

    async def _arrive(self, request: Request, body: bytearray) -> None:
        async for chunk in request.stream():
            if len(body) + len(chunk) > self._limits.request_bytes:
                raise too_large(self._limits)
            if self.held + len(chunk) > self._limits.held_bytes:
                raise busy("too many large requests at once")
            self.held += len(chunk)
            body += chunk

    def hurry(self, seconds: float) -> None:
        """Give the bodies that are still arriving so much time: the server is to stop."""
        end = asyncio.get_running_loop().time() + seconds
        for limit in self._waiting:
            when = limit.when()
            limit.reschedule(end if when is None else min(when, end))
