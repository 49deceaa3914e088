"""Claims: what an artifact says of itself, checked against what its runs found.

`claims.toml` holds `[[claim]]` tables; `check` compares each with the newest run of its experiment.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from shorthaul import cli
from shorthaul.errors import UserError
from shorthaul.records import latest

if TYPE_CHECKING:
    from shorthaul.experiments import Experiment

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Status = Literal["passed", "failed", "not run", "not gated", "not possible"]


@dataclass(frozen=True)
class Expect:
    """What a metric must be: `exact`, `rel` with `of`, `min`, `max`, both, or `monotone`.

    `rel`, `min` and `max` are of every entry when the metric is a list; `monotone` is strict, of a
    list of two or more. What is not a number (None where a run found NaN) fails all but `exact`.
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
            forms = "it is exact, rel with of, min, max, min with max, or monotone"
            raise UserError(f"expect has {', '.join(sorted(given)) or 'nothing'}; {forms}")

    def holds(self, value: Any) -> bool:
        """Tell whether a found value is as expected."""
        if self.exact is not None:
            return _same(value, self.exact)
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) in (int, float) for v in values):
            return False
        if self.monotone is not None:
            sign = 1 if self.monotone == "increasing" else -1
            steps = [sign * (b - a) for a, b in itertools.pairwise(values)]
            return bool(steps) and all(step > 0 for step in steps)
        if self.rel is not None and self.of is not None:
            return all(abs(v - self.of) <= self.rel * abs(self.of) for v in values)
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
    """One claim, a sentence, and the experiment that shows it.

    Attributes:
        metric: Dotted path into the summary's `metrics`.
        paper: The paper's own figure, in words.
        kind: `count` and `quality` are gated hard; `time` is a ratio beside the A/A noise.
        headline: Shown first, and in the README.
        demo: Its experiment is run by `make demo`.
        scales: Scales at which it is gated.
        reproduced: How; `impossible` has no experiment, metric and expect.
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
    demo: bool = False
    scales: tuple[Scale, ...] = SCALES
    reproduced: Literal["real", "virtual", "simulated", "impossible"] = "real"
    why: str = ""

    def __post_init__(self) -> None:
        shown = bool(self.experiment and self.metric and self.expect)
        if self.reproduced != "impossible" and not shown:
            raise UserError("experiment, metric and expect are needed")
        if self.reproduced == "impossible" and (self.expect or not self.why):
            raise UserError("impossible: wants why, and no expect")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: the value found, the folder and scale of the run it was found in.

    `detail` says why it failed or did not run; `noise` is the run's A/A noise (`stats.noise`).
    """

    claim: Claim
    status: Status
    value: Any = None
    run: Path | None = None
    scale: str | None = None
    detail: str = ""
    noise: Mapping[str, Any] | None = None


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
    if isinstance(value, float) and not 1e4 <= abs(value) < 1e15:
        return f"{value:.4g}"
    if isinstance(value, int | float):
        return f"{value:,.0f}".replace(",", "\u202f")  # a narrow space, which no line breaks at
    if isinstance(value, list):
        shown = ", ".join(show(v) for v in value[:6])
        return f"{shown}, … ({len(value)})" if len(value) > 6 else shown
    return str(value)


def load(path: Path) -> list[Claim]:
    """Read a claims file; unknown keys, wrong types and ids that occur twice are UserErrors."""
    document = cli.read_toml(path)
    entries = document.pop("claim", [])
    if document:
        raise UserError(f"{path}: unknown key {min(document)!r}; known: claim")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: claim is written [[claim]]")
    found: dict[str, Claim] = {}
    for index, entry in enumerate(entries, 1):
        name = entry.get("id", f"number {index}")
        if name in found:
            raise UserError(f"{path}: two claims are called {name!r}")
        try:
            found[name] = cli.build(Claim, entry)
        except UserError as error:
            raise UserError(f"{path}: claim {name}: {error}") from error
    return list(found.values())


