"""``pipe-bd export``: write the trained student as one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shorthaul import atomic
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError


@dataclass(kw_only=True)
class Export(Common):
    """Write the student of a finished `pipe-bd train --checkpoint` run as one model."""

    checkpoint: Path
    """Folder that `pipe-bd train --checkpoint` wrote."""
    out: Path
    """New folder: loadable by from_pretrained for --hf models, else safetensors and a manifest."""
    choose: list[str] = field(default_factory=list)
    """Candidate per block where there are several: BLOCK=CANDIDATE, or CANDIDATE for all."""
    overwrite: bool = False
    """Replace what is there."""

    def run(self) -> None:
        """Rebuild the task, load the students and export."""
        from pipe_bd import models
        from pipe_bd.export import export
        from pipe_bd.runtime import checkpoint
        from pipe_bd.stitch import check_choice

        choice = parse_choice(self.choose)
        if not (self.checkpoint / "task.json").is_file():
            raise UserError(
                f"--checkpoint {self.checkpoint} holds no finished run: give the folder of a "
                "`pipe-bd train --checkpoint`, or finish it with --resume"
            )
        described = atomic.read_json(self.checkpoint / "task.json")
        if not isinstance(described, dict) or not {"model", "options"} <= described.keys():
            raise UserError(
                f"{self.checkpoint / 'task.json'} describes no model: give the folder of `pipe-bd "
                "train --checkpoint`"
            )
        states = checkpoint.load_students(self.checkpoint, described["options"].get("steps"))
        task = models.build(described["model"], **described["options"])
        check_choice(task, choice)
        for pair in task.pairs:
            for name, candidate in pair.candidates.items():
                state = states.get(pair.name, {}).get(name)
                if state is None:
                    raise UserError(
                        f"{self.checkpoint} holds no student {name!r} of block {pair.name!r}: "
                        "train this model first"
                    )
                try:
                    candidate.module.load_state_dict(state)
                except RuntimeError as error:
                    reason = str(error).splitlines()[-1].strip()
                    raise UserError(
                        f"the checkpoint of block {pair.name!r} does not fit "
                        f"{described['model']!r}: {reason}"
                    ) from error
        written = export(task, self.out, choice, self.overwrite)
        size = sum(p.stat().st_size for p in written.iterdir())
        emit(
            {
                "out": str(written),
                "files": sorted(p.name for p in written.iterdir()),
                "bytes": size,
            },
            self.json,
            f"{written}: {size / 1e6:.1f} MB",
        )


def parse_choice(given: list[str]) -> str | dict[str, str] | None:
    """``["half"]``: one candidate for all blocks; ``["layer0=half"]``: per block; ``[]``: none."""
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    choice = {}
    for item in given:
        block, equals, candidate = item.partition("=")
        if not (block and equals and candidate):
            raise UserError(
                f"--choose {item!r}: write BLOCK=CANDIDATE, or one CANDIDATE for all blocks"
            )
        choice[block] = candidate
    return choice
