"""The glue between claims, runs and generated files, on an artifact made up here."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from shorthaul.records import Run

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("ci_report", ROOT / "ci" / "report.py")
assert spec
assert spec.loader
ci_report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ci_report)

CLAIMS = """
[[claim]]
id = "rows"
says = "Every row is read once"
source = "ours"
paper = "-"
experiment = "reads"
metric = "rows"
expect = {exact = 10}
headline = true

[[claim]]
id = "fast"
says = "Twice as fast"
source = "ours"
paper = "1.9"
experiment = "reads"
metric = "ratio"
expect = {min = 2.0}
kind = "time"
"""
EXPERIMENT = """
from shorthaul.experiments import Experiment
EXPERIMENT = Experiment(
    "reads", "Reads", "ours", lambda context: None, {"smoke": {}}, {"smoke": 0.1}
)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one artifact, importable."""
    folder = tmp_path / "made_up"
    package = tmp_path / "importable" / "made_up" / "experiments"
    for made in (folder, package, tmp_path / "docs"):
        made.mkdir(parents=True)
    (package / "reads.py").write_text(EXPERIMENT)
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\ndescription = "Made up."\n')
    (folder / "README.md").write_text(
        "# Made-up\n<!-- generated: headline -->\n<!-- end generated -->\n"
    )
    (folder / "claims.toml").write_text(CLAIMS)
    for name in ("README.md", "ARTIFACT.md"):
        (tmp_path / name).write_text(
            "# x\n<!-- generated: overview -->\nold\n<!-- end generated -->\ntail\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path / "importable"))
    return tmp_path


def record(root: Path, rows: int, ratio: float) -> None:
    """A finished run with these metrics."""
    with Run.create(
        "made_up", "reads", config={}, seed=0, scale="smoke", root=root / "runs"
    ) as run:
        run.write_summary({"title": "Reads", "metrics": {"rows": rows, "ratio": ratio}})


def test_only_counts_gate(root: Path) -> None:
    record(root, 10, 1.5)
    assert ci_report.failures([ci_report.gather(root, "made_up", None)]) == []
    record(root, 11, 1.5)
    failed = ci_report.failures([ci_report.gather(root, "made_up", None)])
    assert failed == ["made_up rows: 11 is not = 10"]


def test_generated_parts_are_rendered_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(root, 10, 2.5)
    reports = [ci_report.gather(root, "made_up", None)]
    ci_report.render(root, reports)
    assert capsys.readouterr().out.count("written: ") == 5
    overview = (root / "ARTIFACT.md").read_text()
    assert "| [`made_up`](made_up/ARTIFACT.md) | 2 | 2 | 0 |" in overview
    assert "old" not in overview
    assert overview.endswith("tail\n")
    assert "Every row is read once" in (root / "made_up" / "README.md").read_text()
    assert "Twice as fast" not in (root / "made_up" / "README.md").read_text()
    own = (root / "made_up" / "ARTIFACT.md").read_text()
    assert own.startswith("# What can be checked: Made-up\n")
    assert "`made-up reproduce reads --scale smoke`" in own
    assert "Newest run" in (root / "docs" / "results.md").read_text()
    ci_report.render(root, reports)
    assert capsys.readouterr().out == ""


def test_without_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ci_report.gather(root, "made_up", None)
    ci_report.show(found)
    assert "2 not run (make made_up-claims runs them all)" in capsys.readouterr().out
    assert ci_report.failures([found]) == []
    capsys.readouterr()
    ci_report.render(root, [found])
    assert capsys.readouterr().out.count("written: ") == 1  # the checks; what was found stays
    assert "old" in (root / "ARTIFACT.md").read_text()


def test_what_ran_elsewhere_stays(root: Path) -> None:
    record(root, 10, 2.5)
    ran = ci_report.gather(root, "made_up", None)
    ci_report.render(root, [ran])
    before = (root / "docs" / "results.md").read_text()
    (root / "runs").rename(root / "elsewhere")
    gone = ci_report.gather(root, "made_up", None)
    assert ci_report.overview([gone], before) == ci_report.overview([ran])
    assert ci_report.overview([gone]) != ci_report.overview([ran])
    # One that ran here makes the file anew; the other's section is as it was.
    (root / "elsewhere").rename(root / "runs")
    another = dataclasses.replace(ci_report.gather(root, "made_up", None), title="Another")
    ci_report.render(root, [another, gone])
    after = (root / "docs" / "results.md").read_text()
    assert "## Another" in after
    assert before[before.index("## Made-up") :] in after


@pytest.mark.parametrize("artifact", ci_report.artifacts(ROOT))
def test_committed_tables_say_what_claims_toml_says(artifact: str) -> None:
    file = ROOT / artifact / "ARTIFACT.md"
    assert file.exists(), "run: .venv/bin/python ci/report.py --artifact-md"
    text = file.read_text()
    known = {"checks": ci_report.checks(ROOT, artifact)}
    assert ci_report.fill(text, known) == text, "run: .venv/bin/python ci/report.py --artifact-md"


def test_an_unknown_kind_is_left_alone() -> None:
    text = "<!-- generated: other -->\nkept\n<!-- end generated -->"
    assert ci_report.fill(text, {"overview": "new"}) == text
