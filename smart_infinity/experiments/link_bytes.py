"""Table I: what crosses the link per parameter and step, counted to the byte, against the formulas.

Three ways across: shared memory, a Unix socket, and TCP between two network namespaces, where the
kernel counts too. What the devices read and write is counted beside it.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from shorthaul.errors import EnvironmentLack, Fault
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from smart_infinity import formulas
from smart_infinity.experiments import _traffic
from smart_infinity.experiments._namespaces import ADDRESSES, Pair
from smart_infinity.experiments._traffic import MESSAGES, SCHEMES

TRANSPORTS = ["shared memory", "Unix socket", "TCP"]
Reports = dict[str, list[dict[str, Any]]]  # by transport, in the order of SCHEMES


def _over_tcp(context: Context, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure rows between two namespaces; an EnvironmentLack says why that cannot be."""
    s, token = context.settings, secrets.token_hex(16)
    environment = {**os.environ, "SMART_INFINITY_TOKEN": token, "OMP_NUM_THREADS": "1"}
    folders = [context.workdir / f"served-{d}" for d in range(s["devices"])]
    served: list[subprocess.Popen[str]] = []
    with Pair() as pair:
        try:
            addresses = []
            for folder in folders:
                served.append(subprocess.Popen(
                    pair.command("device", [
                        sys.executable, "-m", "smart_infinity.cli", "device", str(folder),
                        "--listen", f"tcp:{ADDRESSES['device']}:0",
                    ]),
                    stdout=subprocess.PIPE, text=True, env=environment,
                ))  # fmt: skip
                output = served[-1].stdout
                said = output.readline() if output is not None else ""
                if " at tcp:" not in said:
                    raise Fault(f"a device in a namespace did not start: {said!r}")
                addresses.append(said.rsplit(" ", 1)[1].strip())
            plan = context.workdir / "over-tcp.json"
            plan.write_text(json.dumps({
                "rows": rows, "steps": s["steps"], "addresses": addresses, "token": token,
                "folders": [str(folder) for folder in folders],
            }))  # fmt: skip
            done = subprocess.run(
                pair.command("host", [sys.executable, _traffic.__file__, str(plan)]),
                capture_output=True, text=True, env=environment, check=False,
            )  # fmt: skip
            if done.returncode:
                raise Fault(f"measuring over TCP failed: {done.stderr.strip().splitlines()[-1:]}")
        finally:
            for process in served:
                process.terminate()
            for process in served:
                process.wait(30)
    reports: list[dict[str, Any]] = json.loads(done.stdout)["reports"]
    return reports


def run(context: Context) -> Summary:
    """Every scheme over every transport."""
    s = context.settings
    notes: list[str] = []
    common = {"params": s["params"], "devices": s["devices"], "tile": s["tile"]}
    reports: Reports = {}
    for transport in TRANSPORTS[:2]:
        if transport not in s["transports"]:
            continue
        reports[transport] = []
        for scheme in SCHEMES:
            shared = transport == "shared memory"
            config = _traffic.config(scheme.options, shared=shared, **common)
            reports[transport].append(_traffic.measure(config, [context.workdir], s["steps"]))
    rows = [{"options": scheme.options, "shared": False, **common} for scheme in SCHEMES]
    try:
        if "TCP" in s["transports"]:
            reports["TCP"] = _over_tcp(context, rows)
    except EnvironmentLack as error:
        notes.append(f"TCP between network namespaces was not measured: {error}")
    for transport, found in reports.items():
        for scheme, report in zip(SCHEMES, found, strict=True):
            context.run.metric(
                transport=transport, scheme=scheme.name, link=report["link_bytes"],
                expected=report["link_bytes_expected"], frames=report["frames"],
                media=report["media_bytes_per_param"], kernel=report["kernel_bytes_per_param"],
            )  # fmt: skip
    return _summary(s, reports, notes)


def _difference(report: dict[str, Any]) -> float:
    """Bytes of a step, both directions, that the formula does not explain."""
    return sum(
        abs(report["link_bytes"][way] - report["link_bytes_expected"][way]) for way in MESSAGES
    )


def _media(report: dict[str, Any], scheme: _traffic.Scheme) -> dict[str, float]:
    """Counted bytes over the formula's, and the kernel's over the counted ones."""
    moments = 1 if scheme.options.get("optimizer") == "adagrad" else 2
    read, written = formulas.media_bytes_per_param(moments)
    counted, kernel = report["media_bytes_per_param"], report["kernel_bytes_per_param"]
    return {
        "read": counted["read"] / read,
        "write": counted["write"] / written,
        "kernel_read": kernel["read"] / counted["read"],
        "kernel_write": kernel["write"] / (counted["write"] + counted["meta"]),
    }


