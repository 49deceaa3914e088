"""Figure 14: updates, decompression and media, each alone; and our kernels beside others'.

One thread, the same data, by turns; seconds are the thread's own, so that others on the machine do
not count, but for the media's. Figures in GB/s count what an update reads and writes in memory: 28
bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shorthaul import stats
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import _core
from smart_infinity.experiments import _kernels
from smart_infinity.experiments._kernels import UPDATE_BYTES, Data, Tiles, TopKs
from smart_infinity.rates import RawDisk

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {"lr": 1e-3, "weight_decay": 0.01}),
    "Adam": ("adam", {"lr": 1e-3}),
    "AdaGrad": ("adagrad", {"lr": 1e-2}),
    "SGD with momentum": ("sgd", {"lr": 1e-2, "momentum": 0.9}),
}
WAYS = ("fused", "foreach", "single")
# Gradients down, parameters up, moments as stored.
TYPES = {
    "float32": ("float32", "float32", "float32"),
    "bfloat16 down and up": ("bfloat16", "bfloat16", "float32"),
    "float16 down and up": ("float16", "float16", "float32"),
    "moments in bfloat16": ("float32", "float32", "bfloat16"),
    "moments in blocks of 8 bits": ("float32", "float32", "blocks8"),
}
MEDIA_BYTES = {"float32": 24, "bfloat16": 16, "blocks8": 12 + 1 / 32}
PAPER = {"update": 8.2, "decompress and update": 2.9, "media read": 3.2, "media write": 1.7}


def _levels() -> list[str]:
    """Give the levels this processor has, best first."""
    return _core.simd_levels()[::-1]


def _by_turns(
    context: Context, what: str, rates: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    found = stats.interleave(rates, context.settings["rounds"], warmup=1)
    context.run.metric(what=what, **{f"{name} a second": taken for name, taken in found.items()})
    return found


def _updates(context: Context) -> dict[str, dict[str, list[float]]]:
    """Parameters a second by optimizer and by who steps them."""
    s = context.settings
    data = Data(s["elements"], context.seed)
    found = {}
    for name, (kind, options) in CASES.items():
        rates = {
            f"ours, {level}": data.ours(kind, options, level, s["repeats"]) for level in _levels()
        }
        rates |= {f"torch {way}": data.torchs(kind, options, way, s["repeats"]) for way in WAYS}
        rates["ours again"] = data.ours(kind, options, _levels()[0], s["repeats"])
        found[name] = _by_turns(context, name, rates)
    return found


def _tiles(context: Context) -> dict[str, list[float]]:
    made = {
        name: Tiles(context.settings["tiles"], grad=grad, out=out, moments=moments,
                    seed=context.seed)
        for name, (grad, out, moments) in TYPES.items()
    }  # fmt: skip
    return _by_turns(context, "tiles", {name: one.rate for name, one in made.items()})


def _topk(context: Context) -> tuple[dict[float, dict[str, list[float]]], int]:
    found, wrong = {}, 0
    for ratio in context.settings["ratios"]:
        one = TopKs(ratio, context.seed)
        wrong += one.wrong()
        rates = {"ours": one.ours, "torch": one.torchs, "decompress and update": one.decoded}
        found[ratio] = _by_turns(context, f"top-k {ratio}", rates)
    return found, wrong


def _media(context: Context) -> dict[str, list[float]]:
    """Bytes a second of the disk under the run's folder, by reads, by writes and by both."""
    size = context.settings["media_mib"]
    disk = RawDisk(context.workdir, size)
    try:
        total = size << 19
        return _by_turns(context, "media", {
            "read": lambda: disk.run(total, reads=1, writes=0).read,
            "write": lambda: disk.run(total, reads=0, writes=1).write,
            "both": lambda: disk.run(total).total,
        })  # fmt: skip
    finally:
        disk.close()


def _deepspeed(context: Context, notes: list[str]) -> dict[str, Any] | None:
    """DeepSpeedCPUAdam beside our kernel, where its environment has been made before."""
    from smart_infinity import deepspeed_environment, duel

    root = context.run.path.parents[2]
    there = deepspeed_environment.find(deepspeed_environment.default_folder(root), ("cpu_adam",))
    if there is None:
        notes.append(
            "DeepSpeedCPUAdam was not measured: its environment is not there (the experiment "
            "that duels with DeepSpeed makes it)"
        )
        return None
    found: dict[str, Any] = duel.kernel_rates(
        there, context.settings["elements"], context.settings["rounds"]
    )
    context.run.metric(what="DeepSpeedCPUAdam", **found)
    return found


