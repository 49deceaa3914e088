"""What comes back after a stop: ours, ours in DeepSpeed, and DeepSpeed's own offloads.

Everyone first trains without a stop. Then it is stopped and goes on in new processes: by its
checkpoint of a step, or, where the devices' folders are the checkpoint, after it has ended or was
killed in the middle of a step. Losses, parameters and moments after the last step are compared bit
by bit. Beside that, ours in DeepSpeed is compared with torch's AdamW in it.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shorthaul.experiments import Context, Experiment, Summary, Table

from smart_infinity.deepspeed_environment import Environment
from smart_infinity.duel import Driver
from smart_infinity.experiments._deepspeed import MAX_NORM, NVME, OPTIMIZER, environment

STATE = ("parameters", "exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class System:
    """Who is stopped.

    Attributes:
        title: Its name for readers.
        settings: Of its side, from the folder it may use.
    """

    title: str
    settings: Callable[[Context, Path], dict[str, Any]]
    deepspeed: bool = True


def _given(device: str, **arguments: Any) -> Callable[[Context, Path], dict[str, Any]]:
    """Settings of DeepSpeed with an optimizer that is given to it."""

    def settings(context: Context, folder: Path) -> dict[str, Any]:
        own = {"devices": [folder], "tile": 1 << 16} if device == "smart" else {}
        return {"device": device, **_groups(context), "arguments": {**arguments, **own}}

    return settings


def _groups(context: Context) -> dict[str, Any]:
    return {"sub_group_size": context.settings["sub_group_size"]}


SYSTEMS = {
    "ours": System(
        "SmartOptimizer",
        lambda _, folder: {"devices": [folder], "tile": 1 << 16}, deepspeed=False,
    ),
    "inside": System("SmartOptimizer in DeepSpeed", _given("smart", checkpoint="state")),
    "torch": System("torch's AdamW in DeepSpeed", _given("torch", fused=True)),
    "cpu": System(
        "DeepSpeed, offload to CPU",
        lambda context, _: {"device": "cpu", **_groups(context)},
    ),
    "nvme": System(
        "DeepSpeed, offload to NVMe",
        lambda context, folder: {
            "device": "nvme", "folder": str(folder), "pipeline": False, **NVME, **_groups(context)
        },
    ),
}  # fmt: skip


class _Trial:
    """One system's runs."""

    def __init__(self, context: Context, key: str, there: Environment | None, dtype: str) -> None:
        self.context, self.s = context, context.settings
        self.system, self.there = SYSTEMS[key], there if SYSTEMS[key].deepspeed else None
        self.stops = self.s["stops"][key]
        self.model = {**self.s["model"], "dtype": dtype}
        self.folder = context.workdir / f"{key}-{dtype}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.saved = self.folder / "checkpoint"
        self.draw = random.Random(context.seed)

    def _opened(self, name: str) -> Driver:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        driver = Driver("deepspeed" if self.there else "smart", self.there)
        try:
            driver.open(
                model=self.model, vocabulary=self.s["vocabulary"], batch=2, optimizer=OPTIMIZER,
                max_norm=MAX_NORM, seed=self.context.seed,
                settings=self.system.settings(self.context, folder),
            )  # fmt: skip
        except BaseException:
            driver.__exit__()
            raise
        return driver

    def _train(self, driver: Driver, begin: int, end: int) -> list[float]:
        return [driver.ask("step", number=number)["loss"] for number in range(begin, end)]

    def uninterrupted(self) -> dict[str, Any]:
        """Train all steps in one process, and leave a checkpoint of the stop on the way."""
        with self._opened("reference") as driver:
            losses = self._train(driver, 0, self.s["stop"])
            if "checkpoint" in self.stops:
                driver.ask("save", folder=self.saved)
            losses += self._train(driver, self.s["stop"], self.s["steps"])
            found = {"losses": losses, **driver.ask("digest")}
            if self.there is not None:
                found |= driver.ask("replaced")
        return found

    def resumed(self, how: str, reference: dict[str, Any]) -> dict[str, Any]:
        """Stop in one way, go on in new processes, and compare with what had no stop."""
        stop, steps = self.s["stop"], self.s["steps"]
        at = stop
        if how != "checkpoint":
            with self._opened(how) as driver:
                self._train(driver, 0, stop)
                if how == "kill":
                    driver.begin("step", number=stop)
                    time.sleep(self.draw.random() * self.s["kill_within_s"])
                    driver.kill()
        with self._opened(how) as driver:
            if how == "checkpoint":
                driver.ask("load", folder=self.saved)
            else:
                at = int(driver.ask("digest")["step"])
            losses = self._train(driver, at, steps)
            digest = driver.ask("digest")
        apart = [abs(a - b) for a, b in zip(losses, reference["losses"][at:], strict=True)]
        return {
            "stopped": how, "resumed_at": at, "steps_after": digest["step"],
            "losses": losses, "losses_compared": len(apart),
            "losses_that_differ": sum(value != 0 for value in apart),
            "farthest": max(apart, default=0.0),
            **{f"same_{name}": digest[name] == reference[name] for name in STATE},
        }  # fmt: skip


def _differences(found: dict[str, Any]) -> int:
    return found["losses_that_differ"] + sum(not found[f"same_{name}"] for name in STATE)


