"""Bytes and requests of searches and inserts, by the kernel and by us, against the formulas."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table

from navis import Index, formulas
from navis.experiments._measure import PACKED, PEERS, inserted, searched, shape_of, warm
from navis.experiments._store import Set, Store
from navis.layouts import PAGE, Shape

_PENDING = 1 << 18  # bytes of changed lists held before they are written
_CACHED = {"entrance": "dynamic", "pending_bytes": _PENDING}
# Ways to open: for searching and for inserting. `cached` is `selective` with its cache.
_MODES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "packed": ("packed", {**PACKED, "share_pages": False}, PEERS),
    "selective": ("selective", {**_CACHED, "cache": "none"}, {**_CACHED, "cache": "none"}),
    "cached": ("selective", _CACHED, _CACHED),
}


def _together(layout: str, lists: float, degree: int) -> float:
    """Inserts whose lists are written at one time, by what a session holds before it writes."""
    least = 64  # lists
    held = least if layout == "packed" else max(least, _PENDING // (160 + 4 * degree))
    return max(1.0, held / lists)


def _search(of: Set, shape: Shape, index: Index, packed: bool, lists: int) -> dict[str, Any]:
    result = searched(index, of.queries, L=lists)
    expansions = result["expansions"]
    served = 1 - result["edge_reads"] / expansions
    expected = formulas.reads(shape, expansions, 0.0 if packed else served, result["vector_reads"])
    return {
        "expansions": expansions,
        "served": served,
        "vectors": result["vector_reads"],
        "requests": result["requests"],
        "bytes": result["kernel_read_bytes"],
        "formula": expected,
        "requests_over_formula": result["requests"] / expected.requests,
        "bytes_over_formula": result["kernel_read_bytes"] / expected.bytes,
        "counted_over_kernel": result["bytes"] / result["kernel_read_bytes"],
    }


def _insert(
    of: Set, shape: Shape, index: Index, layout: str, count: int, degree: int
) -> dict[str, Any]:
    vectors = of.rows(len(of.base), len(of.base) + count)
    warm(index, of.queries)
    result = inserted(index, len(of.base), vectors, checkpoint=True)
    counts, packed = result["counts"], layout == "packed"
    expansions, lists = result["expansions"], counts["flush_lists"] / count
    requests = result["edge_reads"] + result["vector_reads"]
    served = 1 - result["edge_reads"] / expansions
    read = formulas.reads(shape, expansions, 0.0 if packed else served, result["vector_reads"])
    a_page = max(1, PAGE // (of.dim * 4))
    wrote = formulas.writes(shape, lists - 1, _together(layout, lists, degree), a_page)
    kernel_pages = result["kernel_writes"] - result["all_write_bytes"] + result["write_bytes"]
    # What the engine reads outside its traversals: lists that moved meanwhile, pages it cleans.
    beside = (counts["stale_retries"] + counts["flush_reads"]) * shape.unit
    return {
        "expansions": expansions,
        "served": served,
        "vectors": result["vector_reads"],
        "lists": lists,
        "requests": requests,
        "read_bytes": result["kernel_reads"] / count,
        "write_bytes": kernel_pages / count,
        "page_reads": result["kernel_reads"] / count / PAGE,
        "page_writes": kernel_pages / count / PAGE,
        "log_bytes": counts["wal_written_bytes"] / count,
        "read_formula": read,
        "write_formula": wrote,
        "requests_over_formula": requests / read.requests,
        "read_over_formula": result["kernel_reads"] / count / read.bytes,
        "write_over_formula": kernel_pages / count / wrote.bytes,
        "read_counted_over_kernel": (counts["seek_read_bytes"] + beside) / result["kernel_reads"],
        "write_counted_over_kernel": result["all_write_bytes"] / result["kernel_writes"],
    }


def run(context: Context) -> Summary:
    """Every dimension in every way of opening: a pass of queries, then inserts into a copy."""
    s, store = context.settings, Store(context)
    measured: dict[str, dict[str, Any]] = {}
    for dim, rows in zip(s["dims"], s["rows"], strict=True):
        of = store.set(f"S{dim}", rows, s["inserts"], s["queries"])
        build = {"degree": s["degree"], "build_list": s["build_list"], "insert_list": 128}
        for mode, (layout, searching, inserting) in _MODES.items():
            shape = shape_of(of, layout, s["degree"])
            base = store.index(of, layout=layout, **build)
            with Index.open(base, readonly=True, **searching) as index:
                search = _search(of, shape, index, layout == "packed", s["L"])
            # A log that is not written to pages meanwhile: a checkpoint rewrites all tables.
            rest = {"checkpoint_bytes": 1 << 40, **inserting}
            with store.copy(base) as copy, Index.open(copy, **rest) as index:
                insert = _insert(of, shape, index, layout, s["inserts"], s["degree"])
            measured[f"d{dim}_{mode}"] = {"search": search, "insert": insert}
            context.run.metric(dim=dim, mode=mode, search=search, insert=insert)
    return _summary(s, measured)


def _summary(s: dict[str, Any], measured: dict[str, dict[str, Any]]) -> Summary:
    def every(part: str, name: str) -> list[float]:
        return [found[part][name] for found in measured.values()]

    metrics: dict[str, Any] = {
        "over_formula": {
            "search_requests": every("search", "requests_over_formula"),
            "search_bytes": every("search", "bytes_over_formula"),
            "insert_requests": every("insert", "requests_over_formula"),
            "insert_read_bytes": every("insert", "read_over_formula"),
            "insert_write_bytes": every("insert", "write_over_formula"),
        },
        "counted_over_kernel": {
            "read": every("search", "counted_over_kernel")
            + every("insert", "read_counted_over_kernel"),
            "write": every("insert", "write_counted_over_kernel"),
        },
        **measured,
    }
    columns = ["dimensions", "opened", "expansions", "served", "vectors", "requests", "formula",
               "KiB", "formula ", "kernel/formula"]  # fmt: skip
    rows: dict[str, list[list[Any]]] = {"search": [], "insert": []}
    for name, found in measured.items():
        dim, mode = name[1:].split("_")
        for part, formula, size, ratio in (
            ("search", "formula", "bytes", "bytes_over_formula"),
            ("insert", "read_formula", "read_bytes", "read_over_formula"),
        ):
            f = found[part]
            rows[part].append(
                [int(dim), mode, round(f["expansions"], 1), round(f["served"], 3),
                 round(f["vectors"], 1), round(f["requests"], 1), round(f[formula].requests, 1),
                 round(f[size] / 1024, 1), round(f[formula].bytes / 1024, 1), round(f[ratio], 4)]
            )  # fmt: skip
    written = [
        [int(name[1:].split("_")[0]), name.split("_")[1], round(f["insert"]["lists"], 1),
         round(f["insert"]["write_bytes"] / 1024, 1),
         round(f["insert"]["write_formula"].bytes / 1024, 1),
         round(f["insert"]["write_over_formula"], 4), round(f["insert"]["log_bytes"] / 1024, 1)]
        for name, f in measured.items()
    ]  # fmt: skip
    tables = [
        Table("search", f"Reads of a search, L {s['L']}", columns, rows["search"]),
        Table("insert", "Reads of an insert, L 128", columns, rows["insert"]),
        Table(
            "written",
            "Pages written by an insert",
            ["dimensions", "opened", "lists", "KiB", "formula", "kernel/formula", "log KiB"],
            written,
            "The log is not in the formula: it is what the peers do without.",
        ),
    ]
    figures = [
        _figure(s, measured, "search", "bytes", "formula", "KiB read per search"),
        _figure(s, measured, "insert", "read_bytes", "read_formula", "KiB read per insert"),
        _figure(s, measured, "insert", "write_bytes", "write_formula", "KiB of pages per insert"),
    ]
    note = (
        "E, h, V and n in the formulas are taken from the engine's counters, bytes from the kernel."
    )
    return Summary(metrics, figures, tables, [note])


def _figure(
    s: dict[str, Any], measured: dict[str, Any], part: str, size: str, formula: str, label: str
) -> Figure:
    series = []
    for mode in _MODES:
        found = [measured[f"d{dim}_{mode}"][part] for dim in s["dims"]]
        series.append(Series(mode, [f[size] / 1024 for f in found]))
        series.append(Series(mode, [f[formula].bytes / 1024 for f in found], kind="predicted"))
    return Figure(f"{part}_{size}", label, "bars", [str(d) for d in s["dims"]], "dimensions",
                  label, series, log_y=True)  # fmt: skip


_COMMON = {"degree": 32, "build_list": 64, "L": 40}
EXPERIMENT = Experiment(
    id="io_formula",
    title="Requests and bytes per operation against the cost formulas",
    source="notes, section 1.4; Must show 1",
    run=run,
    scales={
        "smoke": {
            **_COMMON, "dims": [128, 768], "rows": [3000, 2000], "inserts": 200, "queries": 100,
        },
        "small": {
            **_COMMON, "dims": [128, 768, 1536, 3072], "rows": [20000, 8000, 5000, 3000],
            # One in a hundred: more would rewrite so many of a small index's lists that pages of
            # records come to be shared, as they are not in a large one.
            "inserts": 200, "queries": 500,
        },
    },
    minutes={"smoke": 0.3, "small": 4},
)  # fmt: skip
