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
from typing import Any, Self

import tomli_w
from shorthaul import atomic, machine
from shorthaul.errors import UserError

_FORMAT = {"format": "shorthaul-run", "version": 1}


def as_toml(value: Any) -> Any:
    """Make a value plain and drop the keys whose value is None, which TOML cannot hold."""
    value = atomic.plain(value)
    if isinstance(value, dict):
        return {key: as_toml(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [as_toml(item) for item in value if item is not None]
    return value


class Run:
    """One run folder, from `Run.create` or `Run.open`.

    As a context manager it notes a failure in `metrics.jsonl` and closes the file.
    """

    def __init__(self, path: Path, header: dict[str, Any] | None = None) -> None:
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
        """Make a run folder, or continue the one of that stamp (None: a new one, by the time).

        `config` is the resolved configuration, `emulated` says in words what stands in for real
        hardware.

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
        if not (path / "config.toml").exists():
            atomic.write_text(path / "config.toml", tomli_w.dumps(as_toml(config)))
        elif cls(path).config() != as_toml(config):
            held = f"stamp {path.name!r} of {experiment} holds another configuration"
            raise UserError(f"{held}; take another --stamp")
        env = machine.describe()
        header = {
            **_FORMAT,
            "artifact": artifact,
            "experiment": experiment,
            "stamp": path.name,
            "scale": scale,
            "seed": seed,
            "emulated": emulated,
            **{key: env.pop(key) for key in ("commit", "dirty", "versions")},
            "machine": env,
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        atomic.write_json(path / "env.json", {**header, "arguments": sys.argv[1:]})
        return cls(path, header)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open an existing run folder for reading; another folder is a UserError."""
        if not (Path(path) / "env.json").is_file():
            raise UserError(f"{path}: not a run folder (no env.json)")
        return cls(Path(path))

    def metric(self, **fields: Any) -> None:
        """Append one line to `metrics.jsonl`; it is in the file when the call returns."""
        if self._metrics is None:
            file = self.path / "metrics.jsonl"
            torn = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
            self._metrics = file.open("a", buffering=1)
            if torn:  # a killed run leaves half a line; it must not swallow the next one
                self._metrics.write("\n")
        self._metrics.write(json.dumps(atomic.plain(fields), allow_nan=False) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Read `metrics.jsonl`, skipping lines a killed run left torn."""
        file = self.path / "metrics.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
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

        `payload` is `metrics` and whatever else the run found; its `emulated`, when not None,
        replaces that of the run.

        Raises:
            ValueError: The run is open for reading, or the payload forges a field of the record.
        """
        if self._header is None:
            raise ValueError(f"{self.path} was opened for reading")
        body, header = dict(payload), dict(self._header)
        header["emulated"] = body.pop("emulated", None) or header["emulated"]
        header["ended"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        header["wall_s"] = time.monotonic() - self._start
        if clash := sorted(set(header) & set(body)):
            raise ValueError(f"a summary may not set {', '.join(clash)}")
        atomic.write_json(self.path / "summary.json", {**header, **body})

    def summary(self) -> dict[str, Any]:
        """Read `summary.json`; a missing one, or one of another format, is a UserError."""
        summary: dict[str, Any] = atomic.read_json(self.path / "summary.json")
        if not isinstance(summary, dict) or {**summary, **_FORMAT} != summary:
            raise UserError(f"{self.path}/summary.json: not of {_FORMAT}")
        return summary

    @property
    def succeeded(self) -> bool:
        """Whether the run has a summary."""
        return (self.path / "summary.json").is_file()

    def close(self) -> None:
        """Close `metrics.jsonl`; a further `metric` opens it again."""
        if self._metrics is not None:
            self._metrics = self._metrics.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            with contextlib.suppress(OSError):
                self.metric(event="failed", error=f"{type(error).__name__}: {error}")
        self.close()


def _fresh(parent: Path) -> Path:
    """Make a new folder named by the time; two runs in one second get different ones."""
    name = path = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for number in range(2, 1000):
        with contextlib.suppress(FileExistsError):
            (parent / path).mkdir()
            break
        path = f"{name}-{number}"
    return parent / path


def latest(root: Path, artifact: str, experiment: str, scale: str | None = None) -> Run | None:
    """Find the run (of a scale, or any) whose summary says it ended last, or None."""
    dated: list[tuple[str, Path]] = []
    for file in (Path(root) / artifact / experiment).glob("*/summary.json"):
        summary = Run(file.parent).summary()
        if scale is None or summary["scale"] == scale:
            dated.append((summary["ended"], file.parent))
    return Run(max(dated)[1]) if dated else None
