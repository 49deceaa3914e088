"""What runs at the same time: reads and writes, and the next forward pass beside the moments.

On the machine's own disk, nothing slowed. Times are of the monotonic clock, which the host and its
devices share.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import bench
from smart_infinity.client import DeviceOptions
from smart_infinity.experiments import _spans
from smart_infinity.layout import Tile

SERIAL: dict[str, Any] = {"slots": 1, "window": 1}


class _Watched(bench.Bench):
    """A bench that notes when the host had each tile's parameters."""

    taken: dict[tuple[int, int], float]

    def _take(self, tile: Tile, area: memoryview) -> None:
        super()._take(tile, area)
        self.taken[tile.device, tile.index] = time.perf_counter()

    def step(self) -> dict[str, float]:
        """Take a step; also its beginning and end on the monotonic clock."""
        self.taken = {}
        begin = time.perf_counter()
        return {**super().step(), "begin": begin, "end": time.perf_counter()}


def _config(context: Context, *, trace: bool, ahead: bool = False, **options: Any) -> bench.Config:
    s = context.settings
    return bench.Config(
        params=s["params"], devices=s["devices"], tile=s["tile"], ahead=ahead, seed=context.seed,
        options=DeviceOptions(trace=trace, **options),
    )  # fmt: skip


def _traced(context: Context, name: str, **options: Any) -> dict[str, Any]:
    """Trace one step; gradients are with the devices when it begins."""
    folder = context.workdir / name
    folder.mkdir(exist_ok=True)
    one = _Watched(_config(context, trace=True, ahead=True, **options), [folder])
    with one:
        one.step()
        one.array.counts(trace=True)  # what was before is forgotten
        phases = one.step()
        taken = one.taken
        counted = one.array.counts(trace=True)
    devices = [device["device"]["trace"] for device in counted]
    shares = [_spans.together(spans) for spans in devices]
    first = [
        _spans.handed_up_first(spans, {t: at for (d, t), at in taken.items() if d == number})
        for number, spans in enumerate(devices)
    ]
    updated = phases["begin"] + phases["offload_s"] + phases["update_s"]
    return {
        "devices": devices,
        "phases": phases,
        "updated": updated,
        "time": sum(one["time"] for one in shares) / len(shares),
        "tiles": sum(one["tiles"] for one in shares) / len(shares),
        "handed_up_first": sum(one[0] for one in first) / sum(one[2] for one in first),
        "host_had_first": sum(one[1] for one in first) / sum(one[2] for one in first),
        "in_flight_when_up": sum(
            _spans.in_flight(spans, updated, "write_moments") for spans in devices
        ),
        "up_over_durable": phases["update_s"] / (phases["update_s"] + phases["durable_s"]),
    }


def _forward(context: Context) -> list[dict[str, float]]:
    """Train a model; of every step what was in flight when the next forward pass began."""
    import torch

    from smart_infinity.optimizer import SmartOptimizer

    s = context.settings
    torch.manual_seed(context.seed)
    width = s["width"]
    net = torch.nn.Sequential(*[
        torch.nn.Linear(width, width, bias=False) for _ in range(s["layers"])
    ])  # fmt: skip
    folders = [context.workdir / f"forward-{d}" for d in range(s["devices"])]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    began, ended, pending = [], [], []
    options = DeviceOptions(trace=True)
    with SmartOptimizer(
        net.parameters(), devices=folders, lr=1e-4, tile=s["tile"], options=options
    ) as optimizer:
        generator = torch.Generator().manual_seed(context.seed)
        batches = torch.randn(s["forwards"] + 1, 4, width, generator=generator)
        for x in batches:  # as a loader has the next one ready
            pending.append(optimizer.array.settling)
            began.append(time.perf_counter())
            out = net(x)
            ended.append(time.perf_counter())
            # Not before the forward pass: to free the gradients takes longer than the last writes.
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
        counted = optimizer.array.counts(trace=True)
    spans = [span for one in counted for span in one["device"]["trace"]]
    for folder in folders:
        shutil.rmtree(folder)
    found = []
    for begin, end, waits in zip(began[1:], ended[1:], pending[1:], strict=True):
        writes = [w for w in _spans.of(spans, *_spans.WRITES) if w[0] <= begin < w[1]]
        found.append({
            "moments": _spans.in_flight(spans, begin, "write_moments"),
            "before_durable": waits,
            "forward_ms": 1e3 * (end - begin),
            "written_after_ms": 1e3 * max((last - begin for _, last in writes), default=0.0),
        })  # fmt: skip
    return found


