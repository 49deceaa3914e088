"""Run folders: what ran, on what, with which result.

`runs/<artifact>/<experiment>/<stamp>/` holds `config.toml`, `env.json`, `metrics.jsonl` (append
only), `summary.json` (present only when the run succeeded) and, where a run traces, `trace.json`.
"""

import contextlib
import json
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w
from shorthaul import atomic, machine
from shorthaul.errors import UserError

FORMAT = "shorthaul-run"
VERSION = 1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def without_none(value: Any) -> Any:
    """Drop what TOML cannot hold: keys whose value is None (list entries become empty strings)."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return ["" if item is None else without_none(item) for item in value]
    return value


class Run:
    """One run folder. Make it with `Run.create` or `Run.open`.

    As a context manager it notes a failure in `metrics.jsonl` and closes the file.
    """

    def __init__(self, path: Path, header: dict[str, Any] | None = None) -> None:
        """Use `Run.create` or `Run.open`."""
        self.path = path
        self._header = header
        self._metrics: Any = None
        self._start = time.monotonic()

    @classmethod
    def create(
        cls,
        artifact: str,
        experiment: str,
        *,
        config: Mapping[str, Any],
        seed: int,
        scale: str,
        emulated: str | None = None,
        root: Path = Path("runs"),
        stamp: str | None = None,
    ) -> Self:
        """Make a run folder, or continue the one of that stamp.

        Args:
            artifact: Import name of the artifact.
            experiment: Experiment id.
            config: The resolved configuration; entries that are None are left out.
            seed: Seed of the run.
            scale: `smoke`, `small` or `paper`.
            emulated: What stands in for real hardware, in words, or None when nothing does.
            root: Folder of all runs.
            stamp: Folder name; None takes the time.

        Returns:
            The run, open for `metric`.

        Raises:
            UserError: The stamp is no plain name, the folder cannot be made, or it holds another
                configuration.
        """
        if stamp is not None and (not stamp or "/" in stamp or stamp.startswith(".")):
            raise UserError(f"stamp {stamp!r}: use a plain folder name")
        parent = Path(root) / artifact / experiment
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = parent / stamp if stamp is not None else _fresh(parent)
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{parent}: no run folder can be made ({error.strerror})") from error
        plain_config = without_none(atomic.plain(config))
        if (path / "config.toml").exists():
            if cls(path).config() != plain_config:
                raise UserError(
                    f"stamp {path.name!r} of {experiment} holds another configuration; "
                    "take another --stamp"
                )
        else:
            atomic.write_text(path / "config.toml", tomli_w.dumps(plain_config))
        env = machine.describe()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "artifact": artifact,
            "experiment": experiment,
            "stamp": path.name,
            "scale": scale,
            "seed": seed,
            "emulated": emulated,
            "commit": env.pop("commit"),
            "dirty": env.pop("dirty"),
            "versions": env.pop("versions"),
            "machine": env,
            "started": _now(),
        }
        atomic.write_json(path / "env.json", {**header, "arguments": sys.argv[1:]})
        return cls(path, header)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an existing run folder for reading.

        Raises:
            UserError: It is not a run folder.
        """
        path = Path(path)
        if not (path / "env.json").is_file():
            raise UserError(f"{path}: not a run folder (no env.json)")
        return cls(path)

    def metric(self, **fields: Any) -> None:
        """Append one line to `metrics.jsonl`; it is in the file when the call returns."""
        if self._metrics is None:
            file = self.path / "metrics.jsonl"
            torn = file.exists() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
            self._metrics = file.open("a", buffering=1)
            if torn:  # a killed run leaves half a line; it must not swallow the next one
                self._metrics.write("\n")
        self._metrics.write(json.dumps(atomic.plain(fields), allow_nan=False) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Read `metrics.jsonl`, skipping lines a killed run left torn."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def config(self) -> dict[str, Any]:
        """Read `config.toml`."""
        return tomllib.loads((self.path / "config.toml").read_text())

    def write_text(self, name: str, text: str) -> Path:
        """Write a further file into the run folder and give its path."""
        atomic.write_text(self.path / name, text)
        return self.path / name

    def write_summary(self, payload: Mapping[str, Any]) -> None:
        """Write `summary.json`, which marks the run as succeeded.

        Args:
            payload: `metrics` and whatever else the run found. Its `emulated`, when not None,
                replaces that of the run.

        Raises:
            ValueError: The run was opened for reading, or the payload names a field that the
                record itself fills in.
        """
        if self._header is None:
            raise ValueError(f"{self.path} was opened for reading")
        header = dict(self._header)
        body = dict(payload)
        header["emulated"] = body.pop("emulated", None) or header["emulated"]
        clash = sorted(set(header) & set(body))
        if clash:
            raise ValueError(f"a summary may not set {', '.join(clash)}")
        wall = time.monotonic() - self._start
        summary = {**header, "ended": _now(), "wall_s": wall, **body}
        atomic.write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """Read `summary.json`.

        Raises:
            UserError: The run has none, or its format is another.
        """
        summary: dict[str, Any] = atomic.read_json(self.path / "summary.json")
        kind = (summary.get("format"), summary.get("version"))
        if kind != (FORMAT, VERSION):
            raise UserError(f"{self.path}/summary.json: format {kind} is not {(FORMAT, VERSION)}")
        return summary

    @property
    def succeeded(self) -> bool:
        """Whether the run has a summary."""
        return (self.path / "summary.json").is_file()

    def close(self) -> None:
        """Close `metrics.jsonl`."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError):
                self.metric(event="failed", error=f"{type(error).__name__}: {error}")
        self.close()


def _fresh(parent: Path) -> Path:
    """Give a new folder named by the time; two runs in one second get different ones."""
    base = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = parent / f"{base}{suffix}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise UserError(f"{parent}: a thousand runs in one second; name one with --stamp")


def latest(root: Path, artifact: str, experiment: str, scale: str | None = None) -> Run | None:
    """Find the newest run that succeeded.

    Args:
        root: Folder of all runs.
        artifact: Import name of the artifact.
        experiment: Experiment id.
        scale: Only runs of this scale; None takes any.

    Returns:
        The run whose summary says it ended last, or None without any.
    """
    found: list[tuple[str, int, Run]] = []
    for file in (Path(root) / artifact / experiment).glob("*/summary.json"):
        run = Run(file.parent)
        summary = run.summary()
        if scale is None or summary["scale"] == scale:
            found.append((summary["ended"], file.stat().st_mtime_ns, run))
    return max(found, key=lambda entry: entry[:2])[2] if found else None
