"""``navis gt``: exact nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from shorthaul.cli import Common, check_output, emit
from shorthaul.errors import UserError


@dataclass(kw_only=True)
class GroundTruth(Common):
    """Find the exact nearest neighbours of queries and write them as a truth set."""

    data: tyro.conf.Positional[str]
    """File of vectors."""
    queries: tyro.conf.Positional[str]
    """File of queries."""
    out: tyro.conf.Positional[Path]
    """Truth set to write."""
    k: int = 100
    """Neighbours per query."""
    metric: Literal["l2", "inner_product", "cosine"] = "l2"
    """Distance."""
    count: int | None = None
    """Take only the first so many vectors."""

    def run(self) -> None:
        """Search exhaustively and write."""
        from navis.formats import read_vectors, write_truth
        from navis.groundtruth import exact

        check_output(self.out, "truth set")
        base, queries = read_vectors(self.data, count=self.count), read_vectors(self.queries)
        if not 1 <= self.k <= len(base):
            raise UserError(f"--k {self.k}: use 1 to {len(base)}, the vectors of {self.data}")
        truth = exact(base, queries, self.k, self.metric)
        write_truth(self.out, truth.ids, truth.distances)
        found = {"queries": len(queries), "k": self.k, "vectors": len(base), "out": str(self.out)}
        emit(found, self.json, f"{self.out}: {self.k} of {len(base)} for {len(queries)} queries")
