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
    """Gather an artifact's verdicts and its newest run (of a scale, or any) of each experiment.

    `about` is a sentence below the `title`. Claims that cannot be read are a UserError.
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

    loader, strict = jinja2.PackageLoader("shorthaul"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=strict)
    environment.filters.update(show=claims.show, date=_date)
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
    return {
        "anchor": anchor,
        "record": record,
        "summary": summary,
        "figures": [
            (figure, Markup(plots.svg(figure, prefix=f"{anchor}-")), _link(plots.csv(figure)))
            for figure in summary.figures
        ],
        "tables": [(table, _link(plots.table_csv(table))) for table in summary.tables],
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


def _date(moment: datetime | str) -> str:
    value = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return f"{value:%Y-%m-%d %H:%M} UTC"
