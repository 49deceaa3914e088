"""``navis build``: an index of a file of vectors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags


@dataclass(kw_only=True)
class Build(SessionFlags, Common):
    """Make an index of a file of vectors (.fbin .u8bin .i8bin .f16bin .npy .fvecs .bvecs .hdf5)."""

    data: tyro.conf.Positional[str]
    """File of vectors."""
    index: tyro.conf.Positional[Path]
    """Folder to make."""
    metric: Literal["l2", "inner_product", "cosine"] = "l2"
    """Distance."""
    layout: Literal["auto", "packed", "selective"] = "auto"
    """Vector and edges in one record, apart, or by dimension and budget."""
    degree: int = 32
    """Edges per node, R."""
    build_list: int = 64
    """Search list of the construction, L."""
    insert_list: int = 128
    """Search list of later inserts."""
    code_bytes: int | None = None
    """Bytes per vector held in memory; by dimension if absent."""
    count: int | None = None
    """Take only the first so many vectors."""

    def run(self) -> None:
        """Read, build, say what it cost."""
        import resource

        from shorthaul.progress import bar

        from navis.formats import read_vectors
        from navis.index import Index

        vectors = read_vectors(self.data, count=self.count)
        if not len(vectors):
            raise UserError(
                f"{self.data}: no rows to build from; Index.create makes an empty index"
            )
        started, cpu = time.perf_counter(), time.process_time()
        with bar(len(vectors), "build") as shown:

            def report(done: int, total: int) -> bool:
                shown.n = done
                shown.refresh()
                return True

            with Index.build(
                self.index,
                vectors,
                metric=self.metric,
                layout=self.layout,
                degree=self.degree,
                build_list=self.build_list,
                insert_list=self.insert_list,
                code_bytes=self.code_bytes,
                threads=self.threads,
                seed=self.seed,
                progress=report,
                **self.session(),
            ) as index:
                stats, layout = index.stats(), index.layout
        n, dim = vectors.shape
        found = {
            "vectors": n,
            "dim": dim,
            "dtype": str(vectors.dtype),
            "metric": self.metric,
            "layout": layout,
            "wall_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - cpu,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "files_bytes": stats["files_bytes"],
        }
        emit(
            found,
            self.json,
            f"{self.index}: {n} vectors of {dim} dimensions, {layout} layout, "
            f"{stats['files_bytes'] / 1e6:.1f} MB, {found['wall_s']:.1f} s "
            f"({found['cpu_s']:.1f} s of CPU), "
            f"peak memory {found['peak_rss_bytes'] / 2**20:.0f} MiB",
        )
