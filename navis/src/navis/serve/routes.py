"""The endpoints under /v1: what they read, what they do in a thread, what they answer."""

from __future__ import annotations

import functools
import itertools
import math
import re
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import ValidationError
from pydantic_core import to_json
from shorthaul.errors import UserError

from navis.checks import Ids
from navis.errors import Closed
from navis.filters import Filter
from navis.index import Floats, Index
from navis.serve import errors, models, wire
from navis.serve.bodies import Bodies, Body, Kind, kind
from navis.serve.config import Limits
from navis.serve.engine import Engine

Q = TypeVar("Q", bound=models.Question)

_WRONG = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The server is read-only, or answers this machine alone.",
    413: "The body is too large.",
    415: "The content type is missing or unknown.",
    422: "The request cannot be done as it is: dimension, NaN, unknown fields, bounds.",
    503: "Too busy, or shutting down: repeat later.",
    507: "The disk is full.",
}
# Read by hand, which is cheaper than FastAPI's way, and searches are what must be fast.
_OF_BINARY = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in {
        "k": {"type": "integer", "minimum": 1, "description": "Of a binary body; 10 by default."},
        "L": {"type": "integer", "minimum": 1, "description": "Of a binary body; max(2k, 40)."},
        "filter": {
            "type": "string",
            "description": "Of a binary body: `any_of=3,5 all_of=1 none_of=7 between=0:10`.",
        },
    }.items()
]
_BINARY_ROWS = "Header and arrays as described under binary bodies."


def _documented(
    model: type[models.Question] | None, *also: int, binary: bool = False
) -> dict[str, Any]:
    """Give what the OpenAPI description says of a body that the handler itself reads."""
    wrong = {
        status: {"model": models.Wrong, "description": _WRONG[status]}
        for status in sorted({401, 403, 503, *also, *((400, 413, 415, 422) if model else ())})
    }
    extra: dict[str, Any] = {}
    if model is not None:
        content: dict[str, Any] = {"application/json": {"schema": models.reference(model)}}
        if binary:
            schema = {"type": "string", "format": "binary", "description": _BINARY_ROWS}
            content[wire.MEDIA_TYPE] = {"schema": schema}
        extra = {"requestBody": {"required": True, "content": content}}
        if model is models.Search:
            extra["parameters"] = _OF_BINARY
    return {"responses": wrong, "openapi_extra": extra}


