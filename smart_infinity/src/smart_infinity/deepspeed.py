"""DeepSpeed as a host: ZeRO-3 partitions, reduces and clips, devices step its partitions.

>>> optimizer = smart_infinity.deepspeed.SubgroupOptimizer(
...     model.parameters(), lr=1e-3, devices=[f"/mnt/nvme/state-{rank}"])
>>> engine, *_ = deepspeed.initialize(
...     model=model, optimizer=optimizer, config=smart_infinity.deepspeed.config(mine))
>>> optimizer.attach(engine)  # resumes what the devices hold

ZeRO-3 with its optimizer offloaded to the CPU steps one subgroup after the other: it shows its
optimizer one flat float32 tensor with that tensor's gradient, unscaled and clipped, calls `step()`,
and copies the tensor into the model's flat one. Nothing else is used of DeepSpeed, and nothing of
it is replaced. docs/deepspeed.md says what the two share and where it ends.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from shorthaul.errors import EnvironmentLack, Fault, UserError

from smart_infinity import kinds
from smart_infinity.distributed import Ranks
from smart_infinity.layout import Tile
from smart_infinity.optimizer import SmartOptimizer
from smart_infinity.parameters import copy_flat
from smart_infinity.wire import Kind

TESTED = "0.19.8"
SERIES = re.compile(r"0\.19\.\d+")
CHECKPOINTS = ("state", "folders")
_ITS_OWN = "set it in DeepSpeed's configuration"
_NOT_HERE = {
    "max_norm": f"{_ITS_OWN} (gradient_clipping)",
    "accumulation_steps": f"{_ITS_OWN} (gradient_accumulation_steps)",
    "offload": "gradients go down with the step",
    "compress": "not supported",
    "speculate": "gradients come with the step",
    "process_group": "every rank has its partitions",
    "apart": "it always is",
}


def config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give a DeepSpeed configuration with what this optimizer needs added.

    Raises:
        UserError: It asks for something else than ZeRO-3 with an optimizer in the CPU's memory.
    """
    zero = dict(given.get("zero_optimization", {}))
    if zero.setdefault("stage", 3) != 3:
        raise UserError(f"zero_optimization.stage = {zero['stage']}: use 3")
    offload = dict(zero.get("offload_optimizer", {}))
    if offload.setdefault("device", "cpu") != "cpu":
        raise UserError(
            f"zero_optimization.offload_optimizer.device = {offload['device']!r}: use cpu; the "
            "state lies with the devices of this optimizer"
        )
    if "optimizer" in given:
        raise UserError("the configuration names an optimizer: leave it out, this one is given")
    return {
        **given,
        "zero_optimization": {**zero, "offload_optimizer": offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def check_version() -> str:
    """Give DeepSpeed's version.

    Raises:
        EnvironmentLack: It is not installed.
        UserError: It is one whose optimizer steps were never compared with ours.
    """
    try:
        found = str(importlib.import_module("deepspeed").__version__)
    except ImportError as error:
        raise EnvironmentLack(
            f"DeepSpeed cannot be imported ({error}): pip install deepspeed=={TESTED}"
        ) from error
    if not SERIES.fullmatch(found.partition("+")[0]):
        raise UserError(f"DeepSpeed {found}: use 0.19, tested with {TESTED}")
    return found


class SubgroupOptimizer(torch.optim.Optimizer):
    """An optimizer for `deepspeed.initialize(optimizer=…)`, stepped beside its storage.

    Args:
        params: Of the model, as for any torch optimizer.
        devices: One folder a device or the address of one; each rank has its own.
        optimizer: adamw, adam, adagrad or sgd; its hyperparameters are keywords.
        checkpoint: What `engine.save_checkpoint` gets. `state`: moments and master parameters, in
            host memory while it is saved. `folders`: the step alone; the devices' folders are the
            checkpoint then, and only their own step can be loaded.
        options: Of `SmartOptimizer`: moments, tile, resume, grad_dtype, options, …

    Raises:
        EnvironmentLack: DeepSpeed is not installed.
        UserError: It is a version never tested, or an argument cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        devices: Sequence[str | Path],
        optimizer: str = "adamw",
        checkpoint: str = "state",
        resume: bool | None = None,
        grad_dtype: str = "float32",
        **options: Any,
    ) -> None:
        check_version()
        self.kind = kinds.optimizer(optimizer)
        if checkpoint not in CHECKPOINTS:
            raise UserError(f"checkpoint={checkpoint!r}: use {' or '.join(CHECKPOINTS)}")
        for name, why in _NOT_HERE.items():
            if name in options:
                raise UserError(f"{name}= is not for DeepSpeed: {why}")
        given = {name: options.pop(name) for name in tuple(options) if name in self.kind.defaults}
        super().__init__(params, kinds.merged(self.kind, given))
        for group in self.param_groups:
            kinds.check(self.kind, group)
        self.checkpoint = checkpoint
        self._devices, self._resume = list(devices), resume
        self._options = {"optimizer": optimizer, "grad_dtype": grad_dtype, **options}
        self._masters: list[torch.Tensor] = []
        # DeepSpeed takes them out of the groups; they lead to its own optimizer later.
        self._given = [param for group in self.param_groups for param in group["params"]]
        self._inner: _Subgroups | None = None
        self._number: dict[int, int] = {}

    # ------------------------------------------------------------------ DeepSpeed's side

    def attach(self, engine: Any) -> SubgroupOptimizer:
        """Lay the devices out for an engine's subgroups, or take up the state they hold.

        Without it the first `engine.step()` does so, and a state to resume is refused: the model
        would have run with other parameters by then.
        """
        if self._inner is None:
            self._lay_out(engine.optimizer, self._resume)
        return self

    def _lay_out_late(self) -> None:
        hint = "attach(engine) before the first step resumes"
        if self._resume:
            raise UserError(f"resume=True, but the model has run: {hint}")
        try:
            self._lay_out(_zero_of(self._given), False)
        except UserError as error:
            raise UserError(f"{error} ({hint})") from None

    def _lay_out(self, zero: Any, resume: bool | None) -> None:
        _check(zero, self)
        groups: dict[int, list[tuple[str, torch.Tensor]]] = {}
        for i, lp in enumerate(zero.fp16_partitioned_groups_flat):
            group = int(zero.sub_group_to_group_id[i])
            groups.setdefault(group, []).append((f"subgroup {i}", lp.detach()))
        self._groups = list(groups)
        described = [
            {**self._hyperparameters(g), "params": members} for g, members in groups.items()
        ]
        self._inner = _Subgroups(described, devices=self._devices, resume=resume, **self._options)
        self._masters = list(zero.fp32_partitioned_groups_flat)  # their ids stay theirs
        for i, (master, lp) in enumerate(
            zip(self._masters, zero.fp16_partitioned_groups_flat, strict=True)
        ):
            self._number[id(master)] = i
            # The device has the float32 parameters. DeepSpeed only copies from this tensor, into
            # the very memory that it now shares: its copy of the master goes, and so does the copy.
            master.data = lp.detach()

    def _hyperparameters(self, g: int) -> dict[str, Any]:
        return {key: self.param_groups[g][key] for key in self.kind.defaults}

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the one subgroup that DeepSpeed shows; with the last, the step is committed.

        Raises:
            NotFinite: Its gradient holds NaN or Inf; all parameters are those of the step before.
            Fault: A device failed, or DeepSpeed shows subgroups in another order than its own.
        """
        if closure is not None:
            raise UserError("a closure: DeepSpeed's optimizers take none")
        if self._inner is None:
            self._lay_out_late()
        inner = self._ready("step")
        shown = [param for group in self.param_groups for param in group["params"]]
        if len(shown) != 1 or id(shown[0]) not in self._number:
            raise Fault(
                f"DeepSpeed shows {len(shown)} tensors, one of its subgroups was expected: see "
                f"docs/deepspeed.md, tested with {TESTED}"
            )
        number = self._number[id(shown[0])]
        if number == 0:
            for mine, g in zip(inner.param_groups, self._groups, strict=True):
                mine.update(self._hyperparameters(g))
        try:
            inner.step_subgroup(number, shown[0].grad)
        except BaseException:
            # DeepSpeed would have done so after a step; the next one shows one tensor again.
            for group in self.param_groups:
                group["params"] = []
            raise

    # ------------------------------------------------------------------ checkpoints

    def _ready(self, what: str) -> _Subgroups:
        if self._inner is None:
            raise UserError(f"{what} before attach(engine): call it after deepspeed.initialize")
        return self._inner

    def state_dict(self) -> dict[str, Any]:
        """Give what DeepSpeed stores: see `checkpoint`."""
        inner = self._ready("state_dict")
        inner.flush()
        if self.checkpoint == "folders":
            return {"state": {}, "param_groups": [], "step": inner.array.step}
        packed = inner.state_dict()
        for i, lp in enumerate(inner.parameters.tensors):
            packed["state"][i].setdefault("master", lp.clone())
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave; durable on return.

        Raises:
            UserError: It is of other subgroups, or of a step that the folders do not have.
        """
        inner = self._ready("load_state_dict")
        if "step" in state_dict:
            inner.go_to(int(state_dict["step"]))
            return
        inner.load_state_dict(state_dict)
        inner.restore()
        for mine, g in zip(inner.param_groups, self._groups, strict=True):
            self.param_groups[g].update({key: mine[key] for key in self.kind.defaults})

    def take_parameters(self) -> None:
        """Make the model's parameters of this moment the devices', when something else set them."""
        inner = self._ready("take_parameters")
        inner.flush()
        inner._load_masters(inner.array.step)

    @property
    def smart(self) -> SmartOptimizer:
        """What steps the subgroups: its layout, devices, counts and phases."""
        return self._ready("smart")

    def flush(self) -> None:
        """Wait until the last step is durable on every device."""
        if self._inner is not None:
            self._inner.flush()

    def close(self) -> None:
        """Make the last step durable and end the devices."""
        if self._inner is not None:
            self._inner.close()


class _Subgroups(SmartOptimizer):
    """Steps parameters one after the other: DeepSpeed's flat ones, of one rank."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, apart=True, **options)
        self._tiles: list[list[Tile]] = [[] for _ in self.parameters.tensors]
        for tile in self.layout.tiles:
            self._tiles[tile.pieces[0].parameter].append(tile)
        self._due = 0
        self._given: torch.Tensor | None = None

    def _find_ranks(self, process_group: Any) -> Ranks | None:
        # ZeRO-3 partitions everything: what a rank is shown is its own, as of FSDP2's.
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        return Ranks(dist.group.WORLD, sharded=True)

    def go_to(self, step: int) -> None:
        """Go back a step, where that is needed; of several ranks all do.

        Raises:
            UserError: The devices have no such step.
        """
        self.array.settle()
        with self.array.together():
            if step not in (self.array.step, self.array.step - 1):
                raise UserError(
                    f"step {step} is wanted, {self.array.devices[0].address} is at "
                    f"{self.array.step} and the one before: give the folders of that step"
                )
            if step < self.array.step:
                for device in self.array.devices:
                    device.command(Kind.ROLLBACK, Kind.DONE)
                self.array.step = step
                self.array.note = {"steps": step, "extra": {}}
                self.restore()

    def _take_changes(self) -> None:
        """DeepSpeed writes to its flat parameters as it likes: `take_parameters` says when."""

    def restore(self) -> None:
        """Set the model's flat parameters and the step counts to the state's."""
        self._restore()
        self._due = 0

    def _gather_gradient(self, tile: Tile, into: torch.Tensor) -> None:
        assert self._given is not None
        piece = tile.pieces[0]
        flat = self._given.reshape(-1)
        copy_flat(into, flat[piece.element : piece.element + tile.elements])

    def step_subgroup(self, number: int, gradient: torch.Tensor | None) -> None:
        """Step one parameter; the first begins the step of all, the last commits it."""
        if number != self._due:
            raise Fault(f"DeepSpeed steps subgroup {number} where {self._due} was due")
        if gradient is None:
            raise Fault(f"DeepSpeed steps subgroup {number} without a gradient")
        if number == 0:
            self.array.settle()
            self._active = [True] * len(self.parameters)
            self._begin(1.0)
        self._given = gradient
        try:
            with self.array.together():
                self._flow.update(self._tiles[number], self._fill, self._take)
                if self.array.failure is not None:
                    raise self.array.failure
                if self._flow.not_finite:
                    raise self.parameters.not_finite(self._flow.not_finite[0])
        except BaseException:
            self._due = 0
            self._undo(tile for tiles in self._tiles[: number + 1] for tile in tiles)
            raise
        finally:
            self._given = None
        self._due = number + 1
        if self._due == len(self.parameters):
            self._due = 0
            self.steps = [step + 1 for step in self.steps]
            self.array.commit(self.array.step + 1, self._note())


def _check(zero: Any, optimizer: SubgroupOptimizer) -> None:
    """Refuse an engine that would not do what this optimizer relies on."""
    stage3 = importlib.import_module("deepspeed.runtime.zero.stage3")
    if not isinstance(zero, stage3.DeepSpeedZeroOptimizer_Stage3):
        raise UserError(f"DeepSpeed steps by {type(zero).__name__}: use zero_optimization.stage 3")
    if zero.optimizer is not optimizer:
        raise UserError("this engine has another optimizer: give this one to deepspeed.initialize")
    if not zero.offload_optimizer or zero.swap_optimizer:
        raise UserError("zero_optimization.offload_optimizer.device: use cpu")
    if zero.partial_offload != 1.0:
        raise UserError(
            f"zero_optimization.offload_optimizer.ratio = {zero.partial_offload}: use 1"
        )
    if zero.torch_autocast_gradscaler is not None or zero.zenflow:
        raise UserError("torch_autocast with float16, and ZenFlow: not with this optimizer")
    if any(lp is None for lp in zero.fp16_partitioned_groups_flat):
        raise UserError("zero_optimization.offload_param.device = 'nvme': use cpu or none")


def _zero_of(params: Sequence[torch.Tensor]) -> Any:
    """Find DeepSpeed's optimizer of a model from its parameters."""
    zero = next((param._z3_optimizer for param in params if hasattr(param, "_z3_optimizer")), None)
    if zero is None:
        raise UserError(
            "no ZeRO-3 engine has these parameters: this optimizer is for deepspeed.initialize, "
            "elsewhere use SmartOptimizer"
        )
    return zero
