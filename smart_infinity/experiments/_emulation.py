"""A machine to scale: several slow devices behind one slow link, all of it on this machine's disk.

Media and link are slowed by token buckets; tiles, files, processes and counters are real. Four
devices here are to their link as ten SmartSSDs are to the paper's: their reads together make four
times what the link carries (4 x 50 over 50 MB/s; 10 x 3.0 over 8 GB/s). Four ask for 212 MB/s of
the disk, eight for twice that: virtual disks give 500 to 1,000 MB/s, and must not be the limit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context

from smart_infinity import bench, rates
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import TopK
from smart_infinity.planner import Forecast, Rates, Setup, forecast


@dataclass(frozen=True)
class Machine:
    """What everything is slowed to, in bytes a second: the link each way, one device's media."""

    link: float = 50e6
    read: float = 50e6
    write: float = 26.5e6

    def __str__(self) -> str:
        return (
            f"{self.devices}; the link they share slowed to {self.link / 1e6:g} MB/s each way by "
            "token buckets"
        )

    @property
    def devices(self) -> str:
        """The devices' part in words."""
        return (
            f"devices are processes on one disk, each slowed to {self.read / 1e6:g} MB/s of reads "
            f"and {self.write / 1e6:g} MB/s of writes by token buckets"
        )

    def options(self, **more: Any) -> DeviceOptions:
        """Give options of a device whose waiting gradients go to its media."""
        return DeviceOptions(landing_bytes=0, read_rate=self.read, write_rate=self.write, **more)

    def rates(self, commit_s: float) -> Rates:
        """Give what the planner is told."""
        return Rates(
            link_down=self.link, link_up=self.link, media_read=self.read, media_write=self.write,
            commit_s=commit_s,
        )  # fmt: skip


@dataclass(frozen=True)
class System:
    """A way to take a step: settings of the bench, and of the planner."""

    name: str
    bench: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)


HOST = System("host", {"placement": "host"}, {"placement": "host"})
# SmartUpdate with the transfer handler: gradients go down in the backward pass and wait on media.
AHEAD = System("device, gradients ahead", {"ahead": True}, {"ahead": True, "landed": True})
OURS = System("device")


def top(ratio: float = 0.01) -> System:
    """Give SmartComp's system: the largest entries go down with the step."""
    topk = TopK(ratio)
    return System(f"device, top {100 * ratio:g} %", {"compress": topk}, {"compress": topk})


TOP = top()
ALL = (HOST, AHEAD, OURS, TOP)
MOMENTS = {"adamw": 2, "adam": 2, "adagrad": 1, "sgd": 1}


@dataclass(frozen=True)
class Found:
    """What a system did: phases of every step, `bench.summary`, and what the planner says."""

    phases: list[dict[str, float]]
    report: dict[str, Any]
    said: Forecast

    @property
    def seconds(self) -> list[float]:
        """Of every step."""
        return [phases["total_s"] for phases in self.phases]

    @property
    def median(self) -> float:
        """Of the steps' seconds."""
        return stats.median(self.seconds)

    @property
    def over_said(self) -> float:
        """Median over the planner's."""
        return self.median / self.said.total_s

    @property
    def bytes_off(self) -> float:
        """Link bytes a step that are not the formula's, both directions."""
        counted, expected = self.report["link_bytes"], self.report["link_bytes_expected"]
        return sum(abs(counted[way] - expected[way]) for way in expected)


def measure(
    context: Context,
    systems: Iterable[System],
    *,
    machine: Machine,
    params: int,
    devices: int,
    tile: int,
    rounds: int,
    commit_s: float,
    again: System | None = None,
    **options: Any,
) -> dict[str, Found]:
    """Step several systems by turns, A B A B; one round before does not count.

    Args:
        context: Of the experiment; folders lie in its scratch and go when it is done.
        systems: What is compared.
        machine: What everything is slowed to.
        params: Elements, as are a `tile`'s.
        devices: Of each system.
        tile: See `params`.
        rounds: Steps of each system that count.
        commit_s: Of this disk, for the planner.
        again: One of the systems that runs a second time in every round, as `again`, for the noise.
        options: More of `bench.Config`, for all: `optimizer`, `param_dtype`.
    """
    chosen = {system.name: system for system in systems}
    if again is not None:
        chosen["again"] = again
    plan = {key: value for key, value in options.items() if key == "param_dtype"}
    plan["moments"] = MOMENTS[options.get("optimizer", "adamw")]
    with ExitStack() as stack:
        benches = {}
        for number, (name, system) in enumerate(chosen.items()):
            folder = context.workdir / f"system-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            config = bench.Config(
                params=params, devices=devices, tile=tile, link_rate=machine.link,
                options=machine.options(), seed=context.seed, **system.bench, **options,
            )  # fmt: skip
            benches[name] = stack.enter_context(bench.Bench(config, [folder]))
        for one in benches.values():
            one.step()
        before = {name: one.array.counts() for name, one in benches.items()}
        phases = stats.interleave({name: one.step for name, one in benches.items()}, rounds)
        found = {}
        for name, system in chosen.items():
            one = benches[name]
            report = bench.summary(
                one, phases[name], before[name], one.array.counts(), bench.host_io()
            )
            setup = Setup(params=params, devices=devices, tile=tile, **system.plan, **plan)
            said = forecast(setup, machine.rates(commit_s))
            found[name] = Found(phases[name], report, said)
            context.run.metric(
                system=name, devices=devices, params=params, link=machine.link,
                seconds=found[name].seconds, said=said.total_s,
                link_bytes_per_param=report["link_bytes_per_param"], **options,
            )  # fmt: skip
    return found


def commit_s(context: Context) -> float:
    """Give what a commit takes on the disk of the run's folder."""
    return rates.commit_seconds(context.workdir)


def ratio(a: Found, b: Found) -> dict[str, float]:
    """Give the paired ratio of the seconds of two systems, what the planner says, and how far off.

    `over_said` is the measured ratio over the planner's.
    """
    measured = stats.paired_ratio(a.seconds, b.seconds)
    said = a.said.total_s / b.said.total_s
    return {**measured, "said": said, "over_said": measured["median"] / said}


def worst(over: Iterable[float]) -> float:
    """Give the farthest of these from 1, as a share."""
    return max(abs(value - 1) for value in over)


def bytes_off(found: Iterable[Mapping[str, Found]]) -> float:
    """Give all link bytes that are not the formula's."""
    return sum(one.bytes_off for each in found for one in each.values())


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    """Give values as a table shows them."""
    return [round(value, digits) for value in values]
