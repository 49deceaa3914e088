"""Two directories, one of them slow: striped by measured speed against equal shares."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import bench
from smart_infinity.client import DeviceOptions
from smart_infinity.planner import Setup

Weights = Literal["measured"] | None
WAYS: dict[str, Weights] = {"equal": None, "measured": "measured", "equal again": None}


@dataclass(frozen=True)
class Striped:
    """A way to stripe: seconds of its steps, share of the slow directory, and what that bounds."""

    seconds: list[float]
    slow_share: float
    bound_s: float


def _measure(context: Context, options: list[DeviceOptions]) -> dict[str, Striped]:
    s = context.settings
    with ExitStack() as stack:
        benches = {}
        for name, weights in WAYS.items():
            folders = [context.workdir / f"{name.replace(' ', '-')}-{d}" for d in range(2)]
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            config = bench.Config(
                params=s["params"], devices=2, tile=s["tile"], each=tuple(options),
                weights=weights, seed=context.seed,
            )  # fmt: skip
            benches[name] = stack.enter_context(bench.Bench(config, folders))
        runners = {name: lambda one=one: one.step()["total_s"] for name, one in benches.items()}
        seconds = stats.interleave(runners, s["rounds"], warmup=1)
        found = {}
        each = Setup(params=s["params"]).state_bytes
        for name, one in benches.items():
            elements = [int(one.array.layout.tile_elements(d).sum()) for d in range(2)]
            # Whatever is striped how, each directory has to write its own part.
            bound = max(n * each / o.write_rate for n, o in zip(elements, options, strict=True))
            found[name] = Striped(seconds[name], elements[1] / sum(elements), bound)
            context.run.metric(
                way=name, slowed_to=options[1].write_rate, seconds=seconds[name],
                slow_share=found[name].slow_share,
            )  # fmt: skip
        return found


def run(context: Context) -> Summary:
    """Both ways by turns, for every factor that one of the directories is slowed by."""
    s = context.settings
    full = DeviceOptions(read_rate=s["read"], write_rate=s["write"])
    found = {}
    for factor in s["factors"]:
        slow = replace(full, read_rate=factor * s["read"], write_rate=factor * s["write"])
        found[factor] = _measure(context, [full, slow])
    gains = {
        factor: stats.paired_ratio(one["equal"].seconds, one["measured"].seconds)
        for factor, one in found.items()
    }
    metrics: dict[str, Any] = {
        # By the slow directory's speed in percent of the other's.
        "gain": {f"{100 * factor:g}": gain for factor, gain in gains.items()},
        "slow_share": {
            f"{100 * factor:g}": one["measured"].slow_share for factor, one in found.items()
        },
        # Shares are right where each directory gets what it can do of what both can.
        "share_over_speed": [
            one["measured"].slow_share / (factor / (1 + factor)) for factor, one in found.items()
        ],
        "gain_over_bounds": [
            gains[factor]["median"] / (one["equal"].bound_s / one["measured"].bound_s)
            for factor, one in found.items()
        ],
    }
    first = next(iter(found.values()))
    noise = stats.noise(first["equal"].seconds, first["equal again"].seconds)
    x: list[str | float] = [f"{factor:g}" for factor in found]
    ways = ("equal", "measured")
    figure = Figure(
        "stripes", "Seconds a step on two directories", "bars", x,
        "speed of the slow directory, of the other's", "s",
        [Series(f"{way} shares" if way == "equal" else "shares by measured speed",
                [stats.median(one[way].seconds) for one in found.values()],
                low=[min(one[way].seconds) for one in found.values()],
                high=[max(one[way].seconds) for one in found.values()])
         for way in ways],
    )  # fmt: skip
    table = Table(
        "stripes", "Shares and seconds of a step",
        ["slow directory's speed", "shares", "slow directory's share", "seconds",
         "its rate alone allows"],
        [[f"{factor:g}", way, round(one[way].slow_share, 3),
          round(stats.median(one[way].seconds), 3), round(one[way].bound_s, 3)]
         for factor, one in found.items() for way in ways],
    )  # fmt: skip
    emulated = (
        f"two directories of one disk, slowed to {s['read'] / 1e6:g} MB/s of reads and "
        f"{s['write'] / 1e6:g} MB/s of writes, the slow one to a part of that, by token buckets"
    )
    return Summary(metrics, [figure], [table], emulated=emulated, noise=noise)


EXPERIMENT = Experiment(
    id="stripes",
    title="Two directories striped by measured speed",
    source="ours; notes, check 18; Must show 4",
    run=run,
    scales={
        "smoke": {"params": 60 << 15, "tile": 1 << 15, "read": 200e6, "write": 106e6,
                  "factors": [0.5], "rounds": 3},
        "small": {"params": 240 << 15, "tile": 1 << 15, "read": 200e6, "write": 106e6,
                  "factors": [0.5, 0.25], "rounds": 7},
        "paper": {"params": 1920 << 15, "tile": 1 << 15, "read": 200e6, "write": 106e6,
                  "factors": [0.75, 0.5, 0.25], "rounds": 7},
    },
    minutes={"smoke": 0.3, "small": 2, "paper": 12},
    gigabytes={"smoke": 0.3, "small": 1, "paper": 5},
)  # fmt: skip
