"""Command lines from dataclasses, with tyro; heavy imports happen inside the verb that needs them.

Exit codes: 0 done, 1 fault, 2 bad input, 3 the environment lacks something, 130 interrupted. Every
error is one line on standard error.
"""

import contextlib
import dataclasses
import difflib
import importlib
import io
import itertools
import json as json_module
import os
import re
import sys
import tomllib
import traceback
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from shorthaul import atomic, logs
from shorthaul.errors import EnvironmentLack, ShorthaulError, UserError

T = TypeVar("T")
Commands = Mapping[str, tuple[str, str]]


@dataclasses.dataclass(kw_only=True)
class Common:
    """What every command takes."""

    seed: int = 0
    """Seed of everything random."""
    json: Path | None = None
    """Write the result as JSON to this file; - is standard output."""
    threads: int = 1
    """Threads per process."""
    v: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Say more; a fault shows its traceback."""

    def run(self) -> None:
        """Do what the command is for."""
        raise NotImplementedError


def nearest(word: str, known: Iterable[str]) -> str:
    """Give `; did you mean 'x'?` for the nearest known name, else what is known."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if len(names) <= 12 else ""


def main(
    prog: str,
    version: str,
    description: str,
    commands: Commands,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command line and give its exit code.

    Args:
        prog: Name of the program.
        version: Its version, for `--version`.
        description: One line for `--help`.
        commands: Verb to `("module:Class", "one-line help")`. The module is imported only when its
            verb is asked for; the class is a dataclass with `run()`, usually a `Common`.
        argv: Arguments after the program's name; None takes those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = "-v" in argv or "--v" in argv
    try:
        _dispatch(prog, version, description, commands, argv)
        sys.stdout.flush()
        return 0
    except ShorthaulError as error:
        if verbose:
            traceback.print_exc()
        return _say(prog, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _say(prog, "interrupted", 130)
    except BrokenPipeError:
        _nobody_reads()
        return 0
    except Exception as error:
        if verbose:
            traceback.print_exc()
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return _say(prog, text + ("" if verbose else " (-v shows where)"), 1)


def _say(prog: str, message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"{prog}: error: {message}", file=sys.stderr, flush=True)
    return code


def _dispatch(prog: str, version: str, about: str, commands: Commands, argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, commands), default=0)
        verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in commands.items())
        print(f"usage: {prog} VERB [flags]\n\n{about}\n\n{verbs}\n")
        print(f"{prog} VERB --help lists a verb's flags; {prog} --version says the version.")
        return
    verb, rest = argv[0], argv[1:]
    if verb == "--version":
        print(f"{prog} {version}")
        return
    if verb not in commands:
        kind = "flag before the verb" if verb.startswith("-") else "verb"
        raise UserError(f"unknown {kind} {verb!r}{nearest(verb, commands)}")
    command = _parse(_load(commands[verb][0]), f"{prog} {verb}", rest)
    threads = getattr(command, "threads", 1)
    if threads < 1:
        raise UserError(f"--threads {threads}: at least 1")
    if getattr(command, "seed", 0) < 0:
        raise UserError(f"--seed {command.seed}: use 0 or more")
    check_output(getattr(command, "json", None), "--json")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:  # it read the variable when it was imported
        sys.modules["torch"].set_num_threads(threads)
    logs.setup(getattr(command, "v", False))
    command.run()


def _load(target: str) -> Any:
    """Import `module:Class`; a missing third-party package is a lack, not a fault."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "shorthaul", module.split(".")[0]):
            raise
        lack = f"the Python package {missing!r} is not installed"
        raise EnvironmentLack(f"{lack}; pip install {missing}") from error


def _parse(command: Any, prog: str, argv: list[str]) -> Any:
    """Parse with tyro, but answer a mistake with one line instead of a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            single = (tyro.conf.FlagCreatePairsOff,)  # -v, and no --no-v
            parsed, unknown = tyro.cli(
                command, prog=prog, args=argv, config=single, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_unboxed(said.getvalue())}; {prog} --help lists the flags") from None
    if unknown:
        word = unknown[0]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {word!r}; {prog} --help lists the flags")
        flag = word.split("=")[0]
        raise UserError(f"unknown flag {flag!r}{nearest(flag, _flags(command))}")
    return parsed


def check_output(path: Path | None, flag: str) -> None:
    """Refuse a file that cannot be written before hours of work, not after (UserError)."""
    if path is None or str(path) == "-":
        return
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {folder}: make it first")
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: no permission to write in {folder}")


# What tyro says, whole or from inside its box (drawn or, on a plain terminal, blank), in our words.
_TYRO_SAYS = (
    (r"Missing from .*?: (--[\w.-]+)", "{0} is missing"),
    (r"Missing from .*?: [A-Z]\S* (.+?)\.? \(required\)", "missing argument: {0}"),
    (
        r"Error parsing (\S+): invalid literal for int\(\) .*?: ('.*?')",
        "{0} {1}: not a whole number",
    ),
    (r"Error parsing (\S+): could not convert .*?: ('.*?')", "{0} {1}: not a number"),
    (r"Error parsing (\S+): .*?\[(.*?)\]", "{0} {1}: not valid"),
    (r"Missing value for argument '(.*?)'", "{0} needs a value"),
    (r"invalid choice (.*?) for argument '(.*?)'\. Expected one of \((.*?)\)", "{1} {0}: use {2}"),
)


