"""``smart-infinity plan``: what its JSON holds, its table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smart_infinity import rates
from smart_infinity.cli import main
from smart_infinity.planner import PAPER, Rates, Setup, forecast

RATES = ("--read-rate", "3", "--write-rate", "1.7", "--link-rate", "8")
SYSTEMS = ("host", "device, gradients ahead", "device", "device, top 1 %")


def run(*words: Any) -> int:
    return main([str(word) for word in ("plan", *words)])


def planned(tmp_path: Path, *words: Any) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    assert run(*words, "--json", out) == 0
    return dict(json.loads(out.read_text()))


def test_given_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path, "--params", "7e9", "--devices", 4, *RATES, "--steps-per-day", 1000)
    assert found["source"] == "as given"
    assert found["rates"]["link_up"] == 8e9
    assert tuple(found["setups"]) == SYSTEMS
    host, ahead = (found["setups"][name] for name in SYSTEMS[:2])
    given = Rates(link_down=8e9, link_up=8e9, media_read=3e9, media_write=1.7e9)
    said = forecast(Setup(7e9, 4, placement="host"), given)
    assert host["step_s"] == pytest.approx(said.total_s)
    assert host["bound_by"] == "link"
    assert host["link_bytes_per_param"] == 32
    assert host["over_host"] == 1
    assert ahead["over_host"] == pytest.approx(host["step_s"] / ahead["step_s"])
    # Gradients that wait on the disk are written as well.
    assert ahead["written_bytes_a_step"] == 16 * 7e9
    assert found["setups"]["device"]["written_bytes_a_step"] == 12 * 7e9
    assert found["setups"]["device"]["steps_to_tbw"] == pytest.approx(4 * 600e12 / (12 * 7e9))
    assert host["days_to_tbw"] == pytest.approx(host["steps_to_tbw"] / 1000)
    assert host["disk_bytes_each"] == pytest.approx(24 * 7e9 / 4)
    assert found["curve_1_to_10"] is None
    table = capsys.readouterr().out
    assert all(name in table for name in SYSTEMS)


def test_types_and_moments_count(tmp_path: Path) -> None:
    found = planned(
        tmp_path, "--params", "1e9", *RATES, "--moments", "bfloat16", "--param-dtype", "float16",
        "--grad-dtype", "float16", "--ratio", "0.1",
    )  # fmt: skip
    assert found["setups"]["device"]["link_bytes_per_param"] == 4
    assert found["setups"]["device"]["written_bytes_a_step"] == 8e9
    assert found["setups"]["device, top 10 %"]["link_bytes_per_param"] == pytest.approx(2.6)


def test_the_papers_curve_is_called_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(tmp_path, "--params", "4e9", "--devices", 10, "--paper")
    assert found["source"] == "the paper's constants, simulated"
    assert "simulated" in capsys.readouterr().out
    assert found["rates"]["media_read"] == PAPER.media_read
    curve = found["curve_1_to_10"]
    assert tuple(curve) == SYSTEMS
    assert found["setups"]["host"]["step_s"] == curve["host"][9]
    assert found["setups"]["host"]["saturates_at"] == 4
    assert curve["host"][4:] == [curve["host"][9]] * 6
    assert curve["device, gradients ahead"][9] < curve["host"][9] < curve["host"][0]


def test_a_disk_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(folder: Path) -> Rates:
        asked.append(folder)
        return Rates(media_read=2e9, media_write=1e9, kernel=1e9, commit_s=0.01)

    monkeypatch.setattr(rates, "measure", measure)
    found = planned(tmp_path, "--params", "1e9", "--storage", tmp_path, "--link-rate", "0.1")
    assert asked == [tmp_path]
    assert found["source"] == f"measured on {tmp_path}"
    assert found["rates"]["link_down"] == 1e8  # a link is not measured but given
    assert found["rates"]["commit_s"] == 0.01
    assert found["setups"]["device"]["bound_by"] == "link"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--params", "0", "--paper"), "--params 0"),
        (("--params", "nan", "--paper"), "--params nan"),
        (("--params", "1e9"), "give --storage, or --read-rate and --write-rate, or --paper"),
        (("--params", "1e9", "--read-rate", "3"), "give --storage"),
        (("--params", "1e9", "--paper", "--devices", "0"), "--devices 0"),
        (("--params", "1e9", "--paper", "--ratio", "0"), "ratio=0.0"),
        (("--params", "1e9", "--paper", "--moments", "fp8"), "--moments fp8"),
        (("--params", "1e9", "--paper", "--param-dtype", "int8"), "--param-dtype int8"),
        (("--params", "1e9", "--paper", "--tbw", "-3"), "--tbw -3"),
        (("--params", "1e9", "--read-rate", "-1", "--write-rate", "1"), "--read-rate -1"),
        (("--params", "1e9", "--paper", "--link-rate", "inf"), "--link-rate inf"),
        (("--params", "1e9", "--paper", *RATES), "give one"),
        (("--params", "1e9", "--storage", "/nowhere/at/all"), "--storage /nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert said.startswith("smart-infinity: error:")


def test_a_plan_measures_nothing_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(folder: Path) -> Rates:
        raise AssertionError(folder)

    monkeypatch.setattr(rates, "measure", measure)
    assert run("--params", "1e9", *RATES) == 0
