"""Options say what is wrong with them, and what to use instead."""

from pathlib import Path
from typing import Any

import pytest
from shorthaul.errors import UserError

from pipe_bd.options import SCHEDULES, Options
from pipe_bd.plan import Plan


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "jiont"}, "unknown schedule 'jiont': did you mean 'joint'"),
        ({"schedule": "zzz"}, "unknown schedule 'zzz': choose one of sequential, dp, ls"),
        ({"devices": 0}, "devices is 0: use 1 or more"),
        ({"depth": 0}, "depth is 0: use 1 or more"),
        ({"loss_every": 0}, "loss_every is 0"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1: use 0 or more"),
        ({"teacher_mode": "sleep"}, "teacher_mode 'sleep' is unknown: choose one of eval, train"),
        ({"batchnorm": "x"}, "batchnorm 'x' is unknown: choose one of one-device, sync, local"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"resume": True}, "resume needs a checkpoint folder"),
        ({"deadline_s": 1}, "deadline_s \\(--deadline\\) is 1, too short"),
        ({"schedule": "joint", "plan": Plan.joint(2, 1)}, "schedule 'joint' takes no plan"),
        ({"schedule": "ls", "plan": Plan.joint(2, 1)}, "schedule 'ls' takes no plan"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**given)


def test_every_schedule_is_known() -> None:
    assert [Options(schedule=s).schedule for s in SCHEDULES] == list(SCHEDULES)
    assert len(SCHEDULES) == 7


def test_folders_may_be_strings() -> None:
    options = Options(checkpoint_dir="a/b", trace_dir="c")  # type: ignore[arg-type]
    assert (options.checkpoint_dir, options.trace_dir) == (Path("a/b"), Path("c"))
