"""``smart-infinity verify`` and ``repair``: states on disk, without a host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from shorthaul.cli import Common, emit


@dataclass(kw_only=True)
class Verify(Common):
    """Read every array of a state's devices and compare its checksum."""

    folders: tyro.conf.Positional[list[Path]]
    """Folders of all devices of a state."""

    def run(self) -> None:
        """Read, and say what is damaged."""
        from smart_infinity import keep
        from smart_infinity.errors import Corrupt

        found = keep.inspect(self.folders)
        step = keep.consistent(found)
        lines = []
        for one in found:
            state = "whole" if one.clean else f"{len(one.faults)} damaged arrays"
            lines.append(f"{one.folder}: step {one.step}, {state}")
            lines += [
                f"  tile {fault['tile']}: {fault['array']} ({', '.join(fault['parameters'][:4])})"
                for fault in one.faults[:20]
            ]
        absent = keep.missing(found)
        if absent:
            numbers = ", ".join(map(str, absent))
            lines.append(f"not given: device {numbers} of the state's {found[0].devices}")
        clean = all(one.clean for one in found)
        result = {"step": step, "clean": clean, "devices": found, "missing": absent}
        emit(result, self.json, "\n".join(lines))
        if not clean:
            damaged = next(one for one in found if not one.clean)
            raise Corrupt(f"{damaged.folder} is damaged: smart-infinity repair may go a step back")


@dataclass(kw_only=True)
class Repair(Common):
    """Bring all devices of a state to the newest step that is whole on each of them."""

    folders: tyro.conf.Positional[list[Path]]
    """Folders of all devices of a state."""

    def run(self) -> None:
        """Go back where needed."""
        from smart_infinity import keep

        step, done = keep.repair(self.folders)
        text = "\n".join([*done, f"all devices are whole at step {step}"])
        emit({"step": step, "done": done}, self.json, text)
