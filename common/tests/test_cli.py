import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from shorthaul import cli
from shorthaul.cli import Common, load_preset
from shorthaul.errors import EnvironmentLack, UserError

HERE = "command_line_under_test"
COMMANDS = {
    "plan": (f"{HERE}:Plan", "place blocks"),
    "profile": (f"{HERE}:Plan", "measure blocks"),
    "need": (f"{HERE}:Need", "need a flag"),
    "lack": (f"{HERE}:Lack", "need something"),
    "ask": (f"{HERE}:Ask", "require an argument"),
    "fault": (f"{HERE}:Faulty", "break"),
    "stop": (f"{HERE}:Stop", "be interrupted"),
    "pipe": (f"{HERE}:Pipe", "lose the reader"),
    "missing": ("command_line_without_import:Plan", "need a package"),
}
MODULE = '''
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import EnvironmentLack, UserError

@dataclass(frozen=True)
class Link:
    latency_s: float = 1e-5

@dataclass(kw_only=True)
class Plan(Common):
    """Place blocks on devices."""
    name: tyro.conf.Positional[str] = "x"
    memory_gb: float | None = None
    mode: Literal["best", "fast"] = "best"
    link: Link = field(default_factory=Link)
    def run(self):
        emit(self, self.json, f"planned {self.name} {self.memory_gb} {self.link.latency_s}")

@dataclass(kw_only=True)
class Need(Common):
    path: Path

@dataclass(kw_only=True)
class Ask(Common):
    file: tyro.conf.Positional[Path]
    """File of vectors."""

@dataclass(kw_only=True)
class Lack(Common):
    def run(self):
        raise EnvironmentLack("no GPU; get one")

@dataclass(kw_only=True)
class Faulty(Common):
    def run(self):
        raise KeyError("first\\nsecond")

@dataclass(kw_only=True)
class Stop(Common):
    def run(self):
        raise KeyboardInterrupt

@dataclass(kw_only=True)
class Pipe(Common):
    def run(self):
        for n in range(100000):
            print(n)
'''


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{HERE}.py").write_text(MODULE)
    (tmp_path / "command_line_without_import.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in (HERE, "command_line_without_import"):
        sys.modules.pop(name, None)


def run(*argv: str) -> int:
    return cli.main("pipe-bd", "1.2.3", "Does things.", COMMANDS, argv)


def test_help_fits_a_screen_and_imports_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 24
    assert all(verb in said and text in said for verb, (_, text) in COMMANDS.items())
    assert HERE not in sys.modules


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "usage: pipe-bd VERB" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == "pipe-bd 1.2.3\n"


def test_verb_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("plan", "--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--seed", "--json", "--threads", "-v", "--memory-gb", "--link.latency-s"):
        assert flag in said


def test_runs_a_verb_with_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "vgg", "--memory-gb", "2.5", "--link.latency-s", "1", "--threads", "2") == 0
    assert capsys.readouterr().out == "planned vgg 2.5 1.0\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plna"], "unknown verb 'plna'; did you mean 'plan'?"),
        (["--jsn"], "unknown flag before the verb '--jsn'"),
        (["plan", "--sead", "1"], "unknown flag '--sead'; did you mean '--seed'?"),
        (["plan", "--memory-bg=1"], "did you mean '--memory-gb'?"),
        (["plan", "--link.latency", "1"], "did you mean '--link.latency-s'?"),
        (["plan", "--seed", "x"], "error: --seed 'x': not a whole number; "),
        (["plan", "--seed"], "error: --seed needs a value; "),
        (["plan", "--memory-gb", "x"], "error: --memory-gb 'x': not valid; "),
        (["plan", "--link.latency-s", "x"], "error: --link.latency-s 'x': not a number; "),
        (["plan", "--mode", "slow"], "error: --mode 'slow': use 'best', 'fast'; "),
        (["need"], "error: --path is missing; "),
        (["ask"], "error: missing argument: File of vectors; "),
        (["plan", "--json", "no/such/folder.json"], "there is no folder no/such: make it first"),
        (["plan", "--json", "/"], "error: --json / is a folder: name a file"),
        (["plan", "a", "b"], "unexpected argument 'b'"),
        (["plan", "--threads", "0"], "--threads 0: at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pipe-bd: error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("verb", "code", "said"),
    [
        ("lack", 3, "pipe-bd: error: no GPU; get one\n"),
        ("stop", 130, "pipe-bd: error: interrupted\n"),
        ("missing", 3, "pipe-bd: error: the Python package 'no_such_package_here' is not"
         " installed; pip install no_such_package_here\n"),
    ],
)  # fmt: skip
def test_exit_codes(verb: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb) == code
    assert capsys.readouterr().err == said


