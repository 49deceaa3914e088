"""Bad input is answered by one line that names it, and exit code 2."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from smart_testing import words

from smart_infinity import __version__
from smart_infinity.cli import COMMANDS, main

PRESET = """
[model]
layers = {layers}
width = 16
heads = 2
context = 16
[train]
steps = 4
batch = 2
lr = {lr}
max_norm = 0
[state]
tile = 1024
optimizer = "{optimizer}"
"""

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command line; the one line that it says on standard error, and nothing else."""

    def run(*given: Any, code: int = 2) -> str:
        assert main([str(word) for word in given]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("smart-infinity: error: ")
        return line

    return run


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., list[Any]]:
    """Words of `train` with a small preset on one device."""
    (tmp_path / "text").write_text(words())

    def given(
        *, layers: int = 1, lr: float = 1e-2, optimizer: str = "adamw", **flags: Any
    ) -> list[Any]:
        preset = tmp_path / "preset.toml"
        preset.write_text(PRESET.format(layers=layers, lr=lr, optimizer=optimizer))
        all_flags = {
            "config": preset, "data": tmp_path / "text", "storage": tmp_path / "state", **flags,
        }  # fmt: skip
        return ["train", *(word for k, v in all_flags.items() for word in (f"--{k}", v))]

    return given


def test_every_verb_has_help_that_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    for verb in ([], *([verb] for verb in COMMANDS)):
        with contextlib.suppress(SystemExit):
            assert main([*verb, "--help"]) == 0
        shown, error = capsys.readouterr()
        assert error == ""
        assert "usage: smart-infinity" in shown
        assert shown.count("\n") <= 100, verb


