"""``navis import-diskann``: an index from a disk index of DiskANN."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from shorthaul.cli import Common, emit

from navis.commands.keep import shown
from navis.commands.session import SessionFlags


@dataclass(kw_only=True)
class ImportDiskAnn(SessionFlags, Common):
    """Make an index of a disk index of DiskANN's Python packages, with its graph; ids are rows."""

    prefix: tyro.conf.Positional[Path]
    """Of its files, or their folder, or its …_disk.index."""
    index: tyro.conf.Positional[Path]
    """Folder to make."""
    dtype: Literal["float32", "int8", "uint8"] | None = None
    """Value type, where no …_metadata.bin tells."""
    metric: Literal["l2", "inner_product", "cosine"] | None = None
    """Distance, where no …_metadata.bin tells."""
    layout: Literal["auto", "packed", "selective"] = "auto"
    """Vector and edges in one record, apart, or by dimension and budget."""
    insert_list: int = 128
    """Search list of later inserts."""
    code_bytes: int | None = None
    """Train codes of so many bytes per vector instead of taking theirs."""

    def run(self) -> None:
        """Import, say what came over."""
        from navis.importing import from_diskann

        started = time.perf_counter()
        with shown("import") as report:
            index, done = from_diskann(
                self.prefix,
                self.index,
                dtype=self.dtype,
                metric=self.metric,
                layout=self.layout,
                insert_list=self.insert_list,
                code_bytes=self.code_bytes,
                seed=self.seed,
                threads=self.threads,
                progress=report,
                **self.session(),
            )
        with index:
            stats = index.stats()
            found = {
                "vectors": len(index),
                "dim": index.dim,
                "dtype": str(index.dtype),
                "metric": index.metric,
                "layout": index.layout,
                **dataclasses.asdict(done),
                "files_bytes": stats["files_bytes"],
                "wall_s": time.perf_counter() - started,
            }
        emit(
            found,
            self.json,
            f"{self.index}: {found['vectors']} vectors of {found['dim']} dimensions, "
            f"{done.edges} edges ({done.dropped} loops and second ones left out), "
            f"{done.codes} codes of {done.code_bytes} bytes, {found['layout']} layout, "
            f"{found['wall_s']:.1f} s",
        )
