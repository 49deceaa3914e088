"""Streaming runbooks of the big-ann benchmarks: what to insert, delete, replace, when to search.

A vector's *id* is its row in the data set. Its *tag* is what a search returns: the id it was
inserted under, which a replace binds to another id's vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeGuard

from shorthaul.errors import UserError

from navis.formats._files import need, size_of
from navis.formats._ranges import Ranges

_RANGES: dict[str, tuple[str, ...]] = {
    "insert": ("start", "end"),
    "delete": ("start", "end"),
    "search": (),
    "replace": ("tags_start", "tags_end", "ids_start", "ids_end"),
}
OPERATIONS = tuple(_RANGES)
_NO_STEPS = ("max_pts", "gt_url")


@dataclass(frozen=True)
class Insert:
    """Insert rows [start, end) of the data set under tags equal to their ids."""

    operation: ClassVar[str] = "insert"
    start: int
    end: int


@dataclass(frozen=True)
class Delete:
    """Delete tags [start, end)."""

    operation: ClassVar[str] = "delete"
    start: int
    end: int


@dataclass(frozen=True)
class Search:
    """Answer all queries."""

    operation: ClassVar[str] = "search"


@dataclass(frozen=True)
class Replace:
    """Bind tags [tags_start, tags_end) to the vectors of ids [ids_start, ids_end)."""

    operation: ClassVar[str] = "replace"
    tags_start: int
    tags_end: int
    ids_start: int
    ids_end: int


Operation: TypeAlias = Insert | Delete | Search | Replace


@dataclass(frozen=True)
class Step:
    """One step, with the number that the file gives it: truth files are named after it."""

    number: int
    does: Operation

    def truth_name(self, k: int = 100) -> str:
        """What the benchmarks call the truth set of a search in this step."""
        return f"step{self.number}.gt{k}"


@dataclass(frozen=True)
class Runbook:
    """A checked sequence of steps.

    Attributes:
        dataset: name of the data set.
        max_pts: upper bound of the vectors that are there at any one time.
        steps: in the order of their numbers, which follow each other.
        gt_url: where the step truths are published, "" if the file does not say.
        rows: rows the data set needs.
        peak: largest number of vectors that are there at any one time.
    """

    dataset: str
    max_pts: int
    steps: tuple[Step, ...]
    gt_url: str
    rows: int
    peak: int


def load_runbook(path: Path | str, dataset: str | None = None) -> Runbook:
    """Read and check a runbook.

    Args:
        path: a YAML file: ``{dataset: {max_pts: n, 1: {operation: insert, start: 0, end: 9}, …}}``;
            steps are numbered from 1 or from 0.
        dataset: which one, where the file has several.

    Raises:
        UserError: The file is no runbook, or a step cannot be done after those before it; the
            message names the step.
    """
    path = Path(path)
    yaml = need("yaml", "PyYAML", f"{path}: a runbook")
    size_of(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _strict(yaml))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: not a runbook; it starts with the data set's name")
    names = ", ".join(str(name) for name in content)
    if dataset is None and len(content) > 1:
        raise UserError(f"{path}: several data sets; name one of: {names}")
    name = next(iter(content)) if dataset is None else dataset
    if name not in content:
        raise UserError(f"{path}: no data set {name!r}; name one of: {names}")
    if not isinstance(content[name], Mapping):
        raise UserError(f"{path}: {name} holds no steps; write max_pts and numbered steps below it")
    return _runbook(f"{path}: {name}", str(name), content[name])


def _strict(yaml: Any) -> Any:
    """The safe loader, except that it takes a step that is there twice for an error."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key!r} is there twice", key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    return Loader


def _runbook(where: str, dataset: str, entries: Mapping[Any, Any]) -> Runbook:
    max_pts = entries.get("max_pts")
    if not _whole(max_pts) or max_pts < 1:
        raise UserError(f"{where}: max_pts is {max_pts!r}; give the largest number of vectors")
    unknown = [key for key in entries if not _whole(key) and key not in _NO_STEPS]
    if unknown:
        raise UserError(
            f"{where}: unknown key {unknown[0]!r}; steps are numbers, others {_NO_STEPS}"
        )
    numbers = sorted(key for key in entries if _whole(key))
    if not numbers or numbers[0] not in (0, 1):
        first = numbers[0] if numbers else "missing"
        raise UserError(f"{where}: the first step is {first}; number the steps from 1")
    for expected, number in enumerate(numbers, numbers[0]):
        if number != expected:
            raise UserError(f"{where}: step {expected} is missing; number the steps without gaps")
    steps = tuple(Step(n, _operation(f"{where}: step {n}", entries[n])) for n in numbers)
    rows, peak = _replay(where, steps, max_pts)
    return Runbook(dataset, max_pts, steps, str(entries.get("gt_url") or ""), rows, peak)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _operation(where: str, entry: Any) -> Operation:
    if not isinstance(entry, Mapping) or "operation" not in entry:
        raise UserError(f"{where}: no operation; write one of {', '.join(OPERATIONS)}")
    kind = entry["operation"]
    if kind not in _RANGES:
        raise UserError(f"{where}: unknown operation {kind!r}; use {', '.join(OPERATIONS)}")
    keys = _RANGES[kind]
    unknown = [key for key in entry if key not in ("operation", *keys)]
    if unknown:
        takes = ", ".join(keys) or "nothing"
        raise UserError(f"{where}: {kind} has an unknown key {unknown[0]!r}; it takes {takes}")
    values = {}
    for key in keys:
        if not _whole(entry.get(key)) or entry[key] < 0:
            raise UserError(f"{where}: {kind} has {key} {entry.get(key)!r}; give a number from 0")
        values[key] = int(entry[key])
    for start, end in zip(keys[::2], keys[1::2], strict=True):
        if values[start] >= values[end]:
            raise UserError(
                f"{where}: {kind} has {start} {values[start]} and {end} {values[end]}; "
                f"{end} is one past the last and must be larger"
            )
    makes: dict[str, Any] = {"insert": Insert, "delete": Delete, "replace": Replace}
    return Search() if kind == "search" else makes[kind](**values)


def _replay(where: str, steps: tuple[Step, ...], max_pts: int) -> tuple[int, int]:
    """Check each step against what is there after those before it; give `rows` and `peak`."""
    there, rows, live, peak = Ranges(), 0, 0, 0
    for step in steps:
        does, at = step.does, f"{where}: step {step.number}"
        if isinstance(does, Insert):
            there.add(does.start, does.end, at)
            live += does.end - does.start
            rows = max(rows, does.end)
        elif isinstance(does, Delete):
            there.remove(does.start, does.end, at)
            live -= does.end - does.start
        elif isinstance(does, Replace):
            tags, ids = does.tags_end - does.tags_start, does.ids_end - does.ids_start
            if tags != ids:
                raise UserError(f"{at}: replaces {tags} tags by {ids} ids; give as many of each")
            there.find(does.tags_start, does.tags_end, at)
            rows = max(rows, does.ids_end)
        peak = max(peak, live)
        if live > max_pts:
            raise UserError(f"{at}: {live} vectors are there, max_pts is {max_pts}; raise max_pts")
    return rows, peak
