"""Experiments: what they are, what they return, how one is run and recorded.

An experiment returns a `Summary`; it draws nothing and writes nothing but metrics.
"""

import importlib
import pkgutil
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import tyro
from shorthaul import atomic, cli, logs, plots
from shorthaul.errors import UserError
from shorthaul.records import Run, as_toml

_log = logs.get(__name__)


@dataclass(frozen=True)
class Series:
    """One system's values in a figure; its name decides its colour.

    `y`, `low` and `high` (the ends of error bars) have one value per entry of the figure's `x`,
    None where there is none. A `kind` other than `measured` is drawn so that it shows.
    """

    name: str
    y: list[float | None]
    kind: Literal["measured", "virtual", "simulated", "predicted", "paper"] = "measured"
    low: list[float | None] | None = None
    high: list[float | None] | None = None


@dataclass(frozen=True)
class Figure:
    """A figure as data; `plots` draws it.

    Attributes:
        id: File name and anchor.
        style: `stacked` is bars made of parts.
        x: Categories or numbers.
        x_label: Quantity and unit, as is `y_label`.
        series: The systems, each with as many values as there are `x` (else ValueError).
        note: What a reader must know, such as why the paper's values differ.
        log_x: Logarithmic, to base 2.
    """

    id: str
    title: str
    style: Literal["bars", "lines", "stacked", "points"]
    x: list[str | float]
    x_label: str
    y_label: str
    series: list[Series]
    note: str = ""
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        for series in self.series:
            for values in (series.y, series.low, series.high):
                if values is not None and len(values) != len(self.x):
                    size = f"{len(values)} values for {len(self.x)} x"
                    raise ValueError(f"figure {self.id}, series {series.name}: {size}")


@dataclass(frozen=True)
class Table:
    """A table; rows are lists of cells in the order of `columns`."""

    id: str
    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.id}: {len(row)} cells for {len(self.columns)}")


@dataclass(frozen=True)
class Summary:
    """What an experiment found.

    Attributes:
        metrics: Nested mapping of numbers, words and lists; claims name entries by dotted paths.
        notes: Sentences for the reader.
        emulated: What stands in for real hardware, in words.
        noise: A/A noise of the machine during the run, as `stats.noise` gives it.
    """

    metrics: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    emulated: str | None = None
    noise: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the summary as plain data."""
        return dict(atomic.plain(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read `to_json`'s data, or a whole `summary.json`, back."""
        figures = [
            Figure(**{**figure, "series": [Series(**series) for series in figure["series"]]})
            for figure in data.get("figures", [])
        ]
        tables = [Table(**table) for table in data.get("tables", [])]
        own = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**own, "figures": figures, "tables": tables})


@dataclass(frozen=True)
class Context:
    """What an experiment is given: the settings of its scale, with overrides, and where to write.

    `run.metric(...)` appends to the run's log. `workdir` is scratch: kept when the run fails, so
    that a second run of the same stamp can continue from it, and removed when it succeeds.
    """

    scale: str
    settings: dict[str, Any]
    seed: int
    run: Run
    workdir: Path


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper, or one of ours.

    Attributes:
        id: Its name, that of its module.
        source: Where the paper has it, or `ours`.
        scales: Settings per scale.
        minutes: Expected minutes per scale on two cores.
        gigabytes: Expected peak of disk and memory per scale; absent means below 1.
        needs: Hardware a scale requires, in words, said before it starts.
    """

    id: str
    title: str
    source: str
    run: Callable[[Context], Summary]
    scales: dict[str, dict[str, Any]]
    minutes: dict[str, float]
    gigabytes: dict[str, float] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)

    def settings(self, scale: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give a scale's settings with overrides; an unknown scale or key is a UserError."""
        if scale not in self.scales:
            known = cli.nearest(scale, self.scales)
            raise UserError(f"{self.id} has no scale {scale!r}{known}")
        for key in overrides or {}:
            if key not in self.scales[scale]:
                known = cli.nearest(key, self.scales[scale])
                raise UserError(f"{self.id} has no setting {key!r}{known}")
        return {**self.scales[scale], **(overrides or {})}


def registry(package: str) -> dict[str, Experiment]:
    """Import every module of a package and take its `EXPERIMENT`, if it has one, by id."""
    found: dict[str, Experiment] = {}
    for entry in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{entry.name}")
        experiment = getattr(module, "EXPERIMENT", None)
        if isinstance(experiment, Experiment):
            if experiment.id in found:
                raise ValueError(f"two experiments are called {experiment.id}")
            found[experiment.id] = experiment
    return dict(sorted(found.items()))


