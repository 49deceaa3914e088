from pathlib import Path

import pytest
from shorthaul import report
from shorthaul.errors import UserError
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table, run

CLAIMS = """
[[claim]]
id = "fill"
says = "Updates <b>without</b> a barrier"
source = "section IV"
experiment = "virtual_devices"
metric = "ratio"
expect = { min = 3 }
paper = "3.3 (poster)"
kind = "time"
reproduced = "virtual"
why = "two cores"

[[claim]]
id = "later"
says = "Not yet run"
source = "ours"
experiment = "later"
metric = "x"
expect = { exact = 1 }
paper = "-"
"""


def work(context: Context) -> Summary:
    return Summary(
        {"ratio": 3.5},
        figures=[Figure("fig", "One", "bars", ["a"], "x", "y", [Series("dp", [1.0])], note="Why")],
        tables=[Table("tab", "Counts", ["a", "b"], [[1234567, None], ["x", True]])],
        notes=["A note."],
        emulated="sleep in place of compute",
        noise={"median": 1.0, "low": 0.98, "high": 1.02, "spread": 0.02},
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "claims.toml").write_text(CLAIMS)
    experiment = Experiment(
        "virtual_devices", "Virtual", "ours", work, {"smoke": {}, "small": {}}, {}
    )
    run(experiment, artifact="pipe_bd", scale="smoke", root=tmp_path / "runs")
    return tmp_path


def collect(root: Path, scale: str | None = None) -> report.ArtifactReport:
    return report.collect(
        root / "runs", "pipe_bd", root / "claims.toml", "Pipe-BD", "About it.", scale
    )


def test_page_says_everything(root: Path) -> None:
    page = report.write(root / "out" / "report.html", [collect(root)]).read_text()
    for words in (
        "fill", "PASS", "not run", "3.3 (poster)", "3.5", "≥ 3", "A/A ± 2.0&nbsp;%", "two cores",
        "emulated: sleep in place of compute", "A note.", "Why", "1\u202f234\u202f567", "seed 0",
        "About it.", "Processor", "Commit", "95&nbsp;% interval 0.98 to 1.02",
    ):  # fmt: skip
        assert words in page, words
    assert "Updates &lt;b&gt;without&lt;/b&gt; a barrier" in page
    assert 'download="fig.csv" href="data:text/csv;charset=utf-8,series%2Ckind' in page
    assert "<script" not in page
    assert page.count("<svg") == 1


def test_nothing_is_fetched(root: Path) -> None:
    page = report.write(root / "report.html", [collect(root)]).read_text()
    assert "default-src 'none'" in page
    for words in ("src=", "@import", "url(http", '<link rel="stylesheet'):
        assert words not in page


def test_the_same_figure_of_two_artifacts_has_two_ids(root: Path) -> None:
    one = collect(root)
    other = report.ArtifactReport("navis", "Navis", "", one.verdicts, one.runs)
    page = report.write(root / "report.html", [one, other]).read_text()
    assert 'id="pipe_bd-virtual_devices-fig"' in page
    assert 'id="navis-virtual_devices-fig"' in page


def test_collect_takes_runs_of_a_scale(root: Path) -> None:
    assert [run.path.parent.name for run in collect(root).runs] == ["virtual_devices"]
    assert collect(root, "small").runs == []
    assert [v.status for v in collect(root, "small").verdicts] == ["not run", "not run"]


def test_a_page_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text("")
    page = report.write(tmp_path / "report.html", [collect(tmp_path)]).read_text()
    assert "No experiment has run yet" in page
    assert "No experiment on this page measured it" in page


def test_collect_without_claims(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"claims\.toml"):
        collect(tmp_path)
