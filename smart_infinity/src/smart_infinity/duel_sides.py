"""The sides of a duel: who trains the model, and how its optimizer is set up.

`Smart` is a torch loop with `SmartOptimizer`, `Bare` one without; `DeepSpeed` its engine, ZeRO-3,
with the optimizer offloaded to NVMe or to the CPU, or with torch's or our optimizer given to it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

_MOMENTS = ("exp_avg", "exp_avg_sq")
_AIO = ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events")
_BUCKET = 1 << 24  # its default, 2 GB of float32, is for large machines


class Side(Protocol):
    """What a side's process offers.

    Attributes:
        model: What it trains.
        opening_s: Seconds in which its optimizer was made ready.
    """

    model: Any
    opening_s: float

    def train(self, windows: Any) -> tuple[float, float]:
        """Forward and backward; give the loss, and the seconds of it."""

    def step(self) -> dict[str, float]:
        """Take the optimizer's step; give its phases in seconds, `total_s` all of it."""

    def digest(self) -> dict[str, Any]:
        """Give sums of parameters and moments in the order of parameters, and the step count."""

    def save(self, folder: str) -> None:
        """Make a checkpoint."""

    def load(self, folder: str) -> None:
        """Continue from one."""

    def pids(self) -> list[int]:
        """Give the devices' processes."""

    def close(self) -> None:
        """End."""


class Smart:
    """`SmartOptimizer`; `settings` are its arguments, `devices` and what else, and `slots`."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        from smart_infinity import DeviceOptions, SmartOptimizer, models

        s = dict(given["settings"])
        self.config = models.ModelConfig(**given["model"])
        self.model = models.build(self.config, given["vocabulary"], given["seed"])
        options = {name: s.pop(name) for name in ("slots", "window") if name in s}
        begin = time.perf_counter()
        self.optimizer = SmartOptimizer(
            self.model.parameters(), options=DeviceOptions(**options),
            max_norm=given["max_norm"] or None, **given["optimizer"], **s,
        )  # fmt: skip
        self.optimizer.flush()
        self.opening_s = time.perf_counter() - begin

    def train(self, windows: Any) -> tuple[float, float]:
        """See `Side`."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        return _pass(self.model, self.config, windows), time.perf_counter() - begin

    def step(self) -> dict[str, float]:
        """From complete `.grad` until the step is committed on all devices."""
        begin = time.perf_counter()
        self.optimizer.step()
        stepped = time.perf_counter()
        self.optimizer.flush()
        end = time.perf_counter()
        return {"total_s": end - begin, "update_s": stepped - begin, "durable_s": end - stepped}

    def digest(self) -> dict[str, Any]:
        """See `Side`."""
        return {"parameters": _sum(self.model.parameters()), **_of_state(self.optimizer)}

    def save(self, folder: str) -> None:
        """The devices' folders are the checkpoint."""
        self.optimizer.flush()

    def load(self, folder: str) -> None:
        """Opening did."""

    def pids(self) -> list[int]:
        """See `Side`."""
        found = [device.process for device in self.optimizer.array.devices]
        return [process.pid for process in found if process is not None]

    def close(self) -> None:
        """See `Side`."""
        self.optimizer.close()


