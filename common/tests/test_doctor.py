import json
from pathlib import Path

import pytest
from shorthaul import doctor, machine
from shorthaul.errors import EnvironmentLack


def test_common_checks_have_reasons_and_fixes() -> None:
    checks = {check.name: check for check in doctor.common()}
    assert {
        "python", "processor", "memory", "disk", "torch", "cuda", "compiler", "git",
        "fashion-mnist", "io_uring", "root",
    } == set(checks)  # fmt: skip
    for check in checks.values():
        assert check.detail
        assert check.ok or check.fix
    assert checks["python"].ok


def test_run_shows_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        doctor.Check("git", True, "2.39"),
        doctor.Check("cuda", False, "nvidia-smi finds no GPU", "buy one"),
    ]
    doctor.run(checks, tmp_path / "out.json")
    said = capsys.readouterr().out.splitlines()
    assert said == ["ok    git   2.39", "-     cuda  nvidia-smi finds no GPU (buy one)"]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ok"] is True
    assert [check["name"] for check in found["checks"]] == ["git", "cuda"]


def test_a_required_lack_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    lack = doctor.Check("torch", False, "not installed", "pip install torch", required=True)
    with pytest.raises(EnvironmentLack, match="torch; pip install torch"):
        doctor.run([lack])
    assert "LACK  torch" in capsys.readouterr().out


def test_cuda_says_which_part_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(machine, "gpu", lambda: "1 x NVIDIA H200")
    cuda = next(check for check in doctor.common() if check.name == "cuda")
    assert "H200" in cuda.detail
    monkeypatch.setattr(machine, "gpu", lambda: None)
    cuda = next(check for check in doctor.common() if check.name == "cuda")
    assert (cuda.ok, cuda.detail) == (False, "nvidia-smi finds no GPU")
