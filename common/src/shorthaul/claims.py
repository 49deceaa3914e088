"""Claims: what an artifact says of itself, checked against what its runs found.

`claims.toml` holds `[[claim]]` tables; `check` compares each with the newest run of its experiment.
"""

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shorthaul.cli import load_preset
from shorthaul.errors import UserError
from shorthaul.records import latest

if TYPE_CHECKING:
    from shorthaul.experiments import Experiment

Scale = Literal["smoke", "small", "paper"]
Status = Literal["passed", "failed", "not run", "not gated", "not possible"]


@dataclass(frozen=True)
class Expect:
    """What a metric must be; one of the forms below.

    Attributes:
        exact: Equal to this value.
        rel: Within this relative distance of `of`.
        of: The value `rel` is relative to.
        min: At least this.
        max: At most this; may stand beside `min`.
        monotone: `increasing` or `decreasing`, strictly; the metric is a list.

    `rel`, `min` and `max` hold for every entry when the metric is a list.
    """

    exact: Any = None
    rel: float | None = None
    of: float | None = None
    min: float | None = None
    max: float | None = None
    monotone: Literal["increasing", "decreasing"] | None = None

    def __post_init__(self) -> None:
        given = {name for name, value in vars(self).items() if value is not None}
        if given not in ({"exact"}, {"rel", "of"}, {"min"}, {"max"}, {"min", "max"}, {"monotone"}):
            raise UserError(
                f"expect has {', '.join(sorted(given)) or 'nothing'}; "
                "it is exact, rel with of, min, max, min with max, or monotone"
            )

    def holds(self, value: Any) -> bool:
        """Tell whether a found value is as expected."""
        if self.exact is not None:
            return _same(value, self.exact)
        values = value if isinstance(value, list) else [value]
        if not values or not all(_number(v) for v in values):
            return False
        if self.monotone is not None:
            sign = 1 if self.monotone == "increasing" else -1
            steps = itertools.pairwise(values)
            return len(values) > 1 and all(sign * (b - a) > 0 for a, b in steps)
        if self.rel is not None and self.of is not None:
            room = self.rel * abs(self.of)
            return all(abs(v - self.of) <= room for v in values)
        low = float("-inf") if self.min is None else self.min
        high = float("inf") if self.max is None else self.max
        return all(low <= v <= high for v in values)

    def __str__(self) -> str:
        if self.exact is not None:
            return f"= {show(self.exact)}"
        if self.monotone is not None:
            return self.monotone
        if self.rel is not None:
            return f"{show(self.of)} ± {100 * self.rel:g} %"
        if self.min is not None and self.max is not None:
            return f"{show(self.min)} to {show(self.max)}"
        return f"≥ {show(self.min)}" if self.min is not None else f"≤ {show(self.max)}"


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: Its name.
        says: The claim, a sentence.
        source: Where it comes from.
        experiment: Which experiment shows it.
        metric: Dotted path into the summary's `metrics`.
        expect: What the metric must be.
        paper: The paper's own figure, in words.
        kind: `count` and `quality` are gated hard; `time` is a ratio beside the A/A noise.
        headline: Shown first, and run by the demo.
        scales: Scales at which it is gated.
        reproduced: `real`, `virtual` or `simulated`; or `impossible` here, for the reason `why`.
        why: Why it is emulated or impossible.
    """

    id: str
    says: str
    source: str
    paper: str
    experiment: str = ""
    metric: str = ""
    expect: Expect | None = None
    kind: Literal["count", "time", "quality"] = "count"
    headline: bool = False
    scales: tuple[Scale, ...] = ("smoke", "small", "paper")
    reproduced: Literal["real", "virtual", "simulated", "impossible"] = "real"
    why: str = ""

    def __post_init__(self) -> None:
        if self.reproduced == "impossible":
            if not self.why:
                raise UserError(f"claim {self.id}: impossible, but why is missing")
        elif not (self.experiment and self.metric and self.expect):
            raise UserError(f"claim {self.id}: experiment, metric and expect are needed")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: The claim.
        status: What became of it.
        value: The value found, or None.
        run: Folder of the run it was found in, or None.
        scale: Scale of that run, or None.
        detail: Why it failed or did not run, in words.
        noise: The run's A/A noise (`stats.noise`), or None.
    """

    claim: Claim
    status: Status
    value: Any = None
    run: Path | None = None
    scale: str | None = None
    detail: str = ""
    noise: Mapping[str, Any] | None = None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def show(value: Any) -> str:
    """Give a value in a form short enough for a table cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")  # a narrow space keeps counts readable
    if isinstance(value, list):
        shown = ", ".join(show(v) for v in value[:6])
        return f"{shown}, … ({len(value)})" if len(value) > 6 else shown
    return str(value)


def load(path: Path) -> list[Claim]:
    """Read a claims file.

    Raises:
        UserError: It is missing or no TOML, a key is unknown, a value has a wrong type, an id
            occurs twice.
    """
    try:
        document = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not TOML ({error})") from error
    if set(document) - {"claim"}:
        raise UserError(f"{path}: unknown key {min(set(document) - {'claim'})!r}; known: claim")
    found: dict[str, Claim] = {}
    for index, entry in enumerate(document.get("claim", []), 1):
        name = entry.get("id", f"number {index}")
        try:
            # A mapping here would be flattened as if it were flags, and an exact value may be one.
            claim = load_preset(Claim, None, entry)
        except UserError as error:
            raise UserError(f"{path}: claim {name}: {error}") from error
        if claim.id in found:
            raise UserError(f"{path}: two claims are called {claim.id!r}")
        found[claim.id] = claim
    return list(found.values())


def find(metrics: Any, path: str) -> Any:
    """Follow a dotted path through mappings and lists.

    Raises:
        KeyError: There is nothing there.
    """
    for part in path.split("."):
        if isinstance(metrics, list) and part.lstrip("-").isdigit() and int(part) < len(metrics):
            metrics = metrics[int(part)]
        elif isinstance(metrics, Mapping) and part in metrics:
            metrics = metrics[part]
        else:
            raise KeyError(part)
    return metrics


def check(
    claims: Iterable[Claim], root: Path, artifact: str, scale: str | None = None
) -> list[Verdict]:
    """Compare claims with the newest run of their experiments.

    Args:
        claims: What to check.
        root: Folder of all runs.
        artifact: Import name of the artifact.
        scale: Only runs of this scale; None takes the newest of any.

    Returns:
        One verdict per claim, in order.
    """
    return [_verdict(claim, root, artifact, scale) for claim in claims]


def _verdict(claim: Claim, root: Path, artifact: str, scale: str | None) -> Verdict:
    if claim.reproduced == "impossible" or claim.expect is None:
        return Verdict(claim, "not possible", detail=claim.why)
    run = latest(root, artifact, claim.experiment, scale)
    if run is None:
        at = f" at scale {scale}" if scale else ""
        return Verdict(claim, "not run", detail=f"{claim.experiment} has no finished run{at}")
    summary = run.summary()
    where = {"run": run.path, "scale": summary["scale"], "noise": summary.get("noise")}
    gated = summary["scale"] in claim.scales
    try:
        value = find(summary["metrics"], claim.metric)
    except KeyError as error:
        detail = f"the summary has no {claim.metric} (at {error.args[0]!r})"
        return Verdict(claim, "failed" if gated else "not gated", detail=detail, **where)
    if not gated:
        return Verdict(claim, "not gated", value, **where)
    if claim.expect.holds(value):
        return Verdict(claim, "passed", value, **where)
    detail = f"{show(value)} is not {claim.expect}"
    return Verdict(claim, "failed", value, detail=detail, **where)


def tally(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count verdicts by status."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.status] = counts.get(verdict.status, 0) + 1
    return counts


def _ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda verdict: not verdict.claim.headline)


def table(verdicts: Sequence[Verdict]) -> str:
    """Give an aligned text table for terminals, headline claims first, with the tally below."""
    words = {"passed": "PASS", "failed": "FAIL"}
    rows = [["", "claim", "found", "expected", "paper", "scale"]]
    for verdict in _ordered(verdicts):
        claim = verdict.claim
        rows.append(
            [
                words.get(verdict.status, verdict.status),
                claim.id,
                show(verdict.value),
                str(claim.expect or "-"),
                _short(claim.paper),
                verdict.scale or "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    counts = tally(verdicts)
    lines.append("")
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()) or "no claims")
    return "\n".join(lines)


def _short(text: str, width: int = 32) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Give the verdicts as a Markdown table."""
    return _markdown_table(
        ["claim", "verdict", "found", "expected", "paper", "scale"],
        (
            [
                verdict.claim.says,
                f"**{verdict.status}**" if verdict.status == "failed" else verdict.status,
                show(verdict.value),
                str(verdict.claim.expect or "-"),
                verdict.claim.paper,
                verdict.scale or "-",
            ]
            for verdict in _ordered(verdicts)
        ),
    )


