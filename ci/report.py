"""Claims tables and the report, from the runs that are there.

    ci/report.py [--scale S] [--gate] [--artifact-md] [ARTIFACT...]

Prints each artifact's claims table and writes report/index.html. With --gate, exits 1 when a count
or quality claim fails (a time claim that fails is said, and gates nothing). With --artifact-md,
also renders the generated parts of README.md and ARTIFACT.md, and docs/results.md. A generated
part stands between `<!-- generated: KIND -->` and `<!-- end generated -->`; the kinds are those
of `parts` and `overview`. Where there are no runs, what earlier runs found stays as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from shorthaul import atomic, claims, experiments, report
from shorthaul.errors import ShorthaulError

ROOT = Path(__file__).resolve().parents[1]
GENERATED = re.compile(
    r"(?P<start><!-- generated: (?P<kind>[a-z]+) -->\n).*?(?P<end><!-- end generated -->)",
    re.DOTALL,
)
NEW_ARTIFACT_MD = """# What can be checked: {title}

<!-- generated: checks -->
<!-- end generated -->

## Found

<!-- generated: results -->
<!-- end generated -->
"""


def artifacts(root: Path) -> list[str]:
    """The folders that make claims."""
    return sorted(file.parent.name for file in root.glob("*/claims.toml"))


def gather(root: Path, artifact: str, scale: str | None) -> report.ArtifactReport:
    """An artifact's verdicts and runs; its title is its README's, its sentence its package's."""
    project = tomllib.loads((root / artifact / "pyproject.toml").read_text())["project"]
    readme = (root / artifact / "README.md").read_text().splitlines()
    title = next((line[2:] for line in readme if line.startswith("# ")), artifact)
    return report.collect(
        root / "runs",
        artifact,
        root / artifact / "claims.toml",
        title=title,
        about=project.get("description", ""),
        scale=scale,
    )


def checks(root: Path, artifact: str) -> str:
    """The table of what is checked and how; needs no run."""
    return claims.artifact_md(
        claims.load(root / artifact / "claims.toml"),
        experiments.registry(f"{artifact}.experiments"),
        f"{artifact.replace('_', '-')} reproduce",
    )


def provenance(found: report.ArtifactReport) -> str:
    """Where the found values come from, in a line; every commit that is behind one of them."""
    records = sorted((run.summary() for run in found.runs), key=lambda r: r["ended"], reverse=True)
    newest = records[0]
    machine = newest["machine"]
    words = [
        f"{machine[key]}{unit}"
        for key, unit in (("cpu", ""), ("cores", " cores"))
        if machine.get(key) is not None
    ]
    commits = dict.fromkeys(
        (r["commit"] or "no commit")[:12] + (" and changes" if r["dirty"] else "") for r in records
    )
    plural = "commit" if len(commits) == 1 else "commits"
    behind = ", ".join(commits)
    return f"Newest run {newest['ended'][:10]}, {plural} {behind}; {', '.join(words)}.\n"


def parts(root: Path, found: report.ArtifactReport) -> dict[str, str]:
    """The generated parts that an artifact's own files may contain."""
    known = {"checks": checks(root, found.name)}
    if found.runs:
        known["results"] = f"{claims.markdown(found.verdicts)}\n{provenance(found)}"
        known["headline"] = claims.markdown([v for v in found.verdicts if v.claim.headline])
    return known


def overview(reports: Sequence[report.ArtifactReport], before: str = "") -> str:
    """One row per artifact; of one without runs the row that stands in `before`."""
    lines = ["| artifact | claims | passed | failed | not run | not gated | not possible here |"]
    lines.append("|---|---|---|---|---|---|---|")
    for found in reports:
        stands = re.search(rf"^\| \[`{found.name}`\].*$", before, re.MULTILINE)
        if stands and not found.runs:
            lines.append(stands[0].replace("](../", "]("))
            continue
        tally = claims.tally(found.verdicts)
        counts = [tally.get(s, 0) for s in ("passed", "failed", "not run", "not gated")]
        counts.append(tally.get("not possible", 0))
        cells = " | ".join(map(str, [len(found.verdicts), *counts]))
        lines.append(f"| [`{found.name}`]({found.name}/ARTIFACT.md) | {cells} |")
    return "\n".join(lines) + "\n"