def _summary(s: dict[str, Any], reports: Reports, notes: list[str]) -> Summary:
    every = [
        (scheme, report)
        for found in reports.values()
        for scheme, report in zip(SCHEMES, found, strict=True)
    ]
    media = [_media(report, scheme) for scheme, report in every]
    wires = [_wire(report) for report in reports.get("TCP", [])]
    metrics: dict[str, Any] = {
        "measured": len(every),
        "difference_bytes": sum(_difference(report) for _, report in every),
        "over_most": max(report["link_bytes_per_param"] / scheme.most for scheme, report in every),
        "control_share": max(
            report["link_bytes"]["control"] / sum(report["frames"].values()) * s["steps"]
            for _, report in every
        ),
        "link_bytes_per_param": {
            scheme.key: report["link_bytes_per_param"]
            for scheme, report in zip(SCHEMES, reports["shared memory"], strict=True)
        },
        "media_over_formula": _ends(one[way] for one in media for way in ("read", "write")),
        "kernel_over_counted": _ends(
            one[way] for one in media for way in ("kernel_read", "kernel_write")
        ),
        "host_media_bytes": sum(
            sum(report["host_media_bytes"].values()) for _, report in every
        ),
        "tcp": {
            "measured": len(wires),
            "kernel_over_frames": _ends(one["over"] for one in wires),
            "other_interfaces_bytes": sum(one["elsewhere"] for one in wires),
        },
        "page_cache_bypassed": all(all(report["direct"]) for _, report in every),
    }  # fmt: skip
    shared = reports["shared memory"]
    rows = []
    for number, (scheme, report) in enumerate(zip(SCHEMES, shared, strict=True)):
        kinds = {**report["link_bytes_by_kind"]["down"], **report["link_bytes_by_kind"]["up"]}
        n, expected = report["params"], report["link_bytes_expected"]
        rows.append([
            scheme.name, _per(kinds, n, "gradient", "land"), _per(kinds, n, "write"),
            _per(kinds, n, "state", "parameters"), round(report["link_bytes_per_param"], 5),
            round((expected["down"] + expected["up"]) / n, 5), scheme.paper,
            sum(_difference(found[number]) for found in reports.values()),
            round(wires[number]["over"], 4) if wires else None,
            *(round(report["media_bytes_per_param"][way], 3) for way in ("read", "write")),
        ])  # fmt: skip
    columns = [
        "scheme: gradients / parameters", "down: gradients", "down: state", "up",
        "link, B/param", "formula with headers", "paper", "bytes that differ, all transports",
        "kernel's count / ours (TCP)", "media read, B/param", "media written",
    ]  # fmt: skip
    note = (
        f"{s['params']:,} parameters on {s['devices']} devices, tiles of {s['tile']:,}; headers of "
        "32 bytes a frame are in every figure but the paper's. Ours sends indices of 16 bits, the "
        "paper's of 32. Gradients wait in memory, so that media read and write the state alone."
    )
    names: list[str | float] = [scheme.name for scheme in SCHEMES]
    figure = Figure(
        "link_bytes", "Bytes over the link per parameter and step", "bars", names, "scheme",
        "B per parameter",
        [Series("measured", [report["link_bytes_per_param"] for report in shared]),
         Series("formula", [sum(r["link_bytes_expected"].values()) / r["params"] for r in shared],
                kind="predicted"),
         Series("paper", [scheme.paper for scheme in SCHEMES], kind="paper")],
        note=note,
    )  # fmt: skip
    table = Table("link_bytes", "Traffic (the paper's table I)", columns, rows, note)
    return Summary(metrics, [figure], [table], notes)


def _ends(values: Iterable[float]) -> list[float]:
    """Give the least and the most of what must all be within bounds."""
    found = list(values)
    return [min(found), max(found)] if found else []


def _per(kinds: dict[str, float], n: int, *names: str) -> float:
    return round(sum(kinds.get(name, 0.0) for name in names) / n, 5)


def _wire(report: dict[str, Any]) -> dict[str, float]:
    """Over TCP: the kernel's count of the cable over ours, and bytes on other interfaces."""
    counted = dict(report["interfaces"])
    cable = counted.pop("link0")
    return {
        "over": sum(cable.values()) / sum(report["frames"].values()),
        "elsewhere": sum(sum(one.values()) for one in counted.values()),
    }


EXPERIMENT = Experiment(
    id="link_bytes",
    title="Bytes over the link and on the media, counted, against the formulas",
    source="Smart-Infinity, table I; notes, section 1.5, checks 3 to 5; Must show 2",
    run=run,
    scales={
        "smoke": {"params": (1 << 20) + 3, "devices": 2, "tile": 1 << 18, "steps": 2,
                  "transports": TRANSPORTS},
        "small": {"params": (1 << 24) + 3, "devices": 3, "tile": 1 << 18, "steps": 3,
                  "transports": TRANSPORTS},
    },
    minutes={"smoke": 0.5, "small": 3},
    gigabytes={"small": 1},
)  # fmt: skip