def _gain(context: Context) -> dict[str, list[float]]:
    """Seconds of a step by the engine as it is, without overlap, and as it is once more."""
    s = context.settings
    options: dict[str, dict[str, Any]] = {"overlap": {}, "serial": SERIAL, "overlap again": {}}
    benches = {}
    try:
        for name, chosen in options.items():
            folder = context.workdir / name.replace(" ", "-")
            folder.mkdir(exist_ok=True)
            benches[name] = bench.Bench(_config(context, trace=False, **chosen), [folder])
        runners = {name: lambda one=one: one.step()["total_s"] for name, one in benches.items()}
        return stats.interleave(runners, s["rounds"], warmup=1)
    finally:
        for one in benches.values():
            one.close()


def run(context: Context) -> Summary:
    """Two traced steps, a traced training run, and rounds with and without overlap."""
    traced = _traced(context, "traced")
    serial = _traced(context, "traced-serial", **SERIAL)
    forwards = _forward(context)
    seconds = _gain(context)
    for name, taken in seconds.items():
        context.run.metric(engine=name, seconds=taken)
    phases = traced["phases"]
    offloaded = phases["begin"] + phases["offload_s"]
    _spans.write_trace(
        context.run.path / "trace.json",
        traced["devices"],
        [("gradients go down", phases["begin"], offloaded),
         ("until all parameters are up", offloaded, traced["updated"]),
         ("until it is durable", traced["updated"], phases["end"])],
    )  # fmt: skip
    gain = stats.paired_ratio(seconds["serial"], seconds["overlap"])
    keys = ("time", "tiles", "handed_up_first", "host_had_first", "in_flight_when_up",
            "up_over_durable")  # fmt: skip
    metrics = {
        **{key: traced[key] for key in keys},
        "serial": {key: serial[key] for key in keys},
        "forwards": len(forwards),
        "forwards_with_moments_in_flight": sum(one["moments"] > 0 for one in forwards)
        / len(forwards),
        "forwards_before_durable": sum(one["before_durable"] for one in forwards) / len(forwards),
        "moments_in_flight": [one["moments"] for one in forwards],
        "written_after_forward_began_ms": stats.median(
            [one["written_after_ms"] for one in forwards]
        ),
        "gain": gain,
        "seconds": {name: stats.median(taken) for name, taken in seconds.items()},
    }
    table = Table(
        "overlap", "With overlap, and with one tile at a time",
        ["", "slots 8", "slots 1"],
        [["time in which reads and writes are under way together, share of I/O time",
          round(traced["time"], 3), round(serial["time"], 3)],
         ["tiles read while another is written, share", round(traced["tiles"], 3),
          round(serial["tiles"], 3)],
         ["tiles handed up before their moments were written, share",
          round(traced["handed_up_first"], 3), round(serial["handed_up_first"], 3)],
         ["tiles the host had before their moments were written, share",
          round(traced["host_had_first"], 3), round(serial["host_had_first"], 3)],
         ["moments of tiles in flight when all parameters were up", traced["in_flight_when_up"],
          serial["in_flight_when_up"]],
         ["gradients in → parameters up, over gradients in → durable",
          round(traced["up_over_durable"], 3), round(serial["up_over_durable"], 3)],
         ["seconds a step, median", round(metrics["seconds"]["overlap"], 4),
          round(metrics["seconds"]["serial"], 4)]],
        f"{context.settings['params']:,} parameters on {context.settings['devices']} device(s). "
        "trace.json of the run has the traced step (Perfetto opens it).",
    )  # fmt: skip
    rounds = list(range(1, len(seconds["overlap"]) + 1))
    figure = Figure(
        "overlap", "Seconds of a step, interleaved", "lines", list(rounds), "round", "s",
        [Series(name, list(taken)) for name, taken in seconds.items()],
    )  # fmt: skip
    noise = stats.noise(seconds["overlap"], seconds["overlap again"])
    return Summary(metrics, [figure], [table], noise=noise)


EXPERIMENT = Experiment(
    id="overlap",
    title="Reads, updates, writes and the next forward pass at the same time",
    source="Smart-Infinity, internal data transfer handler; notes, checks 7 and 17; Must show 6",
    run=run,
    scales={
        "smoke": {
            "params": 1 << 22, "devices": 1, "tile": 1 << 17, "rounds": 3, "width": 512,
            "layers": 12, "forwards": 4,
        },
        "small": {
            "params": 1 << 26, "devices": 1, "tile": 1 << 18, "rounds": 5, "width": 2048,
            "layers": 16, "forwards": 10,
        },
    },
    minutes={"smoke": 0.4, "small": 4},
    gigabytes={"smoke": 0.4, "small": 5},
)  # fmt: skip
