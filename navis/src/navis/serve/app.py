"""The application: endpoints, the gate around them, and their description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

import navis
from navis.serve import errors, models, page, wire
from navis.serve.auth import Guard
from navis.serve.bodies import Bodies
from navis.serve.config import Limits
from navis.serve.engine import Engine
from navis.serve.gate import Gate
from navis.serve.metrics import MEDIA_TYPE, Metrics
from navis.serve.routes import router

_ABOUT = """Search, insert and delete on an index on disk.

Errors are `{"error": "one line"}`. Ids are whole numbers up to `2**64 - 2`; a client whose numbers
are all floating-point, as JavaScript's, keeps them below `2**53`."""


def create_app(
    engine: Engine, *, limits: Limits | None = None, token: str | None = None
) -> FastAPI:
    """Make the application of an engine.

    Args:
        engine: Of an open index; closing it is the caller's.
        limits: Bounds of requests.
        token: Needed for all but `/healthz`; None: only requests to loopback names are answered.
    """
    limits, guard = limits or Limits(), Guard(token)
    # No page of FastAPI's: theirs load scripts from elsewhere.
    app = FastAPI(
        title="navis",
        version=navis.__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(engine.index, engine.durability)
    app.state.bodies = Bodies(limits)
    app.include_router(router(engine, limits, app.state.bodies))
    _watching(app, engine, metrics)
    paths = app.openapi()["paths"]
    app.add_middleware(
        Gate,
        guard=guard,
        limits=limits,
        engine=engine,
        metrics=metrics,
        endpoints=frozenset([*paths, "/docs", "/openapi.json"]),
    )
    _described(app, guard)

    # Raised through FastAPI's own layers they would become its own answers.
    async def refused(_: Request, error: Exception) -> Response:
        return errors.answer(_as_refused(error))

    for kind in (errors.Refused, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refused)
    return app


def _as_refused(error: Exception) -> errors.Refused:
    if isinstance(error, errors.Refused):
        return error
    if isinstance(error, RequestValidationError):  # of a path or query parameter
        first = error.errors()[0]
        return errors.Refused(422, f"{first['loc'][-1]}: {first['msg']}")
    assert isinstance(error, HTTPException)
    says = {404: "there is no such path; /docs lists them", 405: "another method is needed"}
    return errors.Refused(
        error.status_code, says.get(error.status_code, error.detail), error.headers
    )


def _watching(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/healthz", response_model=models.Health, tags=["watch"])
    async def healthz() -> dict[str, str]:
        """Say that the process answers. Needs no token."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=models.Health, tags=["watch"],
             responses={503: {"model": models.Wrong, "description": "Shutting down."}})  # fmt: skip
    async def readyz() -> dict[str, str]:
        """Say that requests are taken."""
        if engine.stopping:
            raise errors.busy("the server is shutting down")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, tags=["watch"],
             responses={200: {"content": {"text/plain": {}}}})  # fmt: skip
    async def read_metrics() -> Response:
        """Counts and latencies of requests, counters and sizes of the index, for Prometheus."""
        text = await engine.watch(lambda index: metrics.text())
        return Response(text, media_type=MEDIA_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page.render(app.openapi()), headers=page.HEADERS)


def _described(app: FastAPI, guard: Guard) -> None:
    """Add to the OpenAPI description what FastAPI cannot know."""
    described: dict[str, Any] = app.openapi()
    table = wire.__doc__ or ""
    described["info"]["description"] += f"\n\n{table}"
    described["components"]["schemas"] |= models.schemas()
    if guard.has_token:
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        described["components"]["securitySchemes"] = schemes
        described["security"] = [{"token": []}]
        described["paths"]["/healthz"]["get"]["security"] = []
    for operations in described["paths"].values():
        for operation in operations.values():
            binary = "application/octet-stream" in operation.get("requestBody", {}).get(
                "content", {}
            )
            if binary and operation["summary"] == "Search":
                schema = {"type": "string", "format": "binary", "description": "Results."}
                operation["responses"]["200"]["content"][wire.MEDIA_TYPE] = {"schema": schema}
