"""Killed, torn, flipped, full, cut off and stopped: what was done to a run, and what was found."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import Fault, ShorthaulError
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.experiments import _damage, _hinder, _kill
from smart_infinity.experiments._faults import EMULATED, FAULTS
from smart_infinity.experiments._kill import PHASES, Reference, Tally

Rows = list[list[Any]]


def _kills(context: Context, reference: Reference, tally: Tally) -> tuple[Rows, list[float]]:
    """Kill the same run again and again; each time it goes on from what is left."""
    draw = random.Random(context.seed)
    folders = _kill.folders(context.workdir, "killed")
    rows, seconds, last = [], [], 0
    for number in range(context.settings["rounds"]):
        # By turns the host and each device; the moment is drawn.
        killed = _kill.run_and_kill(folders, draw, number % (len(folders) + 1) - 1)
        left = _kill.look(folders, reference)
        tally.see(left, durable=killed.durable, returned=max(killed.returned, last))
        tally.unnamed += not killed.named
        if killed.victim != "host":
            seconds.append(killed.ended_s)
        victim = "host" if killed.victim == "host" else f"device {Path(killed.victim).name}"
        rows.append([
            number, victim, killed.durable, killed.returned, "/".join(map(str, left.steps)),
            left.step, left.differs, round(killed.ended_s, 2),
        ])  # fmt: skip
        context.run.metric(
            round=number, victim=victim, returned=killed.returned, step=left.step,
            differs=left.differs, ended_s=killed.ended_s,
        )  # fmt: skip
        last = left.step
    tally.differs += _kill.goes_on(folders, reference, 3) > 0
    if last == 0:
        raise Fault("every run was killed before its first step: nothing was tried")
    return rows, seconds


def _phases(context: Context, reference: Reference, tally: Tally) -> Rows:
    """Kill all devices in each phase of a commit; the fourth step there is, or is not."""
    rows: Rows = []
    for phase in PHASES:
        folders = _kill.folders(context.workdir, f"phase-{phase.replace(' ', '-')}")
        _kill.stop_in(phase, folders, 3)
        left = _kill.look(folders, reference)
        committed = phase == PHASES[-1]
        tally.see(left, durable=4 if committed else 3, returned=4)
        tally.mixed += left.step != (4 if committed else 3)
        differs = _kill.goes_on(folders, reference, 2)
        tally.differs += differs > 0
        rows.append([phase, "/".join(map(str, left.steps)), left.step, differs])
        context.run.metric(phase=phase, steps=left.steps, step=left.step, differs=differs)
    return rows


def _damages(
    context: Context, reference: Reference, tally: Tally
) -> tuple[dict[str, dict[str, str]], int, int]:
    """Damage every region of one device's file in every way; matrix, cases, those unnoticed."""
    rng = np.random.default_rng(context.seed)
    folders = _kill.folders(context.workdir, "damaged")
    with _kill.started(folders) as (optimizer, params):
        _kill.train(optimizer, params, 3)
        before = (folders[1] / "state.smart").read_bytes()
        _kill.train(optimizer, params, 1)
        note_bytes = optimizer.array.state.note_bytes
    whole = [(folder / "state.smart").read_bytes() for folder in folders]
    truth = [_damage.truth_of(folder, context.workdir / "scratch") for folder in folders]
    matrix: dict[str, dict[str, str]] = {}
    cases = unnoticed = 0
    for number, region in enumerate(_damage.regions(folders[1], note_bytes)):
        row = matrix.setdefault(region.name, {})
        for repeat in range(context.settings["damages"]):
            ways = _damage.damaged(whole[1], before, region, rng)
            for turn, (how, data) in enumerate(ways):
                if data == whole[1]:
                    continue  # what was there is what was put there
                (folders[1] / "state.smart").write_bytes(data)
                said, safe = _damage.judge(folders, truth)
                cases += 1
                unnoticed += not safe
                row[how] = said if row.get(how, said) == said else f"{row[how]} / {said}"
                # Nobody needs to verify or repair first: a run resumes as it is. One way a region.
                tried = number % context.settings["resume_every"] == 0
                if tried and repeat == 0 and (number + turn) % len(_damage.HOWS) == 0:
                    _damage.restore(folders, [whole[0], data])
                    row["resumed"] = f"{how}: {_resumed(folders, reference, tally)}"
                _damage.restore(folders, whole)
        context.run.metric(region=region.name, **row)
    cut = {"the last page": whole[1][:-4096], "half of it": whole[1][: len(whole[1]) // 2]}
    for name, data in cut.items():
        (folders[1] / "state.smart").write_bytes(data)
        said, safe = _damage.judge(folders, truth)
        cases += 1
        unnoticed += not safe
        matrix[f"cut off: {name}"] = {_damage.HOWS[0]: said}
        _damage.restore(folders, whole)
    return matrix, cases, unnoticed


def _resumed(folders: list[Path], reference: Reference, tally: Tally) -> str:
    """Resume from damage: steps are refused, by name, or they are the right ones."""
    try:
        differs = _kill.goes_on(folders, reference, 2)
    except ShorthaulError as error:
        tally.unnamed += str(folders[1]) not in str(error)
        return "refused"
    tally.differs += differs > 0
    return "goes on" if differs == 0 else f"{differs} numbers differ"


def _torn_commit(context: Context, tally: Tally) -> tuple[Rows, int]:
    """Write the head of a commit sector by sector: the step is there whole, or not at all."""
    files = {}
    folders = _kill.folders(context.workdir, "torn")
    for phase in ("all prepared", "all committed"):
        shutil.rmtree(context.workdir / "torn")
        _kill.stop_in(phase, folders, 3)
        files[phase] = [(folder / "state.smart").read_bytes() for folder in folders]
        if phase == "all committed":
            truth = [_damage.truth_of(folder, context.workdir / "scratch") for folder in folders]
    prepared, committed = files["all prepared"], files["all committed"]
    rows, torn = [], 0
    changed = [
        page for page in range(0, len(committed[0]), _damage.PAGE)
        if committed[0][page : page + _damage.PAGE] != prepared[0][page : page + _damage.PAGE]
    ]  # fmt: skip
    # The first device tears while the other has only prepared; the second when the first is done.
    for device, other in ((0, prepared[1]), (1, committed[0])):
        for page in changed:
            for sectors in range(_damage.PAGE // _damage.SECTOR + 1):
                made = bytearray(prepared[device])
                end = page + sectors * _damage.SECTOR
                made[page:end] = committed[device][page:end]
                both = [bytes(made), other] if device == 0 else [other, bytes(made)]
                _damage.restore(folders, both)
                said, safe = _damage.judge(folders, truth)
                tally.mixed += not safe
                torn += 1
                where = (
                    f"page {page // _damage.PAGE}, of {'first' if device == 0 else 'last'} device"
                )
                rows.append([f"{sectors} of 8 sectors of {where}", said])
    return rows, torn


def run(context: Context) -> Summary:
    """Kills at random, kills in every phase of a commit, damages, and hindrances."""
    import torch

    torch.set_num_threads(1)
    notes: list[str] = []
    reference, tally = Reference(), Tally()
    kills, seconds = _kills(context, reference, tally)
    phases = _phases(context, reference, tally)
    matrix, cases, unnoticed = _damages(context, reference, tally)
    torn, torn_cases = _torn_commit(context, tally)
    hindered, faults = _hinder.run(context, reference, tally, notes)
    victims = Counter(row[1] for row in kills)
    metrics = {
        "rounds": len(kills),
        "victims": dict(victims),
        "mixed_states": tally.mixed,
        "lost_durable": tally.lost,
        "resume_differs": tally.differs,
        "unnamed": tally.unnamed,
        "phases": len(phases),
        "damages": cases + torn_cases,
        "damage_undetected": unnoticed,
        "faults": faults,
        "slowest_naming_s": max([*seconds, *(row[4] for row in hindered)], default=None),
        "steps_survived": kills[-1][5],
    }
    tables = [
        Table("crash_kills", "SIGKILL at random moments, one run",
              ["kill", "victim", "known durable", "parameters seen of", "steps on disk",
               "resumed at", "numbers that differ", "seconds to its end"], kills,
              "Parameters and moments are compared with torch's, bit for bit, at every resume."),
        Table("crash_phases", "All devices killed in a phase of the fourth step's commit",
              ["phase", "steps on disk", "resumed at", "numbers that differ two steps on"], phases),
        Table("crash_damage", "One device's file damaged after step 4",
              ["region", *_damage.HOWS, "resumed without repair"],
              _damage.as_rows(matrix),
              "back at: step 3 is whole on all devices, and is what repair gives."),
        Table("crash_torn", "The page that commits step 4, written in part",
              ["written", "found"], torn),
        Table("crash_hindered", "What else can go wrong",
              ["what", "said", "step found", "numbers that differ", "seconds"], hindered),
    ]  # fmt: skip
    figure = Figure(
        "crash", "Until a run that lost a device has ended, naming it", "points",
        list(range(1, len(seconds) + 1)), "kill of a device", "s",
        [Series("seconds", list(seconds))],
    )  # fmt: skip
    return Summary(metrics, [figure], tables, notes, EMULATED if faults else None)


EXPERIMENT = Experiment(
    id="crash",
    title="After SIGKILL, torn and flipped sectors: a whole step, or a clear error",
    source="notes, checks 10, 11 and 21; Must show 7",
    run=run,
    scales={
        "smoke": {
            "rounds": 3, "damages": 1, "resume_every": 3, "timeout_s": 4.0,
            "faults": ["a later write fails: EIO", "a write finds no space: ENOSPC",
                       "the sync of commit fails: EIO", "every read is short"],
        },
        "small": {"rounds": 50, "damages": 8, "resume_every": 1, "timeout_s": 20.0,
                  "faults": list(FAULTS)},
    },
    minutes={"smoke": 1, "small": 8},
)  # fmt: skip
