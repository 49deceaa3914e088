"""``navis search``: recall, latency and reads at each search list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from shorthaul.cli import Common, check_output, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags


@dataclass(kw_only=True)
class SearchCommand(SessionFlags, Common):
    """Search every query at each L, with recall where a truth set is given."""

    index: tyro.conf.Positional[Path]
    """Index folder."""
    queries: tyro.conf.Positional[str]
    """File of query vectors."""
    k: int = 10
    """Neighbours per query."""
    L: str | None = None
    """Search lists, comma-separated; those below k are raised to it; 10,20,40,80 by default."""
    target_recall: float | None = None
    """Instead of --L: the search list that navis tune found for this recall and k."""
    truth: str | None = None
    """Truth set: exact neighbours of these queries."""
    out: Path | None = None
    """Write the ids and distances of the last L as a truth set."""

    def run(self) -> None:
        """Search and print a table."""
        import numpy as np

        from navis import tuning
        from navis.formats import read_truth, read_vectors, recall, write_truth
        from navis.measure import Meter

        if self.L is not None and self.target_recall is not None:
            raise UserError("--L and --target-recall: give one of them")
        check_output(self.out, "--out")
        lists = lengths("10,20,40,80" if self.L is None else self.L, self.k)
        queries = np.asarray(read_vectors(self.queries), dtype=np.float32)
        truth = None if self.truth is None else read_truth(self.truth)
        rows: list[dict[str, Any]] = []
        with self.open(self.index, readonly=True) as index:
            margin = None
            if self.target_recall is not None:
                tuned = tuning.look_up(self.index, self.k, self.target_recall)
                lists, margin = [tuned.L], tuned.margin
            for length in lists:
                with Meter(index) as meter:
                    ids, distances, micros = index.search(
                        queries,
                        self.k,
                        L=length,
                        margin=margin,
                        threads=self.threads,
                        latencies=True,
                    )
                found = meter.result(len(queries), micros)
                if truth is not None:
                    found["recall"] = recall(
                        ids.astype(np.int64), truth.ids, self.k, truth.distances
                    )
                rows.append({"L": length, **found})
        if self.out is not None:
            write_truth(self.out, ids.astype(np.int64), distances)
        emit({"k": self.k, "threads": self.threads, "rows": rows}, self.json, table(rows))


def lengths(text: str, k: int) -> list[int]:
    """Read `10,20,40` as search lists of at least k, without repetition."""
    try:
        given = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        given = []
    if not given or min(given) < 1:
        raise UserError(f"--L {text!r}: write numbers like 10,20,40")
    return list(dict.fromkeys(max(k, length) for length in given))


def table(rows: list[dict[str, Any]]) -> str:
    """Give the rows as aligned text."""
    head = "    L  recall      qps   mean ms    p50    p99   cpu ms  requests      KiB  hits"
    lines = [head]
    for r in rows:
        share = f"{r['recall']:.4f}" if "recall" in r else "     -"
        lines.append(
            f"{r['L']:>5}  {share}  {r['qps']:>7.0f}  {r['mean_ms']:>8.2f} {r['p50_ms']:>6.2f} "
            f"{r['p99_ms']:>6.2f}  {r['cpu_ms']:>7.2f}  {r['requests']:>8.1f} "
            f"{r['bytes'] / 1024:>8.0f}  {r['cache_hit_ratio']:.2f}"
        )
    return "\n".join(lines)