def test_words_that_are_none_are_named(said: Said, tmp_path: Path) -> None:
    assert "unknown verb 'trian'; did you mean 'train'?" in said("trian")
    assert "--storage is missing" in said("train")
    assert "unknown flag '--stepz'; did you mean '--steps'?" in said(
        "train", "--storage", "a", "--stepz", "1"
    )
    assert "--steps 'many': not valid" in said("train", "--storage", "a", "--steps=many")
    # As a program, and without torch.
    done = subprocess.run(
        [sys.executable, "-m", "smart_infinity.cli", "verify", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{tmp_path}: holds no state" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_that_cannot_be_is_named_before_it_begins(
    said: Said, train: Callable[..., list[Any]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    full = tmp_path / "full"
    (full / "something").mkdir(parents=True)
    for flags, what in (
        ({"config": "gpt2-tini"}, "--config gpt2-tini: no such file or preset; did you mean"),
        ({"config": file}, "not TOML"),
        ({"data": "kvj"}, "--data 'kvj': no such file or folder; did you mean 'kjv'?"),
        ({"export": file}, f"--export {file} is a file: name a folder"),
        ({"export": full}, f"--export {full} is not empty"),
        ({"tensorboard": file}, f"--tensorboard {file} is a file"),
        ({"token-file": file.with_name("gone")}, "cannot be read"),
        ({"json": tmp_path / "gone" / "out.json"}, "make it first"),
        ({"steps": 0}, "train.steps = 0: use 1 or more"),
        ({"storage": "tcp:127.0.0.1:1"}, "tcp:127.0.0.1:1: cannot be reached"),
        ({"storage": f"unix:{tmp_path}/gone"}, "start it with smart-infinity device"),
    ):
        assert what in said(*train(**flags)), flags
        assert not (tmp_path / "state").exists()


def test_an_unknown_optimizer_is_named(said: Said, train: Callable[..., list[Any]]) -> None:
    line = said(*train(optimizer="adamz"))
    assert "unknown optimizer 'adamz'; did you mean 'adam'?" in line
    assert "unknown optimizer 'shampoo'; known: adamw, adam, adagrad, sgd" in said(
        "bench", "--params", 1000, "--storage", ".", "--optimizer", "shampoo"
    )


def test_gradients_with_nan_end_a_run(
    said: Said, train: Callable[..., list[Any]], tmp_path: Path
) -> None:
    line = said(*train(lr=1e30))
    assert "holds NaN or Inf: no parameter was changed" in line


def test_a_state_that_does_not_fit_is_named(
    said: Said, train: Callable[..., list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(map(str, train()))) == 0
    capsys.readouterr()
    assert "give the model it was made for, or a new folder" in said(*train(layers=2))
    assert "made with optimizer='adamw', asked for 'sgd'" in said(*train(optimizer="sgd"))
    assert "is at step 4 already" in said(*train())
    file = tmp_path / "state" / "state.smart"
    whole = file.read_bytes()
    file.write_bytes(whole[:8] + b"\x02\0\0\0" + whole[12:])
    for words_ in (train(steps=9), ["verify", tmp_path / "state"], ["repair", tmp_path / "state"]):
        assert "version 2" in said(*words_)
    file.write_bytes(b"\0" * len(whole))
    assert "not a state" in said(*train(steps=9))


def test_a_folder_without_space_is_named_with_the_bytes_needed(said: Said, tmp_path: Path) -> None:
    line = said("bench", "--params", 10**12, "--tile", 1 << 24, "--storage", tmp_path)
    # Two extents of 12 bytes a parameter.
    needed = int(line.split(" needs ")[1].split(" bytes")[0])
    assert 24e12 <= needed <= 24.1e12
    assert "free; give another directory, or more of them" in line
    assert not list(tmp_path.rglob("state.smart*"))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_file_system_that_refuses_o_direct_is_named(said: Said, in_memory: Path) -> None:
    line = said("bench", "--params", 1000, "--storage", in_memory)
    assert "its file system refuses O_DIRECT: give a folder on another one" in line


@pytest.mark.parametrize(
    ("words_", "what"),
    [
        (("bench", "--params", 10**20), "--params"),
        (("bench", "--params", 999_999_999_999), "needs 23999999999976 bytes, there are"),
        (("bench", "--params", 1000, "--devices", 1000), "--devices 1000: use 1 to 256"),
        (("bench", "--params", 1000, "--tile", -3), "tile=-3"),
        (("bench", "--params", 1000, "--tile", 99_999_999_999), "tile=99999999999"),
        (("bench", "--params", 1000, "--moments", "int3"), "--moments int3"),
        (("bench", "--params", 1000, "--link-rate", "nan"), "--link-rate nan"),
        (("bench", "--params", 1000, "--link-rate", "-1"), "--link-rate -1"),
        (("bench", "--params", 1000, "--media-read-rate", "inf"), "--media-read-rate inf"),
        (("bench", "--params", 1000, "--landing", 1 << 70), "landing_bytes="),
        (("wear", "--params", "nan"), "--params nan"),
        (("wear", "--params", "1.5"), "--params 1.5: use a whole number"),
        (("wear", "--params", "7e9", "--tbw", "nan"), "--tbw nan"),
        (("wear", "--params", "7e9", "--landed", "-1"), "--landed -1"),
        (("wear", "--params", "7e9", "--steps-per-day", "nan"), "--steps-per-day nan"),
        (("plan", "--params", "7e9", "--paper", "--tbw", "nan"), "--tbw nan"),
        (("plan", "--params", "7e9", "--paper", "--steps-per-day", "-1"), "--steps-per-day -1"),
        (("verify",), "give the folders"),
        (("repair",), "give the folders"),
        (("reproduce", "foo"), "--list names them"),
    ],
)
def test_numbers_that_cannot_be_are_named(
    words_: tuple[Any, ...], what: str, said: Said, tmp_path: Path
) -> None:
    if words_[0] == "bench":
        words_ = (*words_, "--storage", tmp_path)
    assert what in said(*words_)


def test_a_run_that_has_ended_can_still_be_exported(
    train: Callable[..., list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(map(str, train()))) == 0
    assert main(list(map(str, train(export=tmp_path / "model")))) == 0
    assert "all 4 steps were taken before" in capsys.readouterr().out
    assert (tmp_path / "model" / "config.json").exists()