def router(engine: Engine, limits: Limits, bodies: Bodies) -> APIRouter:
    """Make the routes of an open index."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/search", response_model=models.Neighbours, tags=["search"],
                 **_documented(models.Search, binary=True))  # fmt: skip
    async def search(request: Request) -> Response:
        """Find the k nearest of each query. A binary body is answered by binary results."""
        written = kind(request, binary=True)
        if written == "json":
            _only(request)
            work = functools.partial(_search, limits)
        else:
            _only(request, "k", "L", "filter")
            k, length = _whole(request, "k") or 10, _whole(request, "L")
            words = request.query_params.get("filter", "")
            work = functools.partial(_search_binary, limits, k, length, Filter.parse(words))
        async with bodies.read(request) as body:
            return await engine.read(functools.partial(work, body))

    @routes.post("/insert", response_model=models.Inserted, tags=["change"],
                 **_documented(models.Insert, 507, binary=True))  # fmt: skip
    async def insert(request: Request) -> Response:
        """Insert vectors, or replace those whose id is there.

        The answer comes when they are as durable as it says. After an error, some rows may be
        there; the same request may be sent again.
        """
        written = kind(request, binary=True)
        _only(request)
        engine.check_writable()
        async with bodies.read(request) as body:
            work = functools.partial(_insert, limits, written, engine.durability, body)
            return await engine.write(work)

    @routes.post("/delete", response_model=models.Deleted, tags=["change"],
                 **_documented(models.Delete, 507))  # fmt: skip
    async def delete(request: Request) -> Response:
        """Delete by id."""
        kind(request, binary=False)
        _only(request)
        engine.check_writable()
        async with bodies.read(request) as body:
            return await engine.write(functools.partial(_delete, limits, engine.durability, body))

    @routes.post("/flush", response_model=models.Flushed, tags=["change"],
                 **_documented(None, 507))  # fmt: skip
    async def flush(request: Request) -> Response:
        """Make everything acknowledged survive the loss of power, whatever the durability."""
        _only(request)
        engine.check_writable()
        await engine.write(lambda index: index.flush())
        return _json({"durable": True})

    @routes.get("/stats", response_model=models.Stats, tags=["look"],
                **_documented(None))  # fmt: skip
    async def stats(request: Request) -> Response:
        """Sizes, memory by part, state of the log, counters."""
        _only(request)
        return await engine.watch(functools.partial(_stats, engine))

    @routes.get("/vectors/{id}", response_model=models.Stored, tags=["look"],
                **_documented(None, 422))  # fmt: skip
    async def vector(
        request: Request, id: Annotated[int, Path(ge=0, le=models.LARGEST_ID)]
    ) -> Response:
        """Give a vector as it is stored; 404 where there is none of this id."""
        _only(request)
        return await engine.read(functools.partial(_vector, id))

    return routes


# ---------------------------------------------------------------------- in a thread


def _search(limits: Limits, body: Body, index: Index) -> Response:
    asked = _parsed(models.Search, body)
    rows = [asked.vector] if asked.vector is not None else asked.vectors or []
    length = limits.check_search(len(rows), asked.k, asked.L)
    queries = _floats(rows, index.dim)
    given = asked.filter.of_index() if asked.filter else None
    ids, distances = index.search(queries, asked.k, L=length, filter=given)
    # Where fewer than k match, or deletes under way leave fewer, the rest of a row is no vector.
    counts = (ids <= models.LARGEST_ID).sum(axis=1).tolist()
    return _json({
        "ids": [row[:n] for row, n in zip(ids.tolist(), counts, strict=True)],
        "distances": [row[:n] for row, n in zip(distances.tolist(), counts, strict=True)],
    })  # fmt: skip


def _search_binary(
    limits: Limits, k: int, length: int | None, given: Filter, body: Body, index: Index
) -> Response:
    queries = wire.unpack_queries(body)
    length = limits.check_search(len(queries), k, length)
    if not len(queries):
        raise UserError("no queries: send at least one")
    found = index.search(queries, k, L=length, filter=given)
    return Response(wire.pack_results(*found), media_type=wire.MEDIA_TYPE)


def _insert(limits: Limits, written: Kind, durability: str, body: Body, index: Index) -> Response:
    ids: Ids
    more: dict[str, Any] = {}
    if written == "binary":
        ids, vectors = wire.unpack_rows(body)
        limits.check_rows(len(ids), "vectors")
    else:
        asked = _parsed(models.Insert, body)
        limits.check_rows(len(asked.vectors), "vectors")
        ids = np.array(asked.ids, dtype=np.uint64)
        vectors = _floats(asked.vectors, index.dim)
        more = {"labels": asked.labels, "values": asked.values}
    if not len(ids):
        raise UserError("no vectors: send at least one")
    replaced = index.insert(ids, vectors, **more)
    return _json({"inserted": len(ids), "replaced": replaced, "durability": durability})


def _delete(limits: Limits, durability: str, body: Body, index: Index) -> Response:
    ids = _parsed(models.Delete, body).ids
    limits.check_rows(len(ids), "ids")
    numbers = np.unique(np.array(ids, dtype=np.uint64))
    gone = index.delete(numbers)
    return _json({"deleted": gone, "unknown": len(numbers) - gone, "durability": durability})


def _stats(engine: Engine, index: Index) -> Response:
    return _json({
        "dim": index.dim,
        "metric": index.metric,
        "dtype": index.dtype.name,
        "layout": index.layout,
        "durability": engine.durability,
        "readonly": engine.readonly,
        "index": index.stats(),
        "counters": index.counters(),
    })  # fmt: skip


def _vector(id: int, index: Index) -> Response:
    try:
        stored = index.get([id])[0]
        labels, values = index.attributes([id])
    except Closed:
        raise
    except UserError:
        raise errors.Refused(404, f"id {id} is not in the index") from None
    value = float(values[0])
    return _json({
        "id": id,
        "vector": stored.tolist(),
        "labels": labels[0].tolist(),
        "value": None if math.isnan(value) else value,
    })  # fmt: skip


# ---------------------------------------------------------------------- small things


def _only(request: Request, *known: str) -> None:
    for name in request.query_params:
        if name not in known:
            raise errors.Refused(422, f"{name[:80]}: there is no such parameter here")


def _whole(request: Request, name: str) -> int | None:
    given = request.query_params.get(name)
    if given is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", given):
        raise errors.Refused(422, f"{name} {given[:80]!r}: use a whole number, 1 or more")
    return int(given)


def _parsed(model: type[Q], body: Body) -> Q:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise errors.of_validation(error) from None


def _floats(rows: list[list[float]], dim: int) -> Floats:
    for row, length in enumerate(map(len, rows)):
        if length != dim:
            raise UserError(f"vector {row} has {length} dimensions, the index has {dim}")
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.float32, len(rows) * dim)
    return flat.reshape(len(rows), dim)


def _json(body: Any) -> Response:
    # A distance beyond float32 is null: JSON has no infinity.
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")
