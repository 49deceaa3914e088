"""``pipe-bd``: the command line. Verbs live in :mod:`pipe_bd.commands`."""

from __future__ import annotations

import sys

from shorthaul.cli import main as run

from pipe_bd import __version__

COMMANDS = {
    "train": ("pipe_bd.commands.train:Train", "distil a model block by block"),
    "profile": ("pipe_bd.commands.profile:ProfileCommand", "measure every block on these devices"),
    "plan": ("pipe_bd.commands.plan:Plan", "place blocks on devices from a profile"),
    "simulate": ("pipe_bd.commands.simulate:Simulate", "what a schedule would gain on N devices"),
    "bench": ("pipe_bd.commands.bench:BenchCommand", "measure schedules against each other"),
    "verify": ("pipe_bd.commands.verify:Verify", "compare every schedule with the reference"),
    "trace": ("pipe_bd.commands.trace:Trace", "record a run for chrome://tracing or Perfetto"),
    "export": ("pipe_bd.commands.export:Export", "write the student as one model"),
    "reproduce": ("pipe_bd.commands.reproduce:Reproduce", "run a figure of the paper, or ours"),
    "doctor": ("pipe_bd.commands.doctor:Doctor", "what this machine has and lacks"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run(
        "pipe-bd",
        __version__,
        "Pipelined blockwise distillation: one relayed teacher pass, no barrier, planned by "
        "measurement.",
        COMMANDS,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
