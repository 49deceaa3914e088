"""`navis serve` under wrk; and stops amid inserts, after which all that was acknowledged is there.

Must show 14. Errors are answers other than 200, broken connections, and exit codes other than 0.
The soak stops the server by SIGTERM several times while a process of its own inserts, starts it
again on the same index, and at the end compares every acknowledged vector with what is stored.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median

from navis import Index
from navis.experiments._measure import Array
from navis.experiments._serving import serving, wrk
from navis.experiments._store import Set, Store
from navis.serve import wire

_JSON = "application/json"
_BATCH = 32  # queries in a binary body of many
_ROUND = 10**8  # ids of a round of the soak
KINDS = {"json": "JSON, one query", "binary": "binary, one", "batch": f"binary, {_BATCH}"}


def bodies(kind: str, queries: Array, k: int, L: int) -> tuple[list[bytes], str, str]:
    """Give bodies of equal length, their type and the path they go to."""
    if kind == "json":
        texts = [json.dumps({"vector": q.tolist(), "k": k, "L": L}) for q in queries]
        longest = max(map(len, texts))  # spaces at the end of JSON mean nothing
        return [text.ljust(longest).encode() for text in texts], _JSON, "/v1/search"
    size = _BATCH if kind == "batch" else 1
    parts = [queries[first : first + size] for first in range(0, len(queries) - size + 1, size)]
    return [wire.pack_queries(p) for p in parts], wire.MEDIA_TYPE, f"/v1/search?k={k}&L={L}"


def _throughput(index: Path, of: Set, s: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Searches alone: results by kind of body, in rounds, and errors."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with serving(index, "--readonly") as server:
        for _ in range(s["rounds"]):
            for kind, results in found.items():
                content, media_type, path = bodies(kind, of.queries, 10, s["L"])
                results.append(wrk(server.url + path, content, media_type, s["seconds"]))
        errors = int(server.stop() != 0)
    errors += sum(r["wrong"] + r["broken"] for results in found.values() for r in results)
    summed = {kind: _rates(results) for kind, results in found.items()}
    summed["batch"]["qps"] *= _BATCH
    return summed, errors


def _rates(results: list[dict[str, Any]]) -> dict[str, float]:
    """Medians of several runs of wrk."""
    names = {"qps": "per_s", "p50_ms": "p50_ms", "p99_ms": "p99_ms"}
    return {mine: median([result[its] for result in results]) for mine, its in names.items()}


def _soak(index: Path, of: Set, s: dict[str, Any], acknowledged: Path) -> dict[str, Any]:
    """Searches and inserts together, and a SIGTERM amid the inserts, several times."""
    content, media_type, path = bodies("json", of.queries, 10, s["L"])
    script = str(Path(__file__).with_name("_serve_client.py"))
    results, errors, failures = [], 0, []
    for number in range(s["stops"]):
        with serving(index, "--durability", s["durability"]) as server:
            job = {
                "url": server.url, "rows": str(of.file), "acknowledged": str(acknowledged),
                "start": (number + 1) * _ROUND, "connections": 2, "batch": s["batch"],
            }  # fmt: skip
            with subprocess.Popen(
                [sys.executable, script, json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                result = wrk(server.url + path, content, media_type, s["soak_s"])
                assert client.stdin is not None
                assert client.stdout is not None
                client.stdin.write("\n")
                client.stdin.flush()
                client.stdout.readline()  # noted: from here on it may be refused
                errors += int(server.stop() != 0)
                failures += json.loads(client.stdout.readline())
        results.append(result)
        errors += result["wrong"] + result["broken"]
    errors += len(failures)
    return {**_rates(results), "errors": errors, "failures": failures}


def _lost(index: Path, of: Set, ids: Array) -> tuple[int, int]:
    """Count acknowledged ids that are not there or hold another vector; and faults of the index."""
    rows = np.load(of.file, mmap_mode="r")
    with Index.open(index, readonly=True) as opened:
        there = ids[np.isin(ids, opened.ids())]
        same = 0
        for first in range(0, len(there), 4096):
            part = there[first : first + 4096]
            same += int(np.all(opened.get(part) == rows[part % len(rows)], axis=1).sum())
        return len(ids) - same, len(opened.verify()["faults"])


def run(context: Context) -> Summary:
    """Throughput by kind of body, then the soak, on one index."""
    s, store = context.settings, Store(context)
    name, base, more = s["set"]
    of = store.set(name, base, more, s["queries"])
    acknowledged = context.workdir / "acknowledged"
    acknowledged.unlink(missing_ok=True)  # of a run that failed
    acknowledged.touch()
    with store.copy(store.index(of)) as copy:
        alone, errors = _throughput(copy, of, s)
        context.run.metric(throughput=alone)
        soak = _soak(copy, of, s, acknowledged)
        ids = np.fromfile(acknowledged, dtype="<u8")
        lost, faults = _lost(copy, of, ids)
    context.run.metric(soak=soak, acknowledged=len(ids), lost=lost, faults=faults)
    metrics = {
        "errors": errors + soak["errors"],
        "lost": lost,
        "faults": faults,
        "acknowledged": len(ids),
        "stops": s["stops"],
        "qps": {**{kind: each["qps"] for kind, each in alone.items()}, "beside": soak["qps"]},
        "p99_ms": {
            **{kind: each["p99_ms"] for kind, each in alone.items()},
            "beside": soak["p99_ms"],
        },
        "inserts_per_s": len(ids) / (s["stops"] * s["soak_s"]),
    }
    names: list[str | float] = [*KINDS.values(), "JSON, beside inserts"]
    rates = list(metrics["qps"].values())
    figure = Figure(
        "serve_load", "Queries per second over HTTP, eight connections", "bars", names,
        "request", "queries per second", [Series("navis serve", rates)], log_y=True,
    )  # fmt: skip
    rows = [
        [name, round(rate), round(each["p50_ms"], 2), round(each["p99_ms"], 2)]
        for name, rate, each in zip(names, rates, [*alone.values(), soak], strict=True)
    ]
    note = f"{len(ids)} inserts acknowledged around {s['stops']} stops by SIGTERM, {lost} lost; "
    table = Table(
        "serve_load", "navis serve under wrk",
        ["request", "queries per second", "p50 of a request, ms", "p99, ms"], rows,
        note + f"{metrics['errors']} errors.",
    )  # fmt: skip
    return Summary(metrics, [figure], [table])


EXPERIMENT = Experiment(
    id="serve_load",
    title="The server under load, and stopped in it",
    source="ours; Must show 14",
    run=run,
    scales={
        "smoke": {
            "set": ["S128", 3000, 400], "queries": 64, "L": 40, "rounds": 1, "seconds": 1,
            "soak_s": 3, "stops": 2, "batch": 4, "durability": "sync",
        },
        "small": {
            "set": ["S128", 20000, 5000], "queries": 1000, "L": 40, "rounds": 3, "seconds": 5,
            "soak_s": 10, "stops": 3, "batch": 4, "durability": "sync",
        },
    },
    minutes={"smoke": 0.3, "small": 2},
)  # fmt: skip