def test_a_fault_is_one_line_unless_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fault") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "KeyError" in said
    assert run("fault", "-v") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("pipe-bd: error: KeyError")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    code = f"import sys; from shorthaul import cli; sys.exit(cli.main('p', '1', '', {COMMANDS!r}))"
    command = f'{sys.executable} -c "$CODE" pipe | head -1; exit ${{PIPESTATUS[0]}}'
    environment = {"CODE": code, "PYTHONPATH": str(tmp_path), "PATH": os.defpath}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, shorthaul.cli, shorthaul.launch, shorthaul.experiments, shorthaul.report\n"
        "print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_emit_to_a_file_and_to_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.emit({"a": 1}, tmp_path / "out.json", "one")
    assert capsys.readouterr().out == "one\n"
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    cli.emit({"a": 1}, None)
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_emit_to_standard_output_is_only_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli.emit({"a": 1}, Path("-"), "for people")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert captured.err == "for people\n"


def test_emit_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        cli.emit({}, tmp_path / "file" / "x.json", "")


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 4
    kind: Literal["vgg", "gpt"] = "vgg"


@dataclasses.dataclass(frozen=True)
class Config:
    model: Model = dataclasses.field(default_factory=Model)
    steps: int = 10
    rate: float = 0.1
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    out: Path | None = None
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    free: Any = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: at least 1")


def preset(tmp_path: Path, text: str) -> Path:
    (tmp_path / "preset.toml").write_text(text)
    return tmp_path / "preset.toml"


def test_preset_over_defaults_and_flags_over_preset(tmp_path: Path) -> None:
    path = preset(
        tmp_path,
        'steps = 20\nrate = 1\nsizes = [1, 2]\npair = [2, "b"]\nout = "x"\nfree = [1]\n'
        "[extra]\na = 1\n[model]\nwidth = 8\n",
    )
    assert load_preset(Config) == Config()
    found = load_preset(Config, path, {"model.kind": "gpt", "model": {"width": None}, "steps": 3})
    assert found == Config(Model(8, "gpt"), 3, 1.0, (1, 2), (2, "b"), Path("x"), {"a": 1.0}, [1])
    assert isinstance(found.rate, float)


def test_flags_may_mend_a_preset(tmp_path: Path) -> None:
    assert load_preset(Config, preset(tmp_path, "steps = 0"), {"steps": 2}).steps == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step = 1", "unknown key 'step'; did you mean 'steps'?"),
        ("[model]\nwidht = 1", "unknown key 'model.widht'; did you mean 'width'?"),
        ('steps = "3"', "steps = '3' is not int"),
        ("steps = true", "steps = True is not int"),
        ("steps = 1.5", "steps = 1.5 is not int"),
        ("rate = false", "rate = False is not float"),
        ('[model]\nkind = "bert"', "model.kind = 'bert' is not Literal['vgg', 'gpt']"),
        ("model = 3", "model: a table is wanted"),
        ("sizes = 3", "sizes = 3 is not"),
        ('sizes = ["a"]', "sizes = 'a' is not int"),
        ("pair = [1]", "pair = [1] is not"),
        ("out = 3", "out = 3 is not"),
        ("extra = 3", "extra = 3 is not"),
        ("steps = 0", "--steps 0: at least 1"),
        ("steps = ", "not TOML"),
    ],
)
def test_preset_mistakes(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load_preset(Config, preset(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_preset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot be read"):
        load_preset(Config, tmp_path / "none.toml")


def test_a_missing_value_is_named() -> None:
    @dataclasses.dataclass
    class Needs:
        width: int

    with pytest.raises(UserError, match="width is missing"):
        cli.build(Needs, {})


def test_an_import_that_is_our_own_fault_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / f"{HERE}.py").write_text(f"import {HERE}.inner\n")
    with pytest.raises(ModuleNotFoundError):
        cli._load(f"{HERE}:Plan")
    with pytest.raises(EnvironmentLack):
        cli._load("command_line_without_import:Plan")


def test_a_command_has_to_run() -> None:
    with pytest.raises(NotImplementedError):
        Common().run()