def fill(text: str, known: Mapping[str, str]) -> str:
    """Replaces the generated parts of `text`; a kind that is not known stays as it is."""

    def part(match: re.Match[str]) -> str:
        if match["kind"] not in known:
            return match[0]
        return f"{match['start']}{known[match['kind']]}{match['end']}"

    return GENERATED.sub(part, text)


def render(root: Path, reports: Sequence[report.ArtifactReport]) -> None:
    """Writes every generated part that is not up to date."""
    file = root / "docs" / "results.md"
    before = file.read_text() if file.exists() else ""
    sections = dict(part.split("\n", 1) for part in before.split("\n## ")[1:])
    rows = overview(reports, before)
    results = [
        "# Measured results\n\nGenerated by `make claims`; do not edit.\n\n",
        rows.replace("](", "](../"),
    ]
    for found in reports:
        known = parts(root, found)
        own = root / found.name / "ARTIFACT.md"
        if not own.exists():
            own.write_text(NEW_ARTIFACT_MD.format(title=found.title))
        for file in (own, root / found.name / "README.md"):
            update(file, fill(file.read_text(), known))
        stands = sections.get(found.title, "\nNo runs yet.\n").strip("\n") + "\n"
        results.append(f"\n## {found.title}\n\n{known.get('results', stands)}")
    if not any(found.runs for found in reports):
        return
    for file in (root / "ARTIFACT.md", root / "README.md"):
        update(file, fill(file.read_text(), {"overview": rows}))
    update(root / "docs" / "results.md", "".join(results))


def update(file: Path, text: str) -> None:
    """Writes `file` unless it says so already."""
    if not file.exists() or file.read_text() != text:
        atomic.write_text(file, text)
        print(f"written: {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")


def failures(reports: Sequence[report.ArtifactReport]) -> list[str]:
    """The gated claims that failed; times are not gated."""
    return [
        f"{found.name} {verdict.claim.id}: {verdict.detail}"
        for found in reports
        for verdict in found.verdicts
        if verdict.status == "failed" and verdict.claim.kind != "time"
    ]


def show(found: report.ArtifactReport) -> None:
    """Prints an artifact's table, without rows of claims whose experiments have not run."""
    ran = [verdict for verdict in found.verdicts if verdict.status != "not run"]
    print(f"\n{found.title}\n\n{claims.table(ran)}")
    if len(ran) < len(found.verdicts):
        print(f"{len(found.verdicts) - len(ran)} not run (make {found.name}-claims runs them all)")


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", choices=get_args(claims.Scale), help="only runs of this scale")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a gated claim fails")
    parser.add_argument("--artifact-md", action="store_true", help="render the generated parts")
    parser.add_argument("--out", type=Path, default=Path("report/index.html"))
    parser.add_argument("artifact", nargs="*", default=[])
    given = parser.parse_args()
    known = artifacts(ROOT)
    for name in given.artifact:
        if name not in known:
            parser.error(f"no artifact {name!r} with claims; there are: {', '.join(known) or '-'}")
    try:
        # The page and the generated files are of all artifacts, whichever are shown.
        reports = [gather(ROOT, name, given.scale) for name in known]
        if given.artifact_md:
            render(ROOT, reports)
        page = report.write(ROOT / given.out, reports)
    except ShorthaulError as error:
        print(f"report: {error}", file=sys.stderr)
        return error.exit_code
    shown = [found for found in reports if found.name in (given.artifact or known)]
    for found in shown:
        show(found)
    print(f"\nreport: {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}")
    failed = failures(shown) if given.gate else []
    if failed:
        print("gated claims failed:\n  " + "\n  ".join(failed), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