def get(experiments: Mapping[str, Experiment], id: str) -> Experiment:
    """Look an experiment up; an unknown id is a UserError with the nearest known one."""
    if id not in experiments:
        near = cli.nearest(id, experiments) or "; --list names them"
        raise UserError(f"unknown experiment {id!r}{near}")
    return experiments[id]


def run(
    experiment: Experiment,
    *,
    artifact: str,
    scale: str,
    seed: int = 0,
    root: Path = Path("runs"),
    stamp: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Run an experiment and record it.

    A run folder named `stamp` that already holds a summary of the same configuration is returned
    as it is; without a summary, work continues in it.

    Returns:
        The run, with `summary.json`, every figure as CSV and SVG, every table as CSV. A run that
        fails raises and leaves no summary.

    Raises:
        UserError: Unknown scale or setting, or the stamp holds another configuration.
    """
    settings = experiment.settings(scale, overrides)
    names = {"artifact": artifact, "experiment": experiment.id, "scale": scale}
    config = {**names, "seed": seed, "settings": settings}
    if stamp is not None:
        known = Run(Path(root) / artifact / experiment.id / stamp)
        if known.succeeded and known.config() == as_toml(config):
            _log.info("%s: stamp %s is already there", experiment.id, stamp)
            return known
    if scale in experiment.needs:
        print(f"{experiment.id} --scale {scale} needs: {experiment.needs[scale]}", file=sys.stderr)
    record = Run.create(**names, config=config, seed=seed, root=root, stamp=stamp)
    workdir = record.path / "work"
    workdir.mkdir(exist_ok=True)
    with record:
        summary = experiment.run(Context(scale, settings, seed, record, workdir))
        for figure in summary.figures:
            record.write_text(f"figures/{figure.id}.csv", plots.csv(figure))
            record.write_text(f"figures/{figure.id}.svg", plots.svg(figure))
        for table in summary.tables:
            record.write_text(f"tables/{table.id}.csv", plots.table_csv(table))
        record.write_summary({"title": experiment.title, **summary.to_json()})
    shutil.rmtree(workdir)
    return record


def listing(experiments: Mapping[str, Experiment]) -> str:
    """Give a text table of experiments: id, minutes per scale, title."""
    rows = [
        (e.id, " ".join(f"{scale} {m:g} min" for scale, m in e.minutes.items()), e.title, e.source)
        for e in experiments.values()
    ]
    id_width, cost_width = (max((len(row[i]) for row in rows), default=0) for i in range(2))
    return "\n".join(f"{i:<{id_width}}  {c:<{cost_width}}  {t} ({s})" for i, c, t, s in rows)


@dataclass(kw_only=True)
class Reproduce(cli.Common):
    """Run an experiment at a scale and record it; an artifact subclasses this with its names."""

    artifact: ClassVar[str]
    package: ClassVar[str]

    id: tyro.conf.Positional[str | None] = None
    """Experiment, or all; without one they are listed."""
    scale: str = "smoke"
    """smoke, small or paper."""
    list: bool = False
    """List the experiments with minutes per scale, and stop."""
    dry_run: bool = False
    """Say what would run with which settings, and stop."""
    root: Path = Path("runs")
    """Folder of all runs."""
    stamp: str | None = None
    """Name of the run folder; the same name again resumes."""

    def run(self) -> None:
        """List, plan or run."""
        chosen = registry(self.package)
        if self.list or self.id is None:
            listed = {e.id: {"title": e.title, "minutes": e.minutes} for e in chosen.values()}
            cli.emit(listed, self.json, listing(chosen))
            return
        if self.id == "all":
            chosen = {id: e for id, e in chosen.items() if self.scale in e.scales}
        else:
            chosen = {self.id: get(chosen, self.id)}
        planned = {id: e.settings(self.scale) for id, e in chosen.items()}
        if self.dry_run:
            cli.emit(planned, self.json, listing(chosen))
            return
        where: dict[str, Any] = {"artifact": self.artifact, "root": self.root, "stamp": self.stamp}
        runs = {
            id: run(experiment, scale=self.scale, seed=self.seed, **where)
            for id, experiment in chosen.items()
        }
        found = {id: record.summary()["metrics"] for id, record in runs.items()}
        cli.emit(found, self.json, "\n".join(str(record.path) for record in runs.values()))
