"""Figure 14, the media's side: the disk alone, a step on it beside that, and slowed media.

Raw tests move 1 MiB at a time past the page cache. Steps and raw tests take turns, with as many
bytes: the disk is the same in both, whatever else uses it. A step is set against the faster of the
raw tests of its round, with 16 transfers at once as the notes have it and with 64.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import bench
from smart_infinity.client import DeviceOptions
from smart_infinity.planner import Setup
from smart_infinity.rates import RawDisk

SLOTS, RAW_DEPTHS = (8, 24), (16, 64)
WAYS = {"read": (1, 0), "write": (0, 1), "both": (1, 1)}
STATE = Setup(params=1).state_bytes  # read, and written, per parameter and step


def _run(disk: RawDisk, total: int, reads: int, writes: int) -> Callable[[], float]:
    return lambda: disk.run(total, reads=reads, writes=writes).total


def _step(one: bench.Bench, total: int) -> Callable[[], float]:
    return lambda: total / one.step()["total_s"]


def _depths(context: Context) -> dict[int, dict[str, list[float]]]:
    """Bytes a second by transfers at once and by way."""
    s = context.settings
    found = {}
    for depth in s["depths"]:
        disk = RawDisk(context.workdir, s["mib"], depth)
        try:
            runners = {name: _run(disk, s["mib"] << 19, *way) for name, way in WAYS.items()}
            found[depth] = stats.interleave(runners, s["rounds"])
        finally:
            disk.close()
        context.run.metric(depth=depth, **found[depth])
    return found


def _beside(context: Context) -> dict[str, list[float]]:
    """Media bytes a second of steps, to their end, and of raw tests, by turns."""
    s = context.settings
    folder = context.workdir / "step"
    folder.mkdir(exist_ok=True)
    total = int(2 * STATE * s["params"])
    with ExitStack() as stack:
        runners: dict[str, Callable[[], float]] = {}
        for slots in SLOTS:
            config = bench.Config(
                params=s["params"], seed=context.seed,
                options=DeviceOptions(slots=slots, window=slots),
            )  # fmt: skip
            (folder / str(slots)).mkdir(exist_ok=True)
            one = stack.enter_context(bench.Bench(config, [folder / str(slots)]))
            runners[f"step, {slots} slots"] = _step(one, total)
        for depth in RAW_DEPTHS:
            disk = RawDisk(context.workdir, max(s["mib"], 2 * depth), depth)
            stack.callback(disk.close)
            runners[f"raw, {depth} at once"] = _run(disk, total, 1, 1)
        runners["raw again"] = runners[f"raw, {RAW_DEPTHS[-1]} at once"]
        # A new file's first steps read what was never written.
        found = stats.interleave(runners, s["rounds"], warmup=2)
    context.run.metric(what="step beside raw", **found)
    return found


def _slowed(context: Context, read: float, write: float) -> dict[str, float]:
    """What a slowed device delivers of what it is slowed to, by the way that bounds its step."""
    s = context.settings
    folder = context.workdir / "slowed"
    folder.mkdir(exist_ok=True)
    config = bench.Config(
        params=s["slowed_params"], tile=1 << 15, seed=context.seed,
        options=DeviceOptions(read_rate=read, write_rate=write),
    )  # fmt: skip
    report = bench.run(config, [folder], s["rounds"])
    delivered = STATE * s["slowed_params"] / report["seconds"]["total_s"]
    found = {"read": read, "write": write, "delivered": delivered / min(read, write)}
    context.run.metric(what="slowed", **found)
    return found


def run(context: Context) -> Summary:
    """The disk at every depth, a step beside it, and devices slowed to several rates."""
    s = context.settings
    depths, beside = _depths(context), _beside(context)
    slowed = [_slowed(context, read, write) for read, write in s["rates"]]
    medians = {
        depth: {way: stats.median(taken) for way, taken in each.items()}
        for depth, each in depths.items()
    }
    most = medians[max(medians)]
    raws = [beside[f"raw, {depth} at once"] for depth in RAW_DEPTHS]
    best = [max(round_) for round_ in zip(*raws, strict=True)]
    metrics: dict[str, Any] = {
        "raw": {str(depth): each for depth, each in medians.items()},
        "beside": {name: stats.median(taken) for name, taken in beside.items()},
        "step_over_raw": {
            str(slots): stats.paired_ratio(beside[f"step, {slots} slots"], best) for slots in SLOTS
        },
        "step_over_16": stats.paired_ratio(
            beside[f"step, {SLOTS[0]} slots"], beside[f"raw, {RAW_DEPTHS[0]} at once"]
        ),
        "limit_params_per_s": stats.median(best) / (2 * STATE),
        "delivered": [one["delivered"] for one in slowed],
    }
    bars: list[str | float] = ["read", "write", "both", "a step"]
    figures = [
        Figure(
            "fig14_media", "The media alone, and in a step", "bars", bars, "what", "GB/s",
            [Series("measured", [*(most[way] / 1e9 for way in WAYS),
                                 metrics["beside"][f"step, {SLOTS[0]} slots"] / 1e9]),
             Series("paper", [3.2, 1.7, None, None], kind="paper")],
            f"Transfers of 1 MiB, {max(medians)} at once; both and a step: reads and writes "
            "together.",
        ),
        Figure(
            "depths", "The disk alone, by transfers at once", "lines", list(medians),
            "transfers at once", "GB/s",
            [Series(way, [each[way] / 1e9 for each in medians.values()],
                    low=[min(each[way]) / 1e9 for each in depths.values()],
                    high=[max(each[way]) / 1e9 for each in depths.values()])
             for way in WAYS],
            log_x=True,
        ),
    ]  # fmt: skip
    beside_table = Table(
        "beside", "Media bytes of steps and of raw tests, by turns",
        ["what", "MB/s, median", "lowest", "highest"],
        [[name, *(round(value / 1e6) for value in (stats.median(taken), min(taken), max(taken)))]
         for name, taken in beside.items()],
    )  # fmt: skip
    table = Table(
        "slowed", "Media slowed by token buckets",
        ["reads, MB/s", "writes, MB/s", "delivered / slower of them"],
        [[one["read"] / 1e6, one["write"] / 1e6, round(one["delivered"], 3)] for one in slowed],
        "Of a step to its end, in which a first tile is read before anything is written.",
    )  # fmt: skip
    noise = stats.noise(raws[-1], beside["raw again"])
    return Summary(
        metrics, figures, [beside_table, table],
        emulated="`delivered` alone: one device slowed by token buckets; all else is the disk as "
        "it is",
        noise=noise,
    )  # fmt: skip


EXPERIMENT = Experiment(
    id="media",
    title="The disk alone, and what a step gets of it",
    source="Smart-Infinity, figure 14; notes, check 8; Must show 4",
    run=run,
    scales={
        "smoke": {"mib": 64, "depths": [1, 16], "params": 1 << 23, "slowed_params": 1 << 20,
                  "rates": [[100e6, 53e6]], "rounds": 3},
        "small": {"mib": 1024, "depths": [1, 2, 4, 8, 16, 32], "params": 1 << 26,
                  "slowed_params": 1 << 22, "rates": [[100e6, 53e6], [50e6, 50e6], [80e6, 160e6]],
                  "rounds": 7},
    },
    minutes={"smoke": 0.2, "small": 3},
    gigabytes={"smoke": 0.3, "small": 3},
)  # fmt: skip
