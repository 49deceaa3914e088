"""Runs experiments through the artifacts' own command lines, then prints a PASS table.

    ci/reproduce.py demo|all SCALE [ARTIFACT...]

`demo` is the experiments that claims marked `demo` in claims.toml rest on. Every
experiment is run even when one before it failed; its output is in build/reproduce/, and shown when
it fails.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from shorthaul import claims

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "reproduce"


@dataclass(frozen=True)
class Outcome:
    """What became of one experiment."""

    artifact: str
    experiment: str
    code: int
    seconds: float


def artifacts() -> list[str]:
    """The folders that make claims."""
    return sorted(file.parent.name for file in ROOT.glob("*/claims.toml"))


def cli(artifact: str) -> str:
    """Its console script, beside the interpreter that runs this."""
    return str(Path(sys.executable).parent / artifact.replace("_", "-"))


def experiments(artifact: str, scale: str) -> dict[str, float | None]:
    """Its experiments that have this scale, with the minutes they are said to take."""
    done = subprocess.run(
        [cli(artifact), "reproduce", "--list", "--json", "-"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"{artifact}: --list failed ({done.returncode})")
    listed = json.loads(done.stdout)
    return {
        name: entry["minutes"].get(scale)
        for name, entry in listed.items()
        if scale in entry["minutes"]
    }


def demo(artifact: str) -> set[str]:
    """The experiments of its demo."""
    found = claims.load(ROOT / artifact / "claims.toml")
    return {claim.experiment for claim in found if claim.demo and claim.experiment}


def reproduce(artifact: str, experiment: str, scale: str, minutes: float | None) -> Outcome:
    """Runs one, with one line before and after."""
    said = "" if minutes is None else f" (about {minutes:g} min)"
    print(f"  {artifact} {experiment} --scale {scale}{said}", end=" ", flush=True)
    log = LOGS / f"{artifact}-{experiment}-{scale}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as output:
        done = subprocess.run(
            [cli(artifact), "reproduce", experiment, "--scale", scale],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s" if done.returncode == 0 else f"FAILED ({done.returncode})", flush=True)
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-30:]
        print("\n".join(f"    {line}" for line in tail))
        print(f"    (the whole of it: {log.relative_to(ROOT)})")
    return Outcome(artifact, experiment, done.returncode, seconds)


def table(outcomes: list[Outcome]) -> str:
    """PASS or FAIL per experiment, and the sum."""
    names = [f"{outcome.artifact} {outcome.experiment}" for outcome in outcomes]
    width = max(map(len, names), default=0)
    lines = [
        f"{'FAIL' if outcome.code else 'PASS'}  {name:<{width}}  {outcome.seconds:7.1f} s"
        for name, outcome in zip(names, outcomes, strict=True)
    ]
    failed = sum(outcome.code != 0 for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    lines.append("")
    lines.append(
        f"{len(outcomes) - failed} of {len(outcomes)} experiments ran, in {seconds / 60:.1f} min"
    )
    return "\n".join(lines)


def main() -> int:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("which", choices=("demo", "all"))
    parser.add_argument("scale", choices=get_args(claims.Scale))
    parser.add_argument("artifact", nargs="*", default=[])
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds: run() ends what it started
    known = artifacts()
    for name in given.artifact:
        if name not in known:
            parser.error(f"no artifact {name!r} with claims; there are: {', '.join(known) or '-'}")
    outcomes = []
    for artifact in given.artifact or known:
        chosen = experiments(artifact, given.scale)
        if given.which == "demo":
            wanted = demo(artifact)
            chosen = {name: minutes for name, minutes in chosen.items() if name in wanted}
        for name, minutes in chosen.items():
            outcomes.append(reproduce(artifact, name, given.scale, minutes))
    print(f"\n{table(outcomes)}\n")
    return int(not outcomes or any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