def run(context: Context) -> Summary:
    """Stop everyone that is there in its ways; then compare bits with torch's AdamW."""
    s = context.settings
    notes: list[str] = []
    there = environment(context, notes)
    systems = [key for key in s["stops"] if there or not SYSTEMS[key].deepspeed]
    references: dict[tuple[str, str], dict[str, Any]] = {}
    rows: list[list[Any]] = []
    metrics: dict[str, Any] = {"absent": [] if there else ["deepspeed"], "steps": s["steps"]}
    for key in systems:
        metrics[key] = {}
        for dtype in s["dtypes"][key]:
            trial = _Trial(context, key, there, dtype)
            reference = references[key, dtype] = trial.uninterrupted()
            context.run.metric(system=key, dtype=dtype, **reference)
            for how in trial.stops:
                found = trial.resumed(how, reference)
                context.run.metric(system=key, dtype=dtype, **found)
                found["differences"] = _differences(found)
                metrics[key].setdefault(dtype, {})[how] = found
                rows.append(_row(trial.system.title, dtype, found))
            shutil.rmtree(trial.folder)
    stopped = [found for key in ("ours", "inside") for found in _stops(metrics, key)]
    metrics["ours_differences"] = sum(found["differences"] for found in stopped)
    metrics["ours_stops"] = len(stopped)
    tables = [Table("resume", "What comes back after a stop", _COLUMNS, rows, _note(s))]
    if "torch" in systems:
        tables.append(_beside_torch(references, metrics))
    return Summary(metrics, [], tables, notes)


def _stops(metrics: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [found for stops in metrics.get(key, {}).values() for found in stops.values()]


_STOPPED = {
    "checkpoint": "saved, loaded by a new process", "end": "ended", "kill": "killed during a step"
}  # fmt: skip
_COLUMNS = ["system", "parameters in", "how it was stopped", "goes on at step",
            "steps its optimizer counts at the end", "losses that differ after it",
            "farthest loss", "parameters the same", "moments the same"]  # fmt: skip


def _row(title: str, dtype: str, found: dict[str, Any]) -> list[Any]:
    moments = found["same_exp_avg"] and found["same_exp_avg_sq"]
    return [
        title, dtype, _STOPPED[found["stopped"]], found["resumed_at"], found["steps_after"],
        f"{found['losses_that_differ']} of {found['losses_compared']}", f"{found['farthest']:.2g}",
        "yes" if found["same_parameters"] else "no", "yes" if moments else "no",
    ]  # fmt: skip


def _note(s: dict[str, Any]) -> str:
    return (
        f"{s['steps']} steps in all, the stop after {s['stop']}; compared with the same run "
        "without a stop, by digests of all bits. Nobody reported anything amiss on loading."
    )


def _beside_torch(
    references: dict[tuple[str, str], dict[str, Any]], metrics: dict[str, Any]
) -> Table:
    """Compare ours in DeepSpeed with torch's fused AdamW in it, without a stop."""
    rows, differences, replaced, looked_at = [], 0, 0, 0
    compared = [dtype for key, dtype in references if key == "torch"]
    for dtype in compared:
        ours, torchs = references["inside", dtype], references["torch", dtype]
        apart = sum(a != b for a, b in zip(ours["losses"], torchs["losses"], strict=True))
        same = [ours[name] == torchs[name] for name in STATE]
        differences += apart + same.count(False)
        replaced += len(ours["replaced"])
        looked_at = max(looked_at, ours["looked_at"])
        words = ["yes" if one else "no" for one in (same[0], same[1] and same[2])]
        rows.append([dtype, f"{apart} of {len(ours['losses'])}", *words, len(ours["replaced"])])
    metrics["beside_torch"] = {
        "compared": len(compared), "differences": differences, "replaced": replaced,
        "looked_at": looked_at,
    }  # fmt: skip
    columns = ["parameters in", "losses that differ", "parameters the same", "moments the same",
               "functions of DeepSpeed that were replaced"]  # fmt: skip
    return Table(
        "beside_torch", "Ours in DeepSpeed beside torch's AdamW(fused) in it", columns, rows,
        f"{looked_at:,} functions, classes and methods of DeepSpeed's modules were looked at, "
        "before ours was attached and after the last step.",
    )  # fmt: skip


_COMMON = {
    "model": {"family": "gpt2", "layers": 2, "width": 256, "heads": 4, "context": 32},
    "vocabulary": 1024, "sub_group_size": 400_000, "kill_within_s": 0.1,
}  # fmt: skip
EXPERIMENT = Experiment(
    id="deepspeed_resume",
    title="Resuming: ours, ours in DeepSpeed, and DeepSpeed's offloads to CPU and NVMe",
    source="ours; notes, section 3 and checks 11 and 20; Must show 7",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "steps": 6, "stop": 3, "make_environment": False,
            "stops": {"ours": ["kill"], "inside": ["checkpoint"], "nvme": ["checkpoint"]},
            "dtypes": {"ours": ["float32"], "inside": ["float32"], "nvme": ["float32"]},
        },
        "small": {
            **_COMMON, "steps": 12, "stop": 6, "make_environment": True,
            "stops": {"ours": ["end", "kill"], "inside": ["kill", "checkpoint"], "torch": [],
                      "cpu": ["checkpoint"], "nvme": ["checkpoint"]},
            "dtypes": {"ours": ["float32", "bfloat16"], "inside": ["float32", "bfloat16"],
                       "torch": ["float32", "bfloat16"], "cpu": ["float32"], "nvme": ["float32"]},
        },
    },
    minutes={"smoke": 0.5, "small": 6},
    needs={"small": "libaio-dev and a C++ compiler, and the first time about 12 minutes more for "
                    "DeepSpeed's operators"},
)  # fmt: skip
