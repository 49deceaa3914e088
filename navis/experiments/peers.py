"""Beside DiskANN's Python package, from disk; and beside three systems in memory, as anchors."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import EnvironmentLack
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table
from shorthaul.stats import median, noise, paired_ratio

from navis import peers
from navis.experiments._measure import budget
from navis.experiments._store import Set, Store, engine, recall_of
from navis.layouts import PAGE

_OURS = {"navis": {"cache": "none"}, "navis cached": {}}


def _prepared(
    store: Store, of: Set, system: str, python: Path, s: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Build once with the same parameters for all; give the folder and what the build took."""
    given = {name: s[name] for name in ("degree", "build_list", "alpha", "threads")}
    given["code_bytes"] = s["code_bytes"].get(of.name, of.dim // 8)
    key = {**of.key, "peer": system, **given, "needs": peers.requirements()[system]["requires"]}
    if system == "navis":
        key["engine"] = engine()

    def make(folder: Path) -> None:
        with peers.Driver(system, python) as driver:
            took = driver.ask("build", base=of.file, rows=len(of.base), folder=folder, **given)
        (folder / "built.json").write_text(json.dumps(took))

    folder = store.made("peer", key, make)
    return folder, {**given, "built": json.loads((folder / "built.json").read_text())}


class _Searcher:
    """An open index of one system, in its process."""

    def __init__(self, driver: peers.Driver, queries: Path, out: Path, store: Store, of: Set):
        self._driver, self._queries, self._out = driver, queries, out
        self._truth, self._n = store.truth(of, len(of.base)), len(of.queries)

    def at(self, L: int) -> dict[str, float]:
        """Search all queries; pages read, CPU and wall milliseconds per query, recall."""
        took = self._driver.ask(
            "search", queries=self._queries, k=10, L=L, threads=1, out=self._out
        )
        return {
            "L": L,
            "pages": took["read_bytes"] / PAGE / self._n,
            "cpu_ms": 1e3 * took["cpu_s"] / self._n,
            "wall_ms": 1e3 * took["wall_s"] / self._n,
            "recall": recall_of(np.load(self._out), self._truth),
        }


def _set(
    context: Context, store: Store, of: Set, pythons: dict[str, Path], s: dict[str, Any]
) -> dict[str, Any]:
    asked = context.workdir / "queries.npy"
    np.save(asked, of.queries)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        searchers: dict[str, _Searcher] = {}
        for system, python in pythons.items():
            folder, given = _prepared(store, of, system, python, s)
            sessions: dict[str, dict[str, Any]] = _OURS if system == "navis" else {system: {}}
            for label, session in sessions.items():
                driver = stack.enter_context(peers.Driver(system, python))
                more: dict[str, Any] = {}
                if label == "navis cached":
                    more = {"session": {"memory_budget": budget(of, s["budgets"][of.name])}}
                elif label == "navis":
                    more = {"session": session}
                driver.ask("open", folder=folder, beam=s["beam"], **given, **more)
                out = context.workdir / f"{label.replace(' ', '-')}.npy"
                searchers[label] = _Searcher(driver, asked, out, store, of)
                searchers[label].at(s["L"][0])  # what is done once is done
                sweep = [searchers[label].at(L) for L in s["L"]]
                found[label] = {"sweep": sweep, "built": given["built"]}
                context.run.metric(set=of.name, system=label, sweep=sweep, built=given["built"])
        disk = [label for label in searchers if label in ("navis", "navis cached", s["against"])]
        chosen = {label: _reaching(found[label]["sweep"], s["recall"]) for label in disk}
        rounds: dict[str, list[dict[str, float]]] = {label: [] for label in disk}
        for _ in range(s["rounds"]):
            for label in disk:
                rounds[label].append(searchers[label].at(chosen[label]))
        context.run.metric(set=of.name, rounds=rounds)
    for label in disk:
        found[label]["rounds"] = rounds[label]
        found[label]["at"] = {
            key: median([r[key] for r in rounds[label]]) for key in rounds[label][0]
        }
    return found


def _reaching(sweep: list[dict[str, float]], recall: float) -> int:
    """The shortest search list that reaches a recall; the longest tried where none does."""
    enough = [int(f["L"]) for f in sweep if f["recall"] >= recall]
    return min(enough) if enough else int(sweep[-1]["L"])


def _against(found: dict[str, Any], ours: str, theirs: str) -> dict[str, Any]:
    def ratio(key: str) -> dict[str, float]:
        a, b = ([r[key] for r in found[label]["rounds"]] for label in (ours, theirs))
        return paired_ratio(a, b)

    pages = found[theirs]["at"]["pages"]
    return {
        "pages": found[ours]["at"]["pages"] / pages if pages else None,
        "cpu": ratio("cpu_ms"),
        "wall": ratio("wall_ms"),
        "build_cpu": found[ours]["built"]["cpu_s"] / found[theirs]["built"]["cpu_s"],
        "least_recall": min(found[ours]["at"]["recall"], found[theirs]["at"]["recall"]),
    }


def run(context: Context) -> Summary:
    """Every system over all search lists; then, at equal recall, those on disk turn by turn."""
    s, store = context.settings, Store(context)
    folder = Path(s["environments"] or store.folder / "environments")
    pythons: dict[str, Path] = {}
    absent = []
    for system in s["systems"]:
        python = peers.python_of(system, folder, make=s["make_environments"])
        if python is None:
            absent.append(system)
        else:
            pythons[system] = python
    if s["against"] in absent and s["required"]:
        raise EnvironmentLack(f"{s['against']} is not there; set make_environments")
    metrics: dict[str, Any] = {"absent": absent}
    figures, rows, aa = [], [], []
    for name, base in s["sets"].items():
        of = store.set(name, base, 0, s["queries"])
        found = _set(context, store, of, pythons, s)
        metrics[name] = {
            label: {"build_cpu_s": f["built"]["cpu_s"], "sweep": f["sweep"], "at": f.get("at")}
            for label, f in found.items()
        }
        if s["against"] in found:
            metrics[name]["ratio"] = _against(found, "navis", s["against"])
            metrics[name]["ratio_cached"] = _against(found, "navis cached", s["against"])
            cpu = [r["cpu_ms"] for r in found[s["against"]]["rounds"]]
            if len(cpu) > 1:
                aa.append(noise(cpu[:-1], cpu[1:]))
        figures += _figures(name, found)
        rows += [
            [name, label, round(f["built"]["cpu_s"], 1), point["L"], round(point["recall"], 4),
             round(point["pages"], 1), round(point["cpu_ms"], 3), round(point["wall_ms"], 3)]
            for label, f in found.items() for point in f["sweep"]
        ]  # fmt: skip
    columns = ["set", "system", "build CPU s", "L", "recall@10", "pages per query",
               "CPU ms per query", "wall ms per query"]  # fmt: skip
    notes = [
        f"Degree {s['degree']}, build list {s['build_list']}, beam {s['beam']}, codes of "
        "one size for both disk indexes, one thread. Pages by ru_inblock of each "
        "system's process. Systems in memory are anchors: at sizes that fit in memory they answer "
        "faster than any disk does."
    ]
    if absent:
        notes.append(f"Not installed, so not measured: {', '.join(absent)}.")
    widest = max(aa, key=lambda n: n["spread"]) if aa else None
    tables = [Table("peers", "All systems", columns, rows)]
    return Summary(metrics, figures, tables, notes, noise=widest)


def _figures(name: str, found: dict[str, Any]) -> list[Figure]:
    lists = [point["L"] for point in next(iter(found.values()))["sweep"]]
    disk = {label: f for label, f in found.items() if f["sweep"][0]["pages"] > 0}

    def lines(id: str, title: str, key: str, label: str, of: dict[str, Any]) -> Figure:
        series = [Series(system, [p[key] for p in f["sweep"]]) for system, f in of.items()]
        return Figure(f"{id}_{name}", f"{name}: {title}", "lines", list(lists), "search list, L",
                      label, series)  # fmt: skip

    return [
        lines("pages", "pages read per query", "pages", "4 KiB pages", disk),
        lines("recall", "recall@10", "recall", "recall@10", found),
        lines("cpu", "CPU per query", "cpu_ms", "CPU ms", found),
    ]


_COMMON = {
    "systems": ["navis", "diskannpy-rust", "hnswlib", "usearch", "faiss"],
    "against": "diskannpy-rust", "recall": 0.97, "degree": 32, "build_list": 64, "alpha": 1.2,
    "beam": 4, "threads": 1, "environments": "",
}  # fmt: skip
EXPERIMENT = Experiment(
    id="peers",
    title="Beside DiskANN's Python package on disk, and three systems in memory",
    source="ours; Must show 12",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "sets": {"S128": 3000}, "queries": 100, "L": [10, 20, 40, 80],
            "rounds": 2, "code_bytes": {"S128": 32}, "budgets": {"S128": 4.0},
            "make_environments": False, "required": False,
        },
        "small": {
            **_COMMON, "sets": {"S128": 100000, "W384": 0}, "queries": 1000,
            "L": [10, 16, 20, 24, 26, 28, 30, 32, 34, 36, 40, 48, 56, 64, 80, 120], "rounds": 5,
            "code_bytes": {"S128": 32, "W384": 96}, "budgets": {"S128": 0.3, "W384": 0.15},
            "make_environments": True, "required": True,
        },
    },
    minutes={"smoke": 0.3, "small": 10},
    gigabytes={"small": 2},
)  # fmt: skip
