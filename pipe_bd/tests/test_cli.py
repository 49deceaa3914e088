"""The command line as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipe_bd import __version__
from pipe_bd.cli import COMMANDS, main


def test_help_fits_a_screen_and_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 110
    for verb in COMMANDS:
        assert f"  {verb} " in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"pipe-bd {__version__}"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--schedul", "dpu"], "--schedule"),
        (["train", "--schedule", "dpuu"], "did you mean 'dpu'"),
        (["train", "--model", "toy-vg"], "did you mean 'toy-vgg'"),
        (["train", "--steps", "0"], "--steps 0"),
        (["train", "--batch", "-1"], "--batch -1"),
        (["train", "--hf", "nowhere"], "--hf nowhere"),
        (["train", "--memory-gb", "nan"], "--memory-gb nan"),
        (["train", "--batch", "1000000000000"], "--batch 1000000000000 cannot be made here"),
        (["train", "--tokens", "0"], "--tokens 0"),
        (["train", "--seed", "-1"], "--seed -1"),
        (["verify", "--world", "0"], "--world 0"),
        (["train", "--devices", "1000"], "at most 64"),
        (["bench", "--schedules", ""], "--schedules"),
        (["bench", "--reps", "0"], "--reps 0"),
        (["profile", "--trials", "0"], "--trials 0"),
        (["reproduce", "virtual_device"], "virtual_devices"),
        (["reproduce", "planner_exact", "--scale", "tiny"], "tiny"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert error.startswith("pipe-bd: error: ")
    assert said in error


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    code = (
        "import sys; from pipe_bd.cli import main; "
        f"code = main(['plan', '--profile', 'example', '--devices', '4', '--json', {str(out)!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    assert out.exists()
