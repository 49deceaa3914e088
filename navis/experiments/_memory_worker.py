"""A process that works on an index under a memory budget and says what it took, as JSON.

Run by path with one argument, a JSON object: `do` is build or serve. The baseline is the process
with every library loaded and its queries and inserts in memory.
"""

import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 - its memory belongs to the baseline
import numpy as np
from shorthaul.errors import UserError

from navis import Index, _core  # type: ignore[attr-defined]  # noqa: F401 - likewise


def status() -> dict[str, int]:
    """Bytes of this process: VmHWM (peak), VmRSS, RssAnon and the others."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in lines if words[-1:] == ["kB"]}


class Watch:
    """Peaks from here on: of all resident memory, and of what is not backed by a file."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew
        self.before, self.anonymous = status(), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.anonymous = max(self.anonymous, status()["RssAnon"])
            time.sleep(0.002)

    def grown(self) -> dict[str, int]:
        """Growth of both."""
        self._stop.set()
        self._thread.join()
        return {
            "resident": status()["VmHWM"] - self.before["VmRSS"],
            "anonymous": self.anonymous - self.before["RssAnon"],
            "baseline": self.before["VmRSS"],
        }


def serve(given: dict[str, Any]) -> dict[str, Any]:
    """Open, search, insert, search; with the parts of memory as the index counts them."""
    rows = np.load(given["rows"], mmap_mode="r")
    start, stop = given["insert"]
    vectors, queries = np.array(rows[start:stop]), np.load(given["queries"])
    del rows
    watch = Watch()
    with Index.open(given["index"], memory_budget=given["budget"]) as index:
        index.search(queries, 10, L=40)
        before = index.counters()
        for at in range(0, len(vectors), 16):
            part = vectors[at : at + 16]
            index.insert(np.arange(start + at, start + at + len(part)), part)
        between = index.counters()
        index.search(queries, 10, L=40)
        after, held = index.counters(), index.stats()
    parts = {name: held[name] for name in held if name.endswith("_bytes") and "wal" not in name}
    reads = lambda a, b, kind: sum(  # noqa: E731
        b[f"{kind}_{part}_reads"] - a[f"{kind}_{part}_reads"] for part in ("edge", "vector")
    )
    return {
        **watch.grown(),
        "parts": parts,
        "cache_capacity": held["cache_capacity"],
        "reads_per_insert": reads(before, between, "seek") / max(1, len(vectors)),
        "reads_per_search": reads(between, after, "search") / len(queries),
    }


def build(given: dict[str, Any]) -> dict[str, Any]:
    """Build from a memory-mapped file, whose own pages are resident but no memory of ours."""
    rows = np.load(given["rows"], mmap_mode="r")[: given["base"]]
    watch = Watch()
    began = time.process_time()
    Index.build(given["index"], rows, memory_budget=given["budget"]).close()
    return {**watch.grown(), "cpu_s": time.process_time() - began}


def main() -> None:
    """Do what the argument says; a refusal is an answer."""
    given = json.loads(sys.argv[1])
    try:
        answer = {"refused": "", **(build if given["do"] == "build" else serve)(given)}
    except UserError as error:
        answer = {"refused": str(error)}
    answer["max_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
