import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from shorthaul import cli, experiments
from shorthaul.errors import UserError
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.records import latest


def summary(n: int = 1) -> Summary:
    return Summary(
        metrics={"n": n, "nested": {"ratio": 1.5}},
        figures=[
            Figure("fig", "Title", "bars", ["a", "b"], "x", "y", [Series("dp", [1.0, None])]),
        ],
        tables=[Table("tab", "Title", ["a", "b"], [[1, None], ["x", 2.5]])],
        notes=["a note"],
        emulated="sleep",
        noise={"spread": 0.02},
    )


def experiment(
    run: Any = lambda context: summary(context.settings["n"]), **more: Any
) -> Experiment:
    scales = {"smoke": {"n": 1}, "small": {"n": 2, "width": 4}}
    given: dict[str, Any] = {"scales": scales, "minutes": {"smoke": 0.1, "small": 2}}
    return Experiment("virtual_devices", "Schedules", "section IV", run, **{**given, **more})


def run(root: Path, of: Experiment | None = None, **more: Any) -> Any:
    return experiments.run(
        of or experiment(), **{"artifact": "pipe_bd", "scale": "smoke", "root": root, **more}
    )


def test_summary_round_trip() -> None:
    assert Summary.from_json(json.loads(json.dumps(summary().to_json()))) == summary()


def test_a_run_is_recorded_whole(tmp_path: Path) -> None:
    seen: list[Context] = []

    def work(context: Context) -> Summary:
        seen.append(context)
        (context.workdir / "scratch").write_text("x")
        context.run.metric(step=1)
        return summary(context.settings["n"])

    record = run(tmp_path, experiment(work), scale="small", overrides={"n": 7}, seed=5)
    assert (seen[0].settings, seen[0].seed, seen[0].scale) == ({"n": 7, "width": 4}, 5, "small")
    found = record.summary()
    assert (found["metrics"]["n"], found["emulated"], found["title"]) == (7, "sleep", "Schedules")
    assert Summary.from_json(found) == summary(7)
    assert (record.path / "figures/fig.svg").read_text().startswith("<svg")
    rows = list(csv.reader((record.path / "figures/fig.csv").read_text().splitlines()))
    assert rows[1] == ["dp", "measured", "a", "1.0", "", ""]
    assert (record.path / "tables/tab.csv").read_text() == "a,b\n1,\nx,2.5\n"
    assert not (record.path / "work").exists()
    assert record.config()["settings"] == {"n": 7, "width": 4}
    newest = latest(tmp_path, "pipe_bd", "virtual_devices")
    assert newest is not None
    assert newest.path == record.path


def test_a_failed_run_leaves_no_summary_and_resumes_in_its_folder(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def work(context: Context) -> Summary:
        calls.append(sorted(p.name for p in context.workdir.iterdir()))
        (context.workdir / "checkpoint").touch()
        if len(calls) == 1:
            raise RuntimeError("rank 1 died")
        return summary()

    with pytest.raises(RuntimeError):
        run(tmp_path, experiment(work), stamp="a")
    assert latest(tmp_path, "pipe_bd", "virtual_devices") is None
    record = run(tmp_path, experiment(work), stamp="a")
    assert calls == [[], ["checkpoint"]]
    assert record.succeeded
    # Done is done: the third call does not work again.
    assert run(tmp_path, experiment(work), stamp="a").path == record.path
    assert len(calls) == 2


def test_a_stamp_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stamp="a")
    with pytest.raises(UserError, match="another configuration"):
        run(tmp_path, stamp="a", seed=1)


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scale 'smoky'; did you mean 'smoke'"):
        run(tmp_path, scale="smoky")
    with pytest.raises(UserError, match="no setting 'widths'; did you mean 'width'"):
        run(tmp_path, scale="small", overrides={"widths": 1})
    with pytest.raises(UserError, match="unknown experiment 'virtual'; did you mean 'virtual_de"):
        experiments.get({"virtual_devices": experiment()}, "virtual")


def test_needs_are_said_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, experiment(needs={"smoke": "four GPUs"}))
    assert "needs: four GPUs" in capsys.readouterr().err


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="figure f, series dp: 1 values for 2 x"):
        Figure("f", "t", "bars", ["a", "b"], "x", "y", [Series("dp", [1.0])])
    with pytest.raises(ValueError, match="0 values for 1 x"):
        Figure("f", "t", "bars", ["a"], "x", "y", [Series("dp", [1.0], low=[])])
    with pytest.raises(ValueError, match="table t: 1 cells for 2"):
        Table("t", "t", ["a", "b"], [[1]])


MODULE = """
from shorthaul.experiments import Experiment, Summary
EXPERIMENT = Experiment({id!r}, "T", "ours", lambda c: Summary({{"n": c.settings["n"]}}),
                        {{"smoke": {{"n": {n}}}}}, {{"smoke": 0.5}})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"experiments_of_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "fig_b.py").write_text(MODULE.format(id="fig_b", n=2))
    (folder / "fig_a.py").write_text(MODULE.format(id="fig_a", n=1))
    (folder / "helper.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_registry_takes_every_experiment(package: str) -> None:
    assert list(experiments.registry(package)) == ["fig_a", "fig_b"]


def test_two_of_one_name_are_refused(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "fig_c.py").write_text(MODULE.format(id="fig_a", n=3))
    with pytest.raises(ValueError, match="two experiments are called fig_a"):
        experiments.registry(package)


def reproduce(package: str, root: Path, **given: Any) -> None:
    class Mine(experiments.Reproduce):
        artifact: ClassVar[str] = "toy"

    Mine.package = package
    Mine(root=root, **given).run()


def test_reproduce_lists_plans_and_runs(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    reproduce(package, root, list=True)
    assert capsys.readouterr().out.splitlines() == [
        "fig_a  smoke 0.5 min  T (ours)",
        "fig_b  smoke 0.5 min  T (ours)",
    ]
    reproduce(package, root, list=True, json=Path("-"))
    listed = json.loads(capsys.readouterr().out)
    assert listed["fig_a"] == {"title": "T", "minutes": {"smoke": 0.5}}
    reproduce(package, root, id="fig_b", dry_run=True, json=Path("-"))
    assert json.loads(capsys.readouterr().out) == {"fig_b": {"n": 2}}
    assert not root.exists()
    reproduce(package, root)
    assert capsys.readouterr().out.startswith("fig_a  smoke")
    assert not root.exists()
    reproduce(package, root, id="all", json=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"fig_a": {"n": 1}, "fig_b": {"n": 2}}
    assert latest(root, "toy", "fig_b") is not None
    with pytest.raises(UserError, match="did you mean 'fig_a'"):
        reproduce(package, root, id="fig_aa")
    with pytest.raises(UserError, match="no scale 'paper'"):
        reproduce(package, root, id="fig_a", scale="paper")


def test_reproduce_works_as_a_command(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "reproduce_command.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from shorthaul import experiments\n"
        "@dataclass(kw_only=True)\nclass Reproduce(experiments.Reproduce):\n"
        f"    artifact: ClassVar[str] = 'toy'\n    package: ClassVar[str] = {package!r}\n"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    commands = {"reproduce": ("reproduce_command:Reproduce", "run a figure")}
    argv = ["reproduce", "fig_a", "--scale", "smoke", "--root", str(tmp_path / "runs")]
    assert cli.main("toy", "1", "", commands, argv) == 0
    assert "fig_a" in capsys.readouterr().out