def _unboxed(text: str) -> str:
    """Take the statement out of tyro's box."""
    lines = [line.strip("│╭╮╰╯─| ") for line in text.splitlines()]
    said = " ".join(line for line in lines if line.strip("-"))
    for pattern, ours in _TYRO_SAYS:
        found = re.search(pattern, said)
        if found:
            return ours.format(*found.groups())
    return " ".join(itertools.takewhile(bool, lines[1:])) or "the arguments cannot be read"


def _flags(cls: Any, prefix: str = "--") -> list[str]:
    """List a command's flags, those of nested dataclasses with their dots."""
    flags: list[str] = []
    for name, hint in _hints(cls).items():
        flag = prefix + name.replace("_", "-")
        flags += _flags(hint, f"{flag}.") if dataclasses.is_dataclass(hint) else [flag]
    return flags


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def emit(obj: Any, json_path: Path | None, text: str | None = None) -> None:
    """Show a result to a person as `text` (None: as JSON) and write it as JSON when asked.

    `obj` is anything `atomic.plain` takes; `json_path` a file, or `-` for standard output, which
    moves the text to standard error. A file that cannot be written is a UserError.
    """
    document = json_module.dumps(atomic.plain(obj), indent=1, allow_nan=False)
    if json_path is not None and str(json_path) == "-":
        _print(document)
        if text is not None:  # standard output is the program's now
            print(text, file=sys.stderr)
        return
    if json_path is not None:  # before anything is said: the reader may have left
        try:
            atomic.write_text(json_path, document + "\n")
        except OSError as error:
            raise UserError(f"--json {json_path}: cannot be written ({error.strerror})") from error
    _print(document if text is None else text)


def _print(text: str) -> None:
    """Print; a reader that has left, as `| head` does, ends no command."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _nobody_reads()


def _nobody_reads() -> None:
    # Python would complain again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def load_preset(
    cls: type[T], path: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> T:
    """Build a configuration dataclass: defaults, then a TOML preset, then flags.

    `overrides` are the values given as flags, nested or with dots (`{"model.width": 8}`); None
    means that the flag was not given.

    Raises:
        UserError: The preset is missing or no TOML, a key is unknown, or a value has a wrong type.
    """
    tree = {} if path is None else read_toml(path)
    _merge(tree, overrides or {})
    return typing.cast(T, build(cls, tree, f"{path}: " if path else ""))


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file; a missing or damaged one is a UserError that names it."""
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not TOML ({error})") from error


def _merge(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        first, _, rest = key.partition(".")
        if rest or isinstance(value, Mapping):
            _merge(tree.setdefault(first, {}), {rest: value} if rest else value)
        elif value is not None:
            tree[first] = value


def build(cls: Any, tree: Any, where: str = "", prefix: str = "") -> Any:
    """Make a dataclass, whose fields may be dataclasses, from a TOML table.

    `where`, such as the file, is put before every message; `prefix` is the tables around this one.

    Raises:
        UserError: A key is unknown or missing, or a value has a wrong type.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}{prefix.rstrip('.')}: a table is wanted, not {tree!r}")
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UserError(f"{where}unknown key {prefix + key!r}{nearest(key, hints)}")
        values[name] = _convert(hints[name], value, f"{prefix}{key}", where)
    for field in dataclasses.fields(cls):
        needed = field.default is field.default_factory is dataclasses.MISSING
        if field.init and needed and field.name not in values:
            raise UserError(f"{where}{prefix}{field.name} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, key: str, where: str) -> Any:
    """Check a TOML value against a type hint, converting where TOML has no such type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    wrong = UserError(f"{where}{key} = {value!r} is not {name}")
    if origin is Annotated:
        return _convert(arguments[0], value, key, where)
    if origin in (types.UnionType, typing.Union):
        if isinstance(value, Mapping):  # say what is wrong inside the table, not that it is one
            arguments = tuple(filter(dataclasses.is_dataclass, arguments)) or arguments
        for choice in arguments[:-1]:
            with contextlib.suppress(UserError):
                return _convert(choice, value, key, where)
        return _convert(arguments[-1], value, key, where)
    if dataclasses.is_dataclass(hint):
        return value if type(value) is hint else build(hint, value, where, f"{key}.")
    if origin in (list, tuple) and isinstance(value, list | tuple):
        fixed = origin is tuple and Ellipsis not in arguments
        if fixed and len(value) != len(arguments):
            raise wrong
        inner = arguments if fixed else arguments[:1] * len(value)
        return origin(_convert(h, v, key, where) for h, v in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, f"{key}.{k}", where) for k, v in value.items()}
    if hint is Any or (origin is typing.Literal and value in arguments):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    # By type, not isinstance: a bool is an int to Python, not to a reader.
    if not isinstance(hint, type) or type(value) is not hint:
        raise wrong
    return value
