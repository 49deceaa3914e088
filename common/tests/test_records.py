from pathlib import Path
from typing import Any

import pytest
from shorthaul import records
from shorthaul.errors import UserError
from shorthaul.records import Run, latest


def create(root: Path, **changes: Any) -> Run:
    given: dict[str, Any] = {"config": {"n": 1, "none": None}, "seed": 3, "scale": "smoke"}
    return Run.create("pipe_bd", "fig5", root=root, **{**given, **changes})


def test_folder_and_summary(tmp_path: Path) -> None:
    with create(tmp_path, emulated="sleep") as run:
        run.metric(step=1, loss=0.5)
        run.metric(step=2, loss=float("nan"))
        run.write_text("figures/a.csv", "x\n")
        run.write_summary({"metrics": {"ratio": 2.0}})
    assert run.path.parent == tmp_path / "pipe_bd" / "fig5"
    assert {p.name for p in run.path.iterdir()} == {
        "config.toml", "env.json", "metrics.jsonl", "summary.json", "figures",
    }  # fmt: skip
    again = Run.open(run.path)
    assert list(again.metrics()) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert again.config() == {"n": 1}
    summary = again.summary()
    assert summary["metrics"] == {"ratio": 2.0}
    for key in ("commit", "dirty", "machine", "versions", "started", "ended", "wall_s"):
        assert key in summary
    assert (summary["format"], summary["version"]) == ("shorthaul-run", 1)
    assert (summary["seed"], summary["scale"], summary["emulated"]) == (3, "smoke", "sleep")


def test_a_failed_run_says_so_and_has_no_summary(tmp_path: Path) -> None:
    def fail() -> None:
        with create(tmp_path) as run:
            path.append(run.path)
            raise ValueError("diverged")

    path: list[Path] = []
    with pytest.raises(ValueError, match="diverged"):
        fail()
    run = Run.open(path[0])
    assert not run.succeeded
    assert list(run.metrics())[-1] == {"event": "failed", "error": "ValueError: diverged"}
    assert latest(tmp_path, "pipe_bd", "fig5") is None
    with pytest.raises(UserError, match=r"summary\.json"):
        run.summary()


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = create(tmp_path, stamp="a")
    run.metric(step=1)
    run.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    again = create(tmp_path, stamp="a")
    again.metric(step=3)
    again.close()
    assert list(again.metrics()) == [{"step": 1}, {"step": 3}]


def test_stamps(tmp_path: Path) -> None:
    first, second = create(tmp_path), create(tmp_path)
    assert first.path != second.path
    named = create(tmp_path, stamp="mine")
    assert create(tmp_path, stamp="mine").path == named.path
    with pytest.raises(UserError, match="another configuration"):
        create(tmp_path, stamp="mine", config={"n": 2})
    for stamp in ("", "a/b", "..", ".hidden"):
        with pytest.raises(UserError, match="plain folder name"):
            create(tmp_path, stamp=stamp)


def test_latest_is_the_one_that_ended_last(tmp_path: Path) -> None:
    for stamp, scale, ended in (
        ("z", "smoke", "2026-01-01"),
        ("a", "small", "2026-01-03"),
        ("m", "smoke", "2026-01-02"),
    ):
        run = create(tmp_path, stamp=stamp, scale=scale)
        run.write_summary({"metrics": {}})
        text = (run.path / "summary.json").read_text()
        current = run.summary()["ended"]
        (run.path / "summary.json").write_text(text.replace(current, f"{ended}T00:00:00+00:00"))
    newest = latest(tmp_path, "pipe_bd", "fig5")
    smoke = latest(tmp_path, "pipe_bd", "fig5", "smoke")
    assert newest is not None
    assert smoke is not None
    assert (newest.path.name, smoke.path.name) == ("a", "m")
    assert latest(tmp_path, "pipe_bd", "fig5", "paper") is None
    assert latest(tmp_path, "pipe_bd", "none") is None


def test_summary_may_not_forge_its_header(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="commit, seed"):
        create(tmp_path).write_summary({"metrics": {}, "seed": 1, "commit": "x"})


def test_the_payload_may_say_what_is_emulated(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write_summary({"metrics": {}, "emulated": "sleep"})
    assert run.summary()["emulated"] == "sleep"


def test_reading_is_not_writing(tmp_path: Path) -> None:
    run = create(tmp_path)
    with pytest.raises(ValueError, match="opened for reading"):
        Run.open(run.path).write_summary({})
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path)
    (run.path / "summary.json").write_text('{"format": "shorthaul-run", "version": 2}')
    with pytest.raises(UserError, match="version"):
        run.summary()


def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no run folder can be made"):
        create(tmp_path / "file")


def test_toml_drops_none_everywhere() -> None:
    found = records.as_toml({"a": None, "b": [1, None, {"c": None, "d": (1, 2)}], "p": Path("x")})
    assert found == {"b": [1, {"d": [1, 2]}], "p": "x"}
