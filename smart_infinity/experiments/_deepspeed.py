"""What the experiments beside DeepSpeed share: its environment, where it is there."""

from __future__ import annotations

from shorthaul import logs
from shorthaul.experiments import Context

from smart_infinity import deepspeed_environment
from smart_infinity.deepspeed_environment import Environment

_log = logs.get(__name__)

# AdamW of both sides, and the global norm both clip to.
OPTIMIZER = {"lr": 1e-4, "weight_decay": 0.01}
MAX_NORM = 1.0
# DeepSpeed's NVMe settings to begin with: those of its documentation. Its pipelined swapper runs
# out of buffers with fewer than about 10.
NVME = {
    "buffer_count": 12, "block_size": 1 << 20, "queue_depth": 16, "intra_op_parallelism": 1,
    "single_submit": False, "overlap_events": True,
}  # fmt: skip


def environment(context: Context, notes: list[str]) -> Environment | None:
    """Give DeepSpeed's environment, made where the scale says so.

    Where it is not there, and not to be made, a line says how to make it, in the notes and on
    standard error, and None comes back: what is ours is measured all the same.

    Raises:
        EnvironmentLack: It cannot be made.
    """
    folder = deepspeed_environment.default_folder(context.run.path.parents[2])
    if context.settings["make_environment"]:
        return deepspeed_environment.make(folder)
    found = deepspeed_environment.find(folder)
    if found is None:
        line = f"DeepSpeed was not measured: {deepspeed_environment.lack(folder)}"
        notes.append(line)
        _log.warning("%s", line)
    return found