def find(metrics: Any, path: str) -> Any:
    """Follow a dotted path through mappings and lists (KeyError: there is nothing there)."""
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
    """Compare claims with the newest run (of a scale, or any) of their experiments, in order."""
    return [_verdict(claim, root, artifact, scale) for claim in claims]


def _verdict(claim: Claim, root: Path, artifact: str, scale: str | None) -> Verdict:
    if claim.expect is None:
        return Verdict(claim, "not possible", detail=claim.why)
    run = latest(root, artifact, claim.experiment, scale)
    if run is None:
        at = f" at scale {scale}" if scale else ""
        return Verdict(claim, "not run", detail=f"{claim.experiment} has no finished run{at}")
    summary = run.summary()
    value, detail = None, ""
    try:
        value = find(summary["metrics"], claim.metric)
    except KeyError as error:
        detail = f"the summary has no {claim.metric} (at {error.args[0]!r})"
    status: Status = "passed"
    if summary["scale"] not in claim.scales:
        status = "not gated"
    elif detail or not claim.expect.holds(value):
        status, detail = "failed", detail or f"{show(value)} is not {claim.expect}"
    return Verdict(claim, status, value, run.path, summary["scale"], detail, summary.get("noise"))


def tally(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Count verdicts by status."""
    return dict(Counter(verdict.status for verdict in verdicts))


def ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Put headline claims first."""
    return sorted(verdicts, key=lambda verdict: not verdict.claim.headline)


def table(verdicts: Sequence[Verdict]) -> str:
    """Give an aligned text table for terminals, headline claims first, with the tally below."""
    words = {"passed": "PASS", "failed": "FAIL"}
    rows = [["", "claim", "found", "expected", "paper", "scale"]]
    for v in ordered(verdicts):
        found, paper = show(v.value), v.claim.paper
        paper = paper if len(paper) <= 32 else f"{paper[:31]}…"
        expected, scale = str(v.claim.expect or "-"), v.scale or "-"
        rows.append([words.get(v.status, v.status), v.claim.id, found, expected, paper, scale])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    counts = ", ".join(f"{count} {status}" for status, count in tally(verdicts).items())
    return "\n".join([*lines, "", counts or "no claims"])


def _markdown_table(head: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def markdown(verdicts: Iterable[Verdict]) -> str:
    """Give the verdicts as a Markdown table, headline claims first."""
    rows = []
    for v in ordered(verdicts):
        status = f"**{v.status}**" if v.status == "failed" else v.status
        found, expected = show(v.value), str(v.claim.expect or "-")
        rows.append((v.claim.says, status, found, expected, v.claim.paper, v.scale or "-"))
    return _markdown_table("| claim | verdict | found | expected | paper | scale |", rows)


def artifact_md(
    claims: Iterable[Claim], experiments: Mapping[str, "Experiment"], command: str
) -> str:
    """Render the table of `ARTIFACT.md`: what is checked, how, at which cost.

    `command` is the words before an experiment's id, such as `pipe-bd reproduce`. A claim of an
    experiment that does not exist is a UserError.
    """
    rows = []
    for claim in claims:
        how: str = "not possible here" if claim.expect is None else claim.reproduced
        how = f"{how}: {claim.why}" if claim.why else how
        if claim.expect is None:
            rows.append((claim.says, "-", "-", "-", claim.paper, "-", how))
            continue
        if claim.experiment not in experiments:
            raise UserError(f"claim {claim.id}: there is no experiment {claim.experiment!r}")
        experiment = experiments[claim.experiment]
        costs = [
            f"{scale}: {minutes:g} min, {experiment.gigabytes.get(scale, '< 1')} GB"
            for scale, minutes in experiment.minutes.items()
            if scale in claim.scales
        ]
        checked = f"`{claim.metric}` ({claim.kind})"
        call = f"`{command} {claim.experiment} --scale {claim.scales[0]}`"
        expected, cost = str(claim.expect), "; ".join(costs)
        rows.append((claim.says, checked, call, expected, claim.paper, cost, how))
    head = "| claim | what is checked | command | expected | paper | minutes and GB | how |"
    return _markdown_table(head, rows)
