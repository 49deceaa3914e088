"""``navis``: the command line. Verbs live in :mod:`navis.commands`."""

from __future__ import annotations

import sys

from shorthaul.cli import main as run

from navis import __version__

COMMANDS = {
    "build": ("navis.commands.build:Build", "make an index of a file of vectors"),
    "search": ("navis.commands.search:SearchCommand", "recall, latency and reads at each L"),
    "tune": ("navis.commands.tune:Tune", "the smallest search list for a recall"),
    "insert": ("navis.commands.change:Insert", "insert a file of vectors"),
    "delete": ("navis.commands.change:Delete", "delete ids"),
    "bench": ("navis.commands.bench:Bench", "inserts and searches at the same time"),
    "serve": ("navis.commands.serve:Serve", "answer over HTTP: JSON, binary, metrics"),
    "stats": ("navis.commands.look:StatsCommand", "sizes, memory by part, state of the log"),
    "verify": ("navis.commands.look:Verify", "read everything and compare"),
    "repair": ("navis.commands.keep:Repair", "make damaged edge lists anew"),
    "compact": ("navis.commands.keep:Compact", "give back the space of deletes"),
    "snapshot": ("navis.commands.keep:Snapshot", "copy it as it is at one moment"),
    "gt": ("navis.commands.gt:GroundTruth", "exact nearest neighbours of queries"),
    "import-diskann": ("navis.commands.bring:ImportDiskAnn", "an index from a DiskANN disk index"),
    "cachesim": ("navis.commands.cachesim:CacheSim", "hit ratios of caches on a trace"),
    "reproduce": ("navis.commands.reproduce:Reproduce", "run a figure of the paper, or ours"),
    "doctor": ("navis.commands.doctor:Doctor", "what this machine has and lacks"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run(
        "navis",
        __version__,
        "Vector search on SSD that inserts while it searches, and loses nothing.",
        COMMANDS,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
