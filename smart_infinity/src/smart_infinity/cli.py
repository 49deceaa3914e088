"""``smart-infinity``: the command line. Verbs live in :mod:`smart_infinity.commands`."""

from __future__ import annotations

import sys

from shorthaul.cli import main as run

from smart_infinity import __version__

COMMANDS = {
    "train": ("smart_infinity.commands.train:Train", "train a language model on text"),
    "device": ("smart_infinity.commands.device:DeviceCommand", "serve a folder as a device"),
    "bench": ("smart_infinity.commands.bench:BenchCommand", "time steps and count their bytes"),
    "plan": ("smart_infinity.commands.plan:Plan", "step time, memory and wear of a setup"),
    "verify": ("smart_infinity.commands.keep:Verify", "read a state and compare its checksums"),
    "repair": ("smart_infinity.commands.keep:Repair", "bring devices to one whole step"),
    "wear": ("smart_infinity.commands.wear:Wear", "bytes written, and a drive's endurance"),
    "reproduce": ("smart_infinity.commands.reproduce:Reproduce", "run a figure, or ours"),
    "doctor": ("smart_infinity.commands.doctor:Doctor", "what this machine has and lacks"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run(
        "smart-infinity",
        __version__,
        "The optimizer runs beside the storage that holds its state.",
        COMMANDS,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