def run(context: Context) -> Summary:
    """Everything alone, by turns with what it is compared with."""
    import torch

    torch.set_num_threads(1)
    notes: list[str] = []
    if len(_levels()) < 2:
        notes.append("this processor lacks AVX2, FMA or F16C: only the portable kernels are here")
    updates, tiles = _updates(context), _tiles(context)
    topk, wrong = _topk(context)
    conversions = _by_turns(context, "conversions", _kernels.conversions(context.seed))
    media = _media(context)
    deepspeed = _deepspeed(context, notes)
    best = f"ours, {_levels()[0]}"
    over = {
        way: {
            name: stats.paired_ratio(found[best], found[f"torch {way}"])["median"]
            for name, found in updates.items()
        }
        for way in WAYS
    }
    over_torch = {
        f"{ratio:g}": stats.paired_ratio(found["ours"], found["torch"])["median"]
        for ratio, found in topk.items()
    }
    median = stats.median
    per_s = {name: median(taken) for name, taken in tiles.items()}
    both = median(media["both"])
    metrics: dict[str, Any] = {
        "params_per_s": {
            name: {who: median(taken) for who, taken in found.items()}
            for name, found in updates.items()
        },
        "over_torch": over,
        "adam_over_foreach": over["foreach"]["Adam"],
        "least_over_fused": min(over["fused"].values()),
        "topk_over_torch": over_torch,
        "least_topk_over_torch": min(over_torch.values()),
        "topk_wrong": wrong,
        "tiles_per_s": per_s,
        "kernel_over_disk": {
            name: per_s[name] * MEDIA_BYTES[moments] / both
            for name, (_, _, moments) in TYPES.items()
        },
        "conversions_per_s": {name: median(taken) for name, taken in conversions.items()},
        "media": {name: median(taken) for name, taken in media.items()},
        "over_deepspeed": None,
    }
    if deepspeed is not None:
        ratio = stats.paired_ratio(deepspeed["smart"], deepspeed["deepspeed"])
        metrics["over_deepspeed"] = ratio["median"]
        metrics["deepspeed_params_per_s"] = median(deepspeed["deepspeed"])
    first = updates["AdamW"]
    noise = stats.noise(first[best], first["ours again"])
    least = topk[min(topk)]
    gigabytes = {
        "update": median(first[best]) * UPDATE_BYTES / 1e9,
        "decompress and update": median(least["decompress and update"]) * UPDATE_BYTES / 1e9,
        "media read": median(media["read"]) / 1e9,
        "media write": median(media["write"]) / 1e9,
    }
    metrics["gigabytes_per_s"] = gigabytes
    figures = _figures(updates, gigabytes)
    return Summary(metrics, figures, _tables(context, metrics, updates, topk), notes, noise=noise)


def _figures(
    updates: dict[str, dict[str, list[float]]], gigabytes: dict[str, float]
) -> list[Figure]:
    who = [name for name in next(iter(updates.values())) if name != "ours again"]
    return [
        Figure(
            "fig14", "Parts of a device, each alone", "bars", list(gigabytes), "part", "GB/s",
            [Series("measured", list(gigabytes.values())),
             Series("paper", [PAPER[name] for name in gigabytes], kind="paper")],
            note="The paper's parts are an FPGA and a SmartSSD, ours one processor core and this "
            "machine's disk: the bars say which part limits a device, not who is faster.",
        ),
        Figure(
            "kernels", "Updates in memory, one thread", "bars", list(updates), "optimizer",
            "million parameters a second",
            [Series(name, [stats.median(found[name]) / 1e6 for found in updates.values()])
             for name in who],
        ),
    ]  # fmt: skip


def _tables(
    context: Context, metrics: dict[str, Any], updates: dict[str, dict[str, list[float]]],
    topk: dict[float, dict[str, list[float]]],
) -> list[Table]:  # fmt: skip
    who = [name for name in next(iter(updates.values())) if name != "ours again"]
    millions = lambda value: round(value / 1e6, 1)  # noqa: E731
    return [
        Table("kernels", "Million parameters a second, one thread, in memory", ["optimizer", *who],
              [[name, *(millions(stats.median(found[w])) for w in who)]
               for name, found in updates.items()],
              f"{context.settings['elements']:,} parameters."),
        Table("types", "A device's update of a tile, by types",
              ["types", "million parameters a second", "of what the disk gives it"],
              [[name, millions(rate), round(metrics["kernel_over_disk"][name], 1)]
               for name, rate in metrics["tiles_per_s"].items()],
              "The last column is how many disks like this one a core would keep up with, by what "
              "a step reads and writes; checksums come on top."),
        Table("topk", "Top-k of tiles of 262,144, million entries a second",
              ["ratio", "ours", "torch.topk", "ours / torch", "decompress and update"],
              [[ratio, millions(stats.median(found["ours"])),
                millions(stats.median(found["torch"])),
                round(metrics["topk_over_torch"][f"{ratio:g}"], 2),
                millions(stats.median(found["decompress and update"]))]
               for ratio, found in topk.items()]),
        Table("conversions", "What else passes over every number",
              ["what", "million numbers a second"],
              [[name, millions(rate)] for name, rate in metrics["conversions_per_s"].items()]),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    id="kernels",
    title="Update kernels, top-k, codecs and media, each alone",
    source="Smart-Infinity, figure 14; notes, section 5.1; Must show 8",
    run=run,
    scales={
        "smoke": {"elements": 1 << 20, "repeats": 2, "rounds": 3, "tiles": 4,
                  "ratios": [0.01, 0.1], "media_mib": 64},
        "small": {"elements": 1 << 24, "repeats": 2, "rounds": 5, "tiles": 16,
                  "ratios": [0.01, 0.02, 0.05, 0.1], "media_mib": 2048},
    },
    minutes={"smoke": 0.3, "small": 4},
    gigabytes={"small": 2.5},
)  # fmt: skip
