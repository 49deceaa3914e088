"""What vectors carry for filtered search (labels and a value), and the filters that ask for it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from shorthaul.errors import UserError

from navis.formats.filters import Labels

MAX_LABELS = 4096  # of one vector
_TOP = 2**32 - 1

# One integer per vector (negative: none), a list of labels per vector, or `formats.Labels`.
LabelsLike = npt.ArrayLike | Sequence[Iterable[int]] | Labels


@dataclass(frozen=True)
class Filter:
    """Which vectors a search may give: those for which all the conditions named hold.

    Attributes:
        any_of: The vector has at least one of these labels.
        all_of: It has all of these.
        none_of: It has none of these.
        between: Its value is at least the first and at most the second; a vector without a value
            is never in between. Infinities are allowed.
    """

    any_of: tuple[int, ...] = ()
    all_of: tuple[int, ...] = ()
    none_of: tuple[int, ...] = ()
    between: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Take any iterables of whole numbers, and check them."""
        for name in ("any_of", "all_of", "none_of"):
            object.__setattr__(self, name, _label_tuple(name, getattr(self, name)))
        if self.between is not None:
            object.__setattr__(self, "between", _range(self.between))

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read a filter as the command line has it: ``any_of=3,5 none_of=7 between=0:10``."""
        found: dict[str, Any] = {}
        for part in text.split():
            name, _, given = part.partition("=")
            if name not in ("any_of", "all_of", "none_of", "between") or name in found or not given:
                raise UserError(
                    f"filter {text!r}: write any_of=3,5 all_of=1 none_of=7 between=0:10, each "
                    "at most once"
                )
            try:
                if name == "between":
                    low, _, high = given.partition(":")
                    found[name] = (float(low or "-inf"), float(high or "inf"))
                else:
                    found[name] = [int(label) for label in given.split(",")]
            except ValueError:
                raise UserError(f"filter {text!r}: {part!r} holds no numbers") from None
        return cls(**found)


def _label_tuple(name: str, given: Any) -> tuple[int, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise UserError(f"{name} {given!r}: give a list of labels")
    labels = []
    for label in given:
        try:
            number = operator.index(label)
        except TypeError:
            raise UserError(f"{name}: label {label!r} is no whole number") from None
        if isinstance(label, bool | np.bool_) or not 0 <= number <= _TOP:
            raise UserError(f"{name}: label {label!r} is not in 0 to {_TOP}")
        labels.append(number)
    return tuple(labels)


def _range(given: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in given)
    except (TypeError, ValueError):
        raise UserError(f"between {given!r}: give two numbers, the least and the most") from None
    if math.isnan(low) or math.isnan(high) or low > high:
        raise UserError(f"between {given!r}: the first number must not be above the second")
    return low, high


def label_rows(labels: LabelsLike | None, n: int) -> tuple[Any, Any]:
    """Give the labels of n vectors as the engine takes them: starts and labels, or None twice."""
    if labels is None:
        return None, None
    if isinstance(labels, Labels):
        if labels.names:
            raise UserError(
                f"the labels are names, like {labels.names[0]!r}: number them, for another file "
                "would number the same names differently"
            )
        starts, flat = labels.indptr, labels.indices
    elif isinstance(labels, np.ndarray) or _is_flat(labels):
        given = np.asarray(labels)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise UserError(
                f"labels of shape {given.shape} and type {given.dtype}: give one whole number per "
                "vector, or a list of them"
            )
        has = given >= 0
        starts, flat = np.concatenate([[0], np.cumsum(has)]), given[has]
    else:
        rows = [_label_tuple(f"labels of vector {i}", row) for i, row in enumerate(labels)]  # type: ignore[arg-type]
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        flat = np.array([label for row in rows for label in row], np.int64)
    if len(starts) != n + 1:
        raise UserError(f"labels of {len(starts) - 1} vectors for {n}: give one entry each")
    if flat.size and int(flat.max()) > _TOP:
        raise UserError(f"label {int(flat.max())}: use 0 to {_TOP}")
    return (
        np.ascontiguousarray(starts, dtype=np.uint64),
        np.ascontiguousarray(flat, dtype=np.uint32),
    )


def _is_flat(labels: Any) -> bool:
    """Whether a sequence holds numbers rather than lists of them; an empty one does."""
    first = next(iter(labels), 0)
    return not isinstance(first, Iterable)


def value_rows(values: npt.ArrayLike | None, n: int) -> Any:
    """Give the values of n vectors as float64, or None; NaN stands for none."""
    if values is None:
        return None
    try:
        given = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("values: give one number per vector, NaN for none") from None
    if given.shape != (n,):
        raise UserError(f"values of shape {given.shape} for {n} vectors: give one number each")
    return given


def core_filters(given: Filter | Sequence[Filter] | None, n: int) -> list[Any]:
    """Give filters as the engine takes them: none, one for all n queries, or one each."""
    from navis import _core

    if given is None:
        return []
    filters = [given] if isinstance(given, Filter) else list(given)
    for one in filters:
        if not isinstance(one, Filter):
            raise UserError(f"filter {one!r}: give a navis.Filter, or one per query")
    if not isinstance(given, Filter) and len(filters) != n:
        raise UserError(f"{len(filters)} filters for {n} queries: give one, or one each")
    if filters == [Filter()]:
        return []
    out = []
    for one in filters:
        core = _core.Filter()
        core.any_of, core.all_of, core.none_of = one.any_of, one.all_of, one.none_of
        core.between = one.between
        out.append(core)
    return out
