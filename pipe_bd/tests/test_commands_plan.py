"""`pipe-bd plan` and `pipe-bd simulate`: files out, one line and exit code 2 for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipe_bd.cli import main
from pipe_bd.paths import profile_path, resource
from pipe_bd.plan import Plan


@pytest.fixture
def profile(tmp_path):
    """A writable copy of the example."""
    path = tmp_path / "p.json"
    path.write_text(resource("configs/example-profile.json").read_text())
    return path


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_plan_writes_the_contract(profile, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", "--profile", str(profile), "--devices", "8", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert all(set(stage) == {"first", "last", "devices"} for stage in written["stages"])
    assert written["period_s"] > 0
    assert written["devices"] == 8
    Plan.load(out).validate(12, 8)
    assert "the slowest is stage" in capsys.readouterr().out


def test_reference_gives_the_same_file(profile, tmp_path):
    for name, flags in (("a", []), ("b", ["--reference"])):
        out = str(tmp_path / name)
        assert (
            main(["plan", "--profile", str(profile), "--devices", "6", "--json", out, *flags]) == 0
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_memory_is_in_units_of_1e9_bytes(profile, tmp_path):
    edit(profile, lambda d: [b.update(memory_bytes={"1": 1e9}) for b in d["blocks"]])
    out = tmp_path / "plan.json"
    flags = ["--profile", str(profile), "--devices", "4", "--memory-gb", "3", "--json", str(out)]
    assert main(["plan", *flags]) == 0
    assert [s["devices"] for s in json.loads(out.read_text())["stages"]] == [1, 1, 1, 1]


def test_the_example_needs_no_path(capsys):
    assert main(["plan", "--profile", "example", "--devices", "2"]) == 0
    assert "2 of 2 devices" in capsys.readouterr().out


def test_a_file_named_example_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert profile_path(Path("example")).name == "example-profile.json"
    (tmp_path / "example").write_text("{}")
    assert profile_path(Path("example")) == Path("example")


def test_a_missing_resource_says_so():
    with pytest.raises(FileNotFoundError, match="install it again"):
        resource("configs/none.json")


def test_simulate_tabulates_all_schedules(profile, tmp_path, capsys):
    out = tmp_path / "s.json"
    code = main(["simulate", "--profile", str(profile), "--devices", "4", "--json", str(out)])
    assert code == 0
    written = json.loads(out.read_text())
    assert written["simulated"] is True
    rows = {row["schedule"]: row for row in written["results"]}
    assert list(rows) == ["sequential", "dp", "ls", "joint", "tr", "dpu", "ahd"]
    assert all(row["simulated"] for row in rows.values())
    assert rows["dp"]["speedup_over_dp"] == 1.0
    assert rows["ahd"]["speedup_over_dp"] > rows["joint"]["speedup_over_dp"] > 1.0
    text = capsys.readouterr().out
    assert text.startswith("simulated, not measured: 12 blocks")
    assert "ahd" in text


def test_simulate_leaves_gaps_where_the_profile_does(profile, capsys):
    code = main(["simulate", "--profile", str(profile), "--devices", "2", "16", "--jitter", "0.1"])
    assert code == 0
    text = capsys.readouterr().out
    assert "±10% noise" in text
    assert "not possible: the profile has no group size 16" in text
    assert "(12 stages)" in text


def test_simulate_one_schedule_with_a_plan(profile, tmp_path):
    plan = tmp_path / "plan.json"
    Plan.even(12, 3).save(plan)
    out = tmp_path / "s.json"
    flags = ["--schedule", "dpu", "--plan", str(plan), "--json", str(out), "--steps", "20"]
    assert main(["simulate", "--profile", str(profile), "--devices", "3", *flags]) == 0
    (row,) = json.loads(out.read_text())["results"]
    assert row["schedule"] == "dpu"
    assert len(row["stages"]) == 3
    assert row["speedup_over_dp"] > 1


def test_simulate_all_takes_the_plan_for_ahd(profile, tmp_path):
    plan = tmp_path / "plan.json"
    Plan.joint(12, 2).save(plan)
    out = tmp_path / "s.json"
    flags = ["--plan", str(plan), "--json", str(out), "--steps", "20"]
    assert main(["simulate", "--profile", str(profile), "--devices", "2", *flags]) == 0
    rows = {row["schedule"]: row for row in json.loads(out.read_text())["results"]}
    assert len(rows["ahd"]["stages"]) == 1
    assert len(rows["dpu"]["stages"]) == 2


PLAN_FAULTS = {
    "no file": (["plan", "--profile", "none.json", "--devices", "2"], "none.json: cannot be read"),
    "no profile": (["plan", "--devices", "2"], "--profile"),
    "no devices": (["plan", "--profile", "{p}"], "--devices"),
    "devices 0": (["plan", "--profile", "{p}", "--devices", "0"], "--devices is 0"),
    "devices -1": (["plan", "--profile", "{p}", "--devices", "-1"], "--devices"),
    "devices x": (["plan", "--profile", "{p}", "--devices", "x"], "--devices"),
    "memory 0": (
        ["plan", "--profile", "{p}", "--devices", "2", "--memory-gb", "0"],
        "--memory-gb is 0",
    ),
    "memory nan": (
        ["plan", "--profile", "{p}", "--devices", "2", "--memory-gb", "nan"],
        "--memory-gb is nan",
    ),
    "too small": (
        ["plan", "--profile", "{p}", "--devices", "2", "--memory-gb", "0.01"],
        "block 'block0' needs 0.022 GB per device at its best group size 2",
    ),
    "together too big": (
        ["plan", "--profile", "{p}", "--devices", "2", "--memory-gb", "0.05"],
        "leave no devices for it",
    ),
    "typo": (
        ["plan", "--profile", "{p}", "--devices", "2", "--memory-g", "3"],
        "did you mean '--memory-gb'",
    ),
    "schedule": (
        ["simulate", "--profile", "{p}", "--devices", "2", "--schedule", "dqu"],
        "did you mean 'dpu'",
    ),
    "simulate devices": (["simulate", "--profile", "{p}", "--devices", "0"], "--devices is 0"),
    "simulate many": (["simulate", "--profile", "{p}", "--devices", "2000"], "from 1 to 1024"),
    "depth": (["simulate", "--profile", "{p}", "--devices", "2", "--depth", "0"], "--depth is 0"),
    "jitter": (
        ["simulate", "--profile", "{p}", "--devices", "2", "--jitter", "2"],
        "--jitter is 2",
    ),
    "group size": (
        ["simulate", "--profile", "{p}", "--devices", "9", "--schedule", "joint"],
        "no group size 9",
    ),
    "plan file": (
        ["simulate", "--profile", "{p}", "--devices", "2", "--plan", "{p}"],
        "format is 'pipe-bd-profile'",
    ),
}


@pytest.mark.parametrize("fault", PLAN_FAULTS)
def test_bad_input_is_one_line_and_exit_2(fault, profile, capsys):
    argv, message = PLAN_FAULTS[fault]
    assert main([word.format(p=profile) for word in argv]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_a_plan_that_does_not_fit_is_refused(profile, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    Plan.even(11, 2).save(plan)
    flags = ["--profile", str(profile), "--devices", "2", "--plan", str(plan)]
    assert main(["simulate", *flags]) == 2
    assert "does not cover block 11" in capsys.readouterr().err


def test_neither_command_imports_torch():
    code = (
        "import sys; from pipe_bd.cli import main\n"
        "main(['plan', '--profile', 'example', '--devices', '2'])\n"
        "main(['simulate', '--profile', 'example', '--devices', '2', '--steps', '3'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
