"""Every refusal as a status and one line of JSON: `{"error": "..."}`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ValidationError
from shorthaul.errors import ShorthaulError, UserError
from starlette.responses import Response

from navis.errors import Closed, Corrupt, NoSpace

_LONGEST = 500


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: Of HTTP.
        headers: Further ones.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def busy(message: str) -> Refused:
    """Give the refusal of a request that may be repeated later."""
    return Refused(503, message, {"retry-after": "1"})


def of_engine(error: ShorthaulError) -> Refused:
    """Give the status of an error of the engine; what is not the client's doing is 5xx."""
    if isinstance(error, Closed):
        return busy("the server is shutting down")
    if isinstance(error, NoSpace):
        return Refused(507, f"{error}; rows before it may be there: repeat the whole request")
    if isinstance(error, Corrupt):
        return Refused(500, str(error))
    return Refused(422 if isinstance(error, UserError) else 500, str(error))


def of_validation(error: ValidationError) -> Refused:
    """Give the first thing wrong with a body; 400 where it is no JSON, 422 otherwise."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Refused(400, f"not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    place = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = "there is no such field"
    return Refused(422, f"{place}: {said}" if place else said)


def answer(refused: Refused) -> Response:
    """Give the response."""
    line = " ".join(str(refused).split())[:_LONGEST]
    # Not to UTF-8 at once: what a client sent may hold half of a surrogate pair.
    body = json.dumps({"error": line}).encode("ascii")
    return Response(body, refused.status, refused.headers, "application/json")
