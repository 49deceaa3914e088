"""The JSON bodies. Fields that are not named here are refused, and so are numbers in quotes.

Bounds that a server sets by flags are checked by the handlers. Lists stop at the first bad element:
a body of a million of them must not make a million messages.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from navis import filters
from navis.session import Durability

LARGEST_ID = 2**64 - 2  # the one above stands for none

Id = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Finite], Field(min_length=1, fail_fast=True)]
Vectors = Annotated[list[Vector], Field(min_length=1, fail_fast=True)]
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Label = Annotated[int, Field(ge=0, le=2**32 - 1)]
Labels = Annotated[list[Label], Field(max_length=filters.MAX_LABELS, fail_fast=True)]


class Question(BaseModel):
    """A request's body."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Filter(Question):
    """Which vectors a search may give: those for which all the conditions named hold."""

    any_of: Labels = Field(default=[], description="At least one of these labels.")
    all_of: Labels = Field(default=[], description="All of these.")
    none_of: Labels = Field(default=[], description="None of these.")
    between: Annotated[list[Finite | None], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Its value is at least the first and at most the second; null: no bound. A "
        "vector without a value is never in between.",
    )

    def of_index(self) -> filters.Filter:
        """Give it as the index takes it."""
        between = None
        if self.between is not None:
            low, high = self.between
            between = (-inf if low is None else low, inf if high is None else high)
        return filters.Filter(self.any_of, self.all_of, self.none_of, between)  # type: ignore[arg-type]


class Search(Question):
    """One vector or several, and how to search."""

    vectors: Vectors | None = Field(
        default=None, description="Queries, each of the index's dimension."
    )
    vector: Vector | None = Field(default=None, description="A single query, instead of `vectors`.")
    k: int = Field(default=10, ge=1, description="Neighbours per query.")
    L: int | None = Field(
        default=None,
        ge=1,
        description="Search list, at least k; max(2k, 40) by default. Longer finds more and "
        "reads more.",
    )
    filter: Filter | None = Field(
        default=None, description="Of all queries: `any_of`, `all_of`, `none_of`, `between`."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "vector": [0.12, -0.5, 0.33],
                    "k": 2,
                    "L": 40,
                    "filter": {"any_of": [3, 5], "between": [0, None]},
                }
            ]
        }
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.vectors is None) == (self.vector is None):
            raise ValueError("give vectors, or vector, and not both")
        return self


class Insert(Question):
    """Vectors and their ids; an id that is there is replaced, its labels and value too."""

    ids: Ids = Field(description="0 to `2**64 - 2`, no duplicates.")
    vectors: Vectors = Field(description="One per id, each of the index's dimension.")
    labels: Annotated[list[Labels], Field(fail_fast=True)] | None = Field(
        default=None, description="A list per vector, for filters; whole numbers below `2**32`."
    )
    values: Annotated[list[Finite | None], Field(fail_fast=True)] | None = Field(
        default=None, description="A number per vector, for filters by range; null: none."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ids": [7, 8],
                    "vectors": [[0.12, -0.5, 0.33], [0.9, 0.1, 0.0]],
                    "labels": [[3], []],
                    "values": [2.5, None],
                }
            ]
        }
    )


class Delete(Question):
    """Ids to delete; those that are not there are counted and otherwise ignored."""

    ids: Ids = Field(description="0 to `2**64 - 2`.")

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [7, 8]}]})


class Neighbours(BaseModel):
    """A row per query, nearest first; shorter than k only where fewer vectors match."""

    ids: list[list[int]]
    distances: list[list[float]] = Field(
        description="Squared L2, 1 - cosine, or minus the inner product: smaller is nearer."
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ids": [[8, 3]], "distances": [[0.25, 0.5]]}]}
    )


class Inserted(BaseModel):
    """Acknowledged: the engine's insert has returned."""

    inserted: int = Field(description="Rows, those that replaced others among them.")
    replaced: int = Field(description="Rows whose id was there.")
    durability: Durability = Field(
        description="What the acknowledgement means: `sync` is on the disk; `group` survives the "
        "end of the process, and loss of power after a short window; `none` survives neither "
        "before the next flush."
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inserted": 2, "replaced": 0, "durability": "sync"}]}
    )


class Deleted(BaseModel):
    """In no result from here on."""

    deleted: int
    unknown: int = Field(description="Ids that were not there.")
    durability: Durability


class Flushed(BaseModel):
    """Everything acknowledged before survives the loss of power."""

    durable: Literal[True]


class Stored(BaseModel):
    """A vector as it is stored."""

    id: int
    vector: list[float]
    labels: list[int]
    value: float | None


class Stats(BaseModel):
    """The index's sizes and the engine's counters since it was opened."""

    dim: int
    metric: str
    dtype: str
    layout: str
    durability: Durability
    readonly: bool
    index: dict[str, Any]
    counters: dict[str, int]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class Wrong(BaseModel):
    """Why a request was refused, in one line."""

    error: str

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": "k 0: Input should be greater than 0"}]}
    )


_REFERENCE = "#/components/schemas/{model}"


def reference(model: type[Question]) -> dict[str, str]:
    """Give the reference to a body's schema, which is in `schemas()`."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def schemas() -> dict[str, Any]:
    """Give the schemas of the bodies that handlers read themselves, for OpenAPI's components."""
    bodies: list[type[Question]] = [Search, Insert, Delete]
    whole = models_json_schema([(b, "validation") for b in bodies], ref_template=_REFERENCE)[1]
    return dict(whole["$defs"])
