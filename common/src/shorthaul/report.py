"""One self-contained HTML page: every claim, every figure, the machine, the noise."""

import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shorthaul import atomic, claims, plots
from shorthaul.experiments import Summary
from shorthaul.records import Run, latest


@dataclass(frozen=True)
class ArtifactReport:
    """What the page says of one artifact; `runs` are those whose figures are shown."""

    name: str
    title: str
    about: str
    verdicts: Sequence[claims.Verdict]
    runs: Sequence[Run]


def collect(
    root: Path,
    artifact: str,
    claims_path: Path,
    title: str,
    about: str = "",
    scale: str | None = None,
) -> ArtifactReport:
    """Gather an artifact's verdicts and its newest run of each experiment.

    Args:
        root: Folder of all runs.
        artifact: Import name.
        claims_path: Its `claims.toml`; one that cannot be read is a UserError.
        title: Heading on the page.
        about: A sentence or two below it.
        scale: Only runs of this scale; None takes the newest of any.
    """
    verdicts = claims.check(claims.load(claims_path), root, artifact, scale)
    names = [verdict.claim.experiment for verdict in verdicts]
    names += sorted(path.name for path in (Path(root) / artifact).glob("*/"))
    newest = [latest(root, artifact, name, scale) for name in dict.fromkeys(names) if name]
    return ArtifactReport(artifact, title, about, verdicts, [run for run in newest if run])


def write(out: Path, artifacts: Sequence[ArtifactReport]) -> Path:
    """Write the page of what `collect` gave, and give its path.

    It needs nothing but itself: no script runs; no font, no image is fetched.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("shorthaul"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(show=claims.show, minutes=_minutes, date=_date, gib=_gib)
    sections = [
        {
            "report": artifact,
            "verdicts": claims.ordered(artifact.verdicts),
            "tally": claims.tally(artifact.verdicts),
            "experiments": [_experiment(artifact.name, run) for run in artifact.runs],
        }
        for artifact in artifacts
    ]
    page = environment.get_template("report.html.j2").render(
        sections=sections,
        tally=claims.tally([verdict for artifact in artifacts for verdict in artifact.verdicts]),
        environments=_environments(sections),
        written=datetime.now(UTC),
    )
    atomic.write_text(out, page)
    return out


def _experiment(artifact: str, run: Run) -> dict[str, Any]:
    from markupsafe import Markup

    record = run.summary()
    summary = Summary.from_json(record)
    anchor = f"{artifact}-{record['experiment']}"
    figures = [
        {
            "figure": figure,
            "svg": Markup(plots.svg(figure, prefix=f"{anchor}-")),
            "csv": _link(plots.csv(figure)),
        }
        for figure in summary.figures
    ]
    tables = [{"table": table, "csv": _link(plots.table_csv(table))} for table in summary.tables]
    return {
        **{"anchor": anchor, "record": record, "summary": summary},
        **{"figures": figures, "tables": tables},
    }


def _environments(sections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group the experiments by the machine, commit and versions they ran with."""
    groups: dict[str, dict[str, Any]] = {}
    for section in sections:
        for experiment in section["experiments"]:
            record = experiment["record"]
            machine = {k: v for k, v in record["machine"].items() if k != "load"}
            key = str((machine, record["commit"], record["dirty"], record["versions"]))
            group = groups.setdefault(key, {"record": record, "names": []})
            group["names"].append(record["experiment"])
    return list(groups.values())


def _link(csv: str) -> str:
    return "data:text/csv;charset=utf-8," + urllib.parse.quote(csv)


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _date(moment: datetime | str) -> str:
    value = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return f"{value:%Y-%m-%d %H:%M} UTC"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
