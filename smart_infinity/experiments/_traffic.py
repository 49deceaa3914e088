"""What crosses the link and the media in some steps, by every counter there is.

Run by path with a JSON file it measures over TCP, in the namespace it was started in: `rows`, the
settings of each bench, `folders` and `addresses` of its devices, `token`, and `steps`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_infinity import bench
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import TopK
from smart_infinity.experiments._namespaces import INTERFACE, interface_bytes

MESSAGES = ("down", "up")


@dataclass(frozen=True)
class Scheme:
    """A row of the paper's table I, or one that ours adds.

    Attributes:
        key: Its name among the metrics.
        paper: Bytes per parameter by the paper's arithmetic, None where it has no such row.
        most: What ours may take, headers and all, per parameter.
        options: Of the bench.
    """

    key: str
    name: str
    paper: float | None
    most: float
    options: dict[str, Any]


SCHEMES = [
    Scheme("host", "host: state moves", 32.0, 32.02, {"placement": "host"}),
    Scheme(
        "host_one_moment", "host, one moment", 24.0, 24.02,
        {"placement": "host", "optimizer": "adagrad"},
    ),
    Scheme("device_fp32_fp32", "device, fp32 / fp32", 8.0, 8.01, {}),
    Scheme("device_sent_ahead", "device, fp32 / fp32, sent ahead", 8.0, 8.02, {"ahead": True}),
    Scheme("device_fp32_fp16", "device, fp32 / fp16", 6.0, 6.01, {"param_dtype": "float16"}),
    Scheme(
        "device_fp16_fp16", "device, fp16 / fp16", 4.0, 4.01,
        {"param_dtype": "float16", "grad_dtype": "float16"},
    ),
    Scheme("topk_fp32", "top-k 1 %, fp32 / fp32", 4.08, 4.09, {"compress": {"ratio": 0.01}}),
    Scheme(
        "topk_fp16", "top-k 1 %, fp32 / fp16", 2.08, 2.09,
        {"compress": {"ratio": 0.01}, "param_dtype": "float16"},
    ),
    Scheme(
        "topk_bf16_values", "top-k 1 %, bf16 / bf16", None, 2.05,
        {"compress": {"ratio": 0.01, "values": "bfloat16"}, "param_dtype": "bfloat16"},
    ),
]  # fmt: skip


def config(options: dict[str, Any], *, params: int, devices: int, tile: int, shared: bool) -> Any:
    """Give a bench's configuration from plain data."""
    given = dict(options)
    if "compress" in given:
        given["compress"] = TopK(**given["compress"])
    return bench.Config(
        params=params, devices=devices, tile=tile, options=DeviceOptions(shared=shared), **given
    )


def frames(one: bench.Bench) -> dict[str, int]:
    """Give the bytes of all frames so far, control frames included, by direction."""
    crossed = dict.fromkeys(MESSAGES, 0)
    for device in one.array.devices:
        for direction, meter in (("down", device.link.sent), ("up", device.link.received)):
            for counts in meter.snapshot().values():
                crossed[direction] += counts["header_bytes"] + counts["payload_bytes"]
    return crossed


def measure(
    chosen: bench.Config,
    folders: Sequence[Path],
    steps: int,
    *,
    addresses: Sequence[str] = (),
    token: str | None = None,
) -> dict[str, Any]:
    """Run a bench: `bench.summary` and, with `addresses`, what the kernel counted beside it.

    `frames` are bytes of all frames by direction, `interfaces` the growth of every interface's
    counters in the same time.
    """
    with bench.Bench(chosen, folders, addresses=addresses, token=token) as one:
        one.step()
        before, io = one.array.counts(), bench.host_io()
        time.sleep(0.1)  # acknowledgements of TCP are late
        crossed, wires = frames(one), interface_bytes()
        phases = [one.step() for _ in range(steps)]
        time.sleep(0.1)
        crossed = {key: value - crossed[key] for key, value in frames(one).items()}
        after_wires = interface_bytes()
        report = bench.summary(one, phases, before, one.array.counts(), io)
    report["frames"] = crossed
    report["interfaces"] = {
        name: {key: value - wires.get(name, {}).get(key, 0) for key, value in counts.items()}
        for name, counts in after_wires.items()
    }
    return report


def main(given: dict[str, Any]) -> None:
    """Measure every row; the devices' folders are emptied after each."""
    found = []
    for row in given["rows"]:
        found.append(
            measure(
                config(**row), [], given["steps"], addresses=given["addresses"],
                token=given["token"],
            )
        )  # fmt: skip
        for folder in map(Path, given["folders"]):
            for entry in folder.iterdir():
                entry.unlink()
    json.dump({"interface": INTERFACE, "reports": found}, sys.stdout)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
