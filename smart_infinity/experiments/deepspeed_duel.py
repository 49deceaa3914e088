"""The optimizer's phase beside DeepSpeed's NVMe offload, on one disk, by turns.

Everyone trains the same model on the same batches in a process of its own, with AdamW in float32
and gradients clipped to a norm that they rarely reach, as in training past its beginning; a raw
test of the disk with what ours moves takes its turn too. DeepSpeed has the settings that a short
search before finds best for it; ours has its defaults, and `speculate=True` in a turn of its own.
Its phase is its `engine.step()`, which syncs nothing. Ours is given twice: until `step()` returns,
with parameters new, as DeepSpeed's does; and until the step is durable, which a training loop waits
for only where its next forward and backward pass are shorter than that.

Who works in the backward pass has a short step for it. So the same model's forward and backward
pass with no optimizer takes its turn as well, and of everyone it is said what an iteration, until
it is durable, takes beyond that. Bytes are the kernel's count, of the backward pass and the step:
DeepSpeed writes gradients in both.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shorthaul import logs, stats
from shorthaul.errors import Fault
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity.deepspeed_environment import Environment
from smart_infinity.duel import Driver
from smart_infinity.experiments._deepspeed import NVME, OPTIMIZER, environment
from smart_infinity.rates import RawDisk

_log = logs.get(__name__)

OURS, AHEAD, BF16 = "ours", "ours, ahead of the step", "ours, moments in bfloat16"
RAW, BARE = "raw disk", "no optimizer"
PIPELINED, PLAIN, INSIDE = "DeepSpeed, pipelined", "DeepSpeed", "ours in DeepSpeed"
KEYS = {OURS: "ours", AHEAD: "ahead", BF16: "ours_bfloat16", PIPELINED: "pipelined", PLAIN: "plain",
        INSIDE: "inside"}  # fmt: skip
MIB = 2**20
_WHOLE = 1_000_000_000  # DeepSpeed's default: one subgroup


class _Contestant:
    """A side that is open, and steps when it is its turn."""

    def __init__(
        self, context: Context, name: str, there: Environment | None, settings: Mapping[str, Any],
        layers: int,
    ) -> None:  # fmt: skip
        s = context.settings
        side = "bare" if name == BARE else "smart" if there is None else "deepspeed"
        self.driver = Driver(side, there, threads=s["threads"])
        try:
            opened = self.driver.open(
                model={**s["model"], "layers": layers}, vocabulary=s["vocabulary"],
                batch=s["batch"], seed=context.seed, optimizer=OPTIMIZER, max_norm=s["max_norm"],
                settings=settings,
            )  # fmt: skip
        except BaseException:
            self.driver.__exit__()
            raise
        self.name, self.params = name, int(opened["params"])
        self.taken = 0

    def step(self) -> dict[str, Any]:
        """Train on the next batch; seconds, loss, bytes a parameter and peak memory."""
        answer = self.driver.ask("step", number=self.taken)
        self.taken += 1
        total, call = answer["phases"]["total_s"], answer["phases"]["update_s"]
        moved = {
            direction: sum(
                part[direction] for who in answer["bytes"].values() for part in who.values()
            ) / self.params
            for direction in ("read", "write")
        }  # fmt: skip
        return {
            "total_s": total, "call_s": call, "iteration_s": total + answer["backward_s"],
            "loss": answer["loss"],
            **moved, **{f"peak_{who}": size for who, size in answer["peak"].items()},
        }  # fmt: skip


def _nvme(context: Context, name: str, pipeline: bool, chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {"device": "nvme", "folder": str(_folder(context, name)), "pipeline": pipeline, **chosen}


def _folder(context: Context, name: str) -> Path:
    """Give a contestant's folder, new and empty."""
    folder = context.workdir / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _tuned(
    context: Context, there: Environment, pipeline: bool, chosen: dict[str, Any], notes: list[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search DeepSpeed's best settings, one after the other; give them, and what was tried."""
    s = context.settings
    tried: list[dict[str, Any]] = []

    def trial(settings: dict[str, Any]) -> float:
        given = _nvme(context, "tuning", pipeline, settings)
        try:
            one = _Contestant(context, "tuning", there, given, s["tune_layers"])
            with one.driver:
                # The first makes the moments' files.
                seconds = min([one.step()["total_s"] for _ in range(1 + s["tune_steps"])][1:])
            rate = round(one.params / seconds / 1e6, 1)
        except Fault as error:  # it asserts where settings do not suit one another
            seconds, rate = math.inf, 0.0
            notes.append(f"DeepSpeed cannot run with {settings}: {error}")
        shutil.rmtree(given["folder"])
        tried.append({"pipeline": pipeline, **settings, "mparams_per_s": rate})
        context.run.metric(tuning=tried[-1])
        _log.info("tuning: %s", tried[-1])
        return seconds

    best = trial(chosen) if s["tune"] else 0.0
    # Not pipelined, it begins with what was best so: the calls to the disk are the same.
    for name in s["tune"] if pipeline else s["tune_plain"]:
        for value in s["tune"][name]:
            if value == chosen[name]:
                continue
            seconds = trial({**chosen, name: value})
            if seconds < best:
                best, chosen = seconds, {**chosen, name: value}
    return chosen, tried


def _settings(
    context: Context, there: Environment | None, notes: list[str]
) -> tuple[dict[str, Callable[[], dict[str, Any]]], dict[str, Any]]:
    """Give what makes each contestant's settings, with new folders; and those DeepSpeed has."""
    made: dict[str, Callable[[], dict[str, Any]]] = {
        OURS: lambda: {"devices": [_folder(context, OURS)]},
        AHEAD: lambda: {"devices": [_folder(context, AHEAD)], "speculate": True},
        BF16: lambda: {"devices": [_folder(context, BF16)], "moments": "bfloat16"},
    }
    made[BARE] = dict
    tuned: dict[str, Any] = {}
    if there is not None:
        chosen = {"sub_group_size": context.settings["sub_group_size"], **NVME}
        for name, pipeline in ((PIPELINED, True), (PLAIN, False)):
            chosen, tried = _tuned(context, there, pipeline, chosen, notes)
            tuned[KEYS[name]] = {**chosen, "tried": tried}
            made[name] = functools.partial(_nvme, context, name, pipeline, chosen)
        made[INSIDE] = lambda: {
            "device": "smart", "sub_group_size": _WHOLE,
            "arguments": {"devices": [_folder(context, INSIDE)]},
        }  # fmt: skip
    return made, tuned


def _params(s: dict[str, Any]) -> int:
    """Give the parameters of GPT-2 with output and input embeddings tied."""
    width = s["model"]["width"]
    block = 12 * width**2 + 13 * width
    return int((s["vocabulary"] + s["model"]["context"] + 2) * width + s["model"]["layers"] * block)


class _Disk:
    """The disk itself: as many bytes as our step moves, in transfers of 1 MiB."""

    def __init__(self, context: Context, params: int) -> None:
        self.total = 24 * params
        self.raw = RawDisk(context.workdir, max(self.total // MIB, 64))

    def step(self) -> dict[str, Any]:
        """Move them."""
        rate = self.raw.run(self.total)
        return {"total_s": rate.seconds, "rate": rate.total}


def _seating(
    context: Context, there: Environment | None,
    made: Mapping[str, Callable[[], dict[str, Any]]], number: int,
) -> tuple[dict[str, list[dict[str, Any]]], int]:  # fmt: skip
    """Open everyone anew, each in its turn, and let them step; give that, and the parameters.

    How fast a file is depends on where on the disk it lies, by a factor of two on virtual disks,
    and stays so: in every seating everyone begins with other free places.
    """
    s = context.settings
    order = [*made, RAW]
    first = number * len(order) // s["seatings"]
    with ExitStack() as stack:
        turns: dict[str, Callable[[], dict[str, Any]]] = {}
        for name in order[first:] + order[:first]:
            if name == RAW:
                disk = _Disk(context, _params(s))
                stack.callback(disk.raw.close)
                turns[name] = disk.step
                continue
            where = there if name in (PIPELINED, PLAIN, INSIDE) else None
            one = _Contestant(context, name, where, made[name](), s["model"]["layers"])
            stack.enter_context(one.driver)
            turns[name] = one.step
            params = one.params
        taken = stats.interleave(turns, s["rounds"], warmup=1)
    for name in made:
        shutil.rmtree(_folder(context, name), ignore_errors=True)
    for name, rounds in taken.items():
        context.run.metric(seating=number, contestant=name, rounds=rounds)
    return taken, params


def run(context: Context) -> Summary:
    """Search DeepSpeed's settings, then let everyone step by turns, in several seatings."""
    s = context.settings
    notes: list[str] = []
    there = environment(context, notes)
    made, tuned = _settings(context, there, notes)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in (*made, RAW)}
    params = 0
    for number in range(s["seatings"]):
        taken, params = _seating(context, there, made, number)
        for name, found in taken.items():
            rounds[name] += found
    metrics = _metrics(rounds, params, [name for name in made if name != BARE])
    metrics["settings"] = tuned
    metrics["absent"] = [] if there else ["deepspeed"]
    if there is None:
        notes.append("Ours and the raw disk were measured all the same.")
    notes.append(
        f"{params:,} parameters in float32, batches of {s['batch']} windows of "
        f"{s['model']['context']} tokens, "
        f"clipped to {s['max_norm']:g}, {s['threads']} threads; {s['seatings']} seatings with new "
        f"files, in each {s['rounds']} rounds after one that is not counted."
    )
    seconds = [one["total_s"] for one in rounds[OURS]]
    half = len(seconds) // 2
    noise = stats.noise(seconds[:half], seconds[-half:])
    return Summary(metrics, _figures(metrics), _tables(metrics, rounds, tuned), notes, noise=noise)


def _metrics(
    rounds: Mapping[str, list[dict[str, Any]]], params: int, names: list[str]
) -> dict[str, Any]:
    def of(name: str, key: str) -> list[float]:
        return [one[key] for one in rounds[name]]

    def over(name: str, key: str = "total_s") -> dict[str, float]:
        return stats.paired_ratio(of(name, key), of(OURS, key))

    def over_call(name: str, one: str = OURS) -> dict[str, float]:
        return stats.paired_ratio(of(name, "call_s"), of(one, "call_s"))

    # What an iteration takes beyond its forward and backward pass.
    added = {
        name: [a - b for a, b in zip(of(name, "iteration_s"), of(BARE, "iteration_s"), strict=True)]
        for name in names
    }
    theirs = [name for name in names if name not in (OURS, AHEAD, BF16)]
    # A step of 24 bytes a parameter against the disk's own time for as many: with bfloat16 16.
    sustained = {
        OURS: stats.paired_ratio(of(RAW, "total_s"), of(OURS, "total_s")),
        BF16: stats.paired_ratio(
            [16 / 24 * seconds for seconds in of(RAW, "total_s")], of(BF16, "total_s")
        ),
    }
    metrics: dict[str, Any] = {
        "params": params,
        "seconds": {KEYS[name]: stats.median(of(name, "total_s")) for name in names},
        "call_s": {KEYS[name]: stats.median(of(name, "call_s")) for name in names},
        "iteration_s": {KEYS[name]: stats.median(of(name, "iteration_s")) for name in names},
        "params_per_s": {
            KEYS[name]: params / stats.median(of(name, "total_s")) for name in names
        },
        "over": {KEYS[name]: over(name) for name in theirs},
        "call_over": {KEYS[name]: over_call(name) for name in theirs},
        "iteration_over": {KEYS[name]: over(name, "iteration_s") for name in theirs},
        "bare_s": stats.median(of(BARE, "iteration_s")),
        "added_s": {KEYS[name]: stats.median(added[name]) for name in names},
        "added_over": {
            KEYS[name]: stats.paired_ratio(added[name], added[OURS]) for name in theirs
        },
        "added_over_ahead": {
            KEYS[name]: stats.paired_ratio(added[name], added[AHEAD]) for name in theirs
        },
        "call_over_ahead": {KEYS[name]: over_call(name, AHEAD) for name in theirs},
        "float32_over_bfloat16": stats.paired_ratio(of(OURS, "total_s"), of(BF16, "total_s")),
        "of_raw": {KEYS[name]: ratio for name, ratio in sustained.items()},
        "raw_mb_per_s": stats.median(of(RAW, "rate")) / 1e6,
        "media_bytes_per_param": {
            KEYS[name]: {
                "read": stats.median(of(name, "read")), "write": stats.median(of(name, "write")),
                "total": stats.median([one["read"] + one["write"] for one in rounds[name]]),
            }
            for name in names
        },
        "peak_mib": {
            KEYS[name]: {
                who: max(of(name, f"peak_{who}")) / MIB for who in ("host", "devices")
            }
            for name in names
        },
        "losses_apart": {
            KEYS[name]: max(
                abs(a - b) for a, b in zip(of(name, "loss"), of(OURS, "loss"), strict=True)
            )
            for name in names if name != OURS
        },
    }  # fmt: skip
    if theirs:
        for ratio in ("over", "call_over", "call_over_ahead", "added_over", "added_over_ahead"):
            both = [metrics[ratio][KEYS[name]]["median"] for name in (PIPELINED, PLAIN)]
            metrics[f"least_{ratio}"] = min(both)
        metrics["float32_losses_apart"] = max(metrics["losses_apart"][KEYS[n]] for n in theirs)
    return metrics


def _figures(metrics: dict[str, Any]) -> list[Figure]:
    names = {key: name for name, key in KEYS.items() if key in metrics["seconds"]}
    media = metrics["media_bytes_per_param"]
    x: list[str | float] = list(names.values())
    return [
        Figure(
            "phase", "Optimizer phase on one disk, by turns", "bars", x, "", "seconds",
            [Series("until step() returns", [metrics["call_s"][key] for key in names]),
             Series("until all is durable (DeepSpeed: the same, it syncs nothing)",
                    [metrics["seconds"][key] for key in names]),
             Series("an iteration, beyond its forward and backward pass",
                    [metrics["added_s"][key] for key in names])],
        ),
        Figure(
            "media", "What a training step moves to and from the disk", "stacked", x, "",
            "bytes per parameter, by the kernel's count",
            [Series(way, [media[key][way] for key in names]) for way in ("read", "write")],
        ),
    ]  # fmt: skip


def _tables(
    metrics: dict[str, Any], rounds: Mapping[str, list[dict[str, Any]]], tuned: dict[str, Any]
) -> list[Table]:
    rows: list[list[Any]] = []
    for name, key in KEYS.items():
        if name not in rounds:
            continue
        media, peak = metrics["media_bytes_per_param"][key], metrics["peak_mib"][key]
        call_over, over = (
            ratio and f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            for ratio in (metrics["call_over"].get(key), metrics["over"].get(key))
        )
        rows.append([
            name, round(metrics["call_s"][key], 3), call_over or "",
            round(metrics["seconds"][key], 3), over or "",
            round(metrics["params_per_s"][key] / 1e6, 1),
            round(metrics["iteration_s"][key], 3), round(metrics["added_s"][key], 3),
            round(media["read"], 2),
            round(media["write"], 2), round(peak["host"]), round(peak["devices"]),
        ])  # fmt: skip
    raw = stats.median([one["total_s"] for one in rounds[RAW]])
    rate = round(metrics["params"] / raw / 1e6, 1)
    rows.append([f"{RAW}, 12 + 12 bytes", "", "", round(raw, 3), "", rate, "", "", 12, 12, "", ""])
    rows.append([BARE, "", "", "", "", "", round(metrics["bare_s"], 3), "", "", "", "", ""])
    columns = ["", "step() returns after, s", "over ours", "durable after, s",
               "over ours, durable", "million parameters a second, durable",
               "with forward and backward, s", "of these beyond them, s", "read, B/param",
               "written, B/param",
               "peak memory of the host, MiB", "of devices, MiB"]  # fmt: skip
    tables = [Table("duel", "Optimizer phase and what it moves", columns, rows)]
    tried = [one for found in tuned.values() for one in found["tried"]]
    if tried:
        tables.append(Table(
            "tuning", "DeepSpeed's settings that were tried, in this order, on a smaller model",
            [*list(tried[0])[:-1], "million parameters a second"],
            [list(one.values()) for one in tried],
        ))  # fmt: skip
    return tables


_COMMON = {"threads": 2, "make_environment": False, "max_norm": 100.0}
EXPERIMENT = Experiment(
    id="deepspeed_duel",
    title="Optimizer phase beside DeepSpeed's NVMe offload, pipelined and not",
    source="ours; notes, section 3 and checks 8 and 9; Must show 4",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "model": {"family": "gpt2", "layers": 2, "width": 256, "heads": 4,
                                 "context": 32},
            "vocabulary": 2048, "batch": 1, "seatings": 1, "rounds": 4,
            "sub_group_size": 500_000, "tune": {}, "tune_plain": [], "tune_layers": 2,
            "tune_steps": 1,
        },
        "small": {
            **_COMMON, "model": {"family": "gpt2", "layers": 9, "width": 768, "heads": 12,
                                 "context": 32},
            "vocabulary": 8192, "batch": 8, "seatings": 4, "rounds": 2, "sub_group_size": 4_000_000,
            "tune": {"sub_group_size": [4_000_000, 16_000_000], "intra_op_parallelism": [2],
                     "block_size": [8 << 20]},
            "tune_plain": ["sub_group_size"], "tune_layers": 3, "tune_steps": 2,
            "make_environment": True,
        },
    },
    minutes={"smoke": 0.3, "small": 13},
    gigabytes={"smoke": 0.3, "small": 10},
    needs={"small": "libaio-dev and a C++ compiler, and the first time about 12 minutes more for "
                    "DeepSpeed's operators"},
)  # fmt: skip
