"""``pipe-bd train`` and ``export``: what a finished run leaves, and how bad input is answered."""

import json
from pathlib import Path

import pytest
from shorthaul import atomic

from pipe_bd.cli import main
from pipe_bd.commands.train import summary
from pipe_bd.counters import Counters
from pipe_bd.plan import Plan, Stage
from pipe_bd.result import Result

TRAIN = ["train", "--model", "toy-vgg", "--schedule", "sequential", "--steps", "3"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.strip()
    assert len(line.splitlines()) == 1, line
    assert line.startswith("pipe-bd: error: ")
    return line.removeprefix("pipe-bd: error: ")


def test_a_run_reports_itself_and_can_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = tmp_path / "run", tmp_path / "run.json"
    assert main([*TRAIN, "--checkpoint", str(folder), "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "sequential, plan 0-5x1: 3 steps of 10 rows" in text
    assert "18 teacher block calls, 0 bytes between ranks" in text
    document = json.loads(report.read_text())
    assert set(document["losses"]["block0"]["student"]) == {"0", "1", "2"}
    assert main(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "student")]) == 0
    assert {p.name for p in (tmp_path / "student").iterdir()} == {
        "student.safetensors",
        "manifest.json",
    }


def test_a_corrupted_checkpoint_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TRAIN, "--checkpoint", str(tmp_path / "run")]
    assert main(command) == 0
    capsys.readouterr()
    damaged = next((tmp_path / "run").glob("block-*3*/*.ckpt"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert main([*command, "--resume"]) == 2
    assert str(damaged) in said(capsys)
    assert (
        main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "o")]) == 2
    )
    assert str(damaged) in said(capsys)
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--checkpoint", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    again = [*TRAIN, "--checkpoint", str(tmp_path / "run"), "--resume", "--seed", "1"]
    assert main(again) == 2
    assert "seed was 0, now it is 1" in said(capsys)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((Stage(0, 3, 1),), "does not cover block 4: it ends at block 3 of 6 blocks (0-5)"),
        ((Stage(1, 5, 1),), "does not cover block 0: stage 0 starts at block 1"),
        ((Stage(0, 3, 1), Stage(3, 5, 1)), "covers block 3 twice: stage 1 should start at block 4"),
        ((Stage(0, 9, 1),), "names block 9, but the model has 6 blocks (0-5)"),
        ((Stage(0, 5, 3),), "needs 3 devices, but there are 2"),
    ],
)
def test_a_plan_that_does_not_fit_is_named(
    stages: tuple[Stage, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    Plan(stages).save(path)
    command = ["train", "--model", "toy-vgg", "--schedule", "ahd", "--devices", "2"]
    assert main([*command, "--plan", str(path)]) == 2
    assert said(capsys).startswith(f"{path} {words}")


def test_a_teacher_in_train_mode_is_not_split(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--model", "toy-bn", "--schedule", "joint", "--devices", "2"]
    assert main([*command, "--teacher-mode", "train", "--batchnorm", "local"]) == 2
    line = said(capsys)
    assert line.startswith("the teacher is in train mode and batches are split over 2")
    assert "teacher_mode 'eval'" in line


def test_export_needs_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert said(capsys).startswith(f"--checkpoint {tmp_path} holds no finished run")
    atomic.write_json(tmp_path / "task.json", {"version": 1})
    assert main(["export", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "describes no model" in said(capsys)


def test_export_of_a_run_that_was_continued_waits_for_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*TRAIN, "--checkpoint", str(folder)]) == 0
    capsys.readouterr()
    first = folder / "block-0002" / "step-00000003.ckpt"
    first.rename(first.with_name("step-00000004.ckpt"))
    assert main(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "o")]) == 2
    assert "block 'block2' stands at step 4, the finished run ended at 3" in said(capsys)


def test_what_cannot_be_planned_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--model", "toy-vgg", "--devices", "2", "--memory-gb", "1e-6"]
    assert main(command) == 2  # found by a rank, after it has measured
    assert said(capsys).startswith("no plan on 2 devices")


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for flag in ("--checkpoint", "--trace"):
        assert main([*TRAIN, flag, str(tmp_path / "file" / "below")]) == 2
        assert said(capsys).startswith(f"{flag} {tmp_path}/file/below")


def test_idle_devices_are_mentioned() -> None:
    rank = {"wall_s": 1.0, "cpu_s": 1.0, "marks": [], "counters": Counters().to_dict()}
    result = Result("ahd", Plan.pipeline([1, 2]), None, 1, 1, {}, [dict(rank) for _ in range(3)])
    assert "plan 0-0x1|1-1x1 (1 of 3 devices stayed idle)" in summary(result)