class Bare:
    """Forward and backward pass with nothing to step: what is left are an optimizer's seconds."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        from smart_infinity import models

        self.config = models.ModelConfig(**given["model"])
        self.model = models.build(self.config, given["vocabulary"], given["seed"])
        self.opening_s = 0.0

    def train(self, windows: Any) -> tuple[float, float]:
        """See `Side`."""
        begin = time.perf_counter()
        self.model.zero_grad()
        return _pass(self.model, self.config, windows), time.perf_counter() - begin

    def step(self) -> dict[str, float]:
        """Nothing."""
        return {"total_s": 0.0, "update_s": 0.0, "durable_s": 0.0}

    def digest(self) -> dict[str, Any]:
        """See `Side`."""
        return {"parameters": _sum(self.model.parameters())}

    def save(self, folder: str) -> None:
        """There is nothing to save."""

    def load(self, folder: str) -> None:
        """There is nothing to load."""

    def pids(self) -> list[int]:
        """See `Side`."""
        return []

    def close(self) -> None:
        """See `Side`."""


class DeepSpeed:
    """DeepSpeed's engine.

    `settings`: `device`, where its optimizer is: nvme, cpu, smart (ours is given to it) or torch
    (torch's AdamW is); `arguments` of the one that is given; and see `_config`.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        import deepspeed

        from smart_infinity import deepspeed as ours
        from smart_infinity import models

        s = given["settings"]
        self.config = models.ModelConfig(**given["model"])
        self.model = models.build(self.config, given["vocabulary"], given["seed"])
        self.mine: Any = None
        config = _config(given)
        optimizer: Any = None
        if s["device"] in ("smart", "torch"):
            config = ours.config(config)
        arguments = {**given["optimizer"], **s.get("arguments", {})}
        if s["device"] == "smart":
            optimizer = self.mine = ours.SubgroupOptimizer(self.model.parameters(), **arguments)
        elif s["device"] == "torch":
            import torch

            optimizer = torch.optim.AdamW(self.model.parameters(), **arguments)
        begin = time.perf_counter()
        self.engine, *_ = deepspeed.initialize(model=self.model, optimizer=optimizer, config=config)
        self._before = _code()
        if self.mine is not None:
            self.mine.attach(self.engine)
        self.opening_s = time.perf_counter() - begin

    def train(self, windows: Any) -> tuple[float, float]:
        """See `Side`."""
        from smart_infinity import models

        begin = time.perf_counter()
        loss = models.loss(self.engine, self.config, windows, 0)
        self.engine.backward(loss)
        return float(loss.detach()), time.perf_counter() - begin

    def step(self) -> dict[str, float]:
        """DeepSpeed's `engine.step()`; nothing of it is synced to disk, but for ours in it."""
        begin = time.perf_counter()
        self.engine.step()
        stepped = time.perf_counter()
        if self.mine is not None:
            self.mine.flush()
        end = time.perf_counter()
        return {"total_s": end - begin, "update_s": stepped - begin, "durable_s": end - stepped}

    def digest(self) -> dict[str, Any]:
        """See `Side`; `step` is the base optimizer's own, of its first subgroup."""
        zero = self.engine.optimizer
        found = {"parameters": _sum(zero.fp16_partitioned_groups_flat)}
        if self.mine is not None:
            return {**found, **_of_state(self.mine.smart)}
        from deepspeed.utils import safe_get_full_optimizer_state

        params = [param for group in zero.fp16_groups for param in group]
        for name in _MOMENTS:
            found[name] = _sum(safe_get_full_optimizer_state(param, name) for param in params)
        first = zero.optimizer.state.get(zero.fp32_partitioned_groups_flat[0], {})
        return {**found, "step": int(first.get("step", 0))}

    def replaced(self) -> dict[str, Any]:
        """Tell which functions of DeepSpeed are not those they were before ours was attached."""
        after = _code()
        names = [name for name, code in self._before.items() if after.get(name) is not code]
        return {"looked_at": len(self._before), "replaced": names}

    def save(self, folder: str) -> None:
        """See `Side`."""
        self.engine.save_checkpoint(folder, tag="t")

    def load(self, folder: str) -> None:
        """See `Side`."""
        loaded, _ = self.engine.load_checkpoint(folder, tag="t")
        if loaded is None:
            raise FileNotFoundError(folder)

    def pids(self) -> list[int]:
        """See `Side`."""
        found = [] if self.mine is None else self.mine.smart.array.devices
        return [device.process.pid for device in found]

    def close(self) -> None:
        """See `Side`."""
        if self.mine is not None:
            self.mine.close()
        self.engine.destroy()


SIDES: dict[str, type[Smart] | type[DeepSpeed] | type[Bare]] = {
    "smart": Smart, "deepspeed": DeepSpeed, "bare": Bare
}  # fmt: skip


def _pass(model: Any, config: Any, windows: Any) -> float:
    """Forward and backward pass of a torch model; give the loss."""
    from smart_infinity import models

    loss = models.loss(model, config, windows, 0)
    loss.backward()
    return float(loss.detach())


def _config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give DeepSpeed's configuration; its AdamW on the CPU is the optimizer where none is given.

    Of the settings: `sub_group_size`; with nvme also `folder`, `pipeline` (both ways or neither),
    `buffer_count`, and those of aio.
    """
    s = given["settings"]
    nvme = s["device"] == "nvme"
    offload: dict[str, Any] = {"device": "nvme" if nvme else "cpu", "pin_memory": False}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": given["batch"],
        "steps_per_print": 1 << 30,
        "gradient_clipping": given["max_norm"],
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": s["sub_group_size"],
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": _BUCKET,
            "offload_optimizer": offload,
        },
    }
    if given["model"].get("dtype") == "bfloat16":
        config["bf16"] = {"enabled": True}
    if nvme:
        offload.update(
            nvme_path=s["folder"], buffer_count=s["buffer_count"],
            pipeline_read=s["pipeline"], pipeline_write=s["pipeline"],
        )  # fmt: skip
        config["aio"] = {name: s[name] for name in _AIO}
    if s["device"] in ("nvme", "cpu"):
        config["optimizer"] = {"type": "AdamW", "params": dict(given["optimizer"])}
    return config


def _sum(tensors: Iterable[Any]) -> str:
    """Give a digest of the values of tensors, in order, as float32."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().reshape(-1).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_state(optimizer: Any) -> dict[str, Any]:
    """Give sums of the moments of a `SmartOptimizer`, and its step."""
    state = optimizer.state_dict()["state"].values()
    found: dict[str, Any] = {name: _sum(one[name] for one in state) for name in _MOMENTS}
    return {**found, "step": optimizer.array.step}


def _code() -> dict[str, Any]:
    """Give every function, class and method of DeepSpeed's modules, by name."""
    found: dict[str, Any] = {}
    for module in [one for name, one in sys.modules.items() if name.split(".")[0] == "deepspeed"]:
        for name, value in list(vars(module).items()):
            where = f"{module.__name__}.{name}"
            if isinstance(value, type) and value.__module__.startswith("deepspeed"):
                found |= {f"{where}.{m}": f for m, f in vars(value).items() if callable(f)}
            if callable(value):
                found[where] = value
    return found