def artifact_md(
    claims: Iterable[Claim], experiments: Mapping[str, "Experiment"], command: str
) -> str:
    """Render the table of `ARTIFACT.md`.

    Args:
        claims: The artifact's claims.
        experiments: Its experiments by id, for minutes and gigabytes.
        command: Words before the experiment's id, such as `pipe-bd reproduce`.

    Returns:
        A Markdown table: claim, what is checked, command, expected, minutes and GB per scale,
        how it is reproduced.

    Raises:
        UserError: A claim names an experiment that does not exist.
    """
    rows = []
    for claim in claims:
        how = {"impossible": "not possible here"}.get(claim.reproduced, claim.reproduced)
        if claim.why:
            how = f"{how}: {claim.why}"
        if claim.reproduced == "impossible":
            rows.append([claim.says, "-", "-", "-", claim.paper, "-", how])
            continue
        if claim.experiment not in experiments:
            raise UserError(f"claim {claim.id}: there is no experiment {claim.experiment!r}")
        experiment = experiments[claim.experiment]
        scale = claim.scales[0]
        cost = "; ".join(
            f"{name}: {experiment.minutes[name]:g} min, {_gigabytes(experiment, name)}"
            for name in claim.scales
            if name in experiment.minutes
        )
        rows.append(
            [
                claim.says,
                f"`{claim.metric}` ({claim.kind})",
                f"`{command} {claim.experiment} --scale {scale}`",
                str(claim.expect),
                claim.paper,
                cost,
                how,
            ]
        )
    head = ["claim", "what is checked", "command", "expected", "paper", "minutes and GB", "how"]
    return _markdown_table(head, rows)


def _gigabytes(experiment: "Experiment", scale: str) -> str:
    size = experiment.gigabytes.get(scale)
    return "< 1 GB" if size is None else f"{size:g} GB"
