"""`SmartOptimizer`: a torch optimizer whose state lives with devices, and is stepped there."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from shorthaul.errors import UserError

from smart_infinity import kinds, wire
from smart_infinity.array import DeviceArray, StateOptions, plan
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import Compressor, TopK, parse
from smart_infinity.errors import NotFinite
from smart_infinity.flow import Fill, NearStorage
from smart_infinity.layout import BYTES, DEFAULT_TILE, DTYPES, Parameter, Tile
from smart_infinity.shaper import Shaper
from smart_infinity.wire import Kind

_TORCH = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TORCH.items()}
_SKIP = 0xFFFF


class SmartOptimizer(torch.optim.Optimizer):
    """Steps parameters beside the storage that holds their optimizer state.

    Gradients go down to the devices, parameters come up; master parameters and moments never cross
    the link (Smart-Infinity, SmartUpdate). With AdamW, Adam, AdaGrad and SGD in float32 the numbers
    are those of torch's fused CPU kernels, bit for bit.

    Args:
        params: Parameters, named parameters, or groups, as for any torch optimizer.
        devices: One folder a device, on any disks of this machine; or `unix:PATH`,
            `tcp:HOST:PORT` of devices that `smart-infinity device` serves.
        optimizer: adamw, adam, adagrad or sgd; its hyperparameters (`lr`, `betas`, …) are keywords
            with torch's defaults.
        compress: None, `"topk:0.01"` or a `TopK`.
        offload: `step`: gradients stay in `.grad` until `step()`, so that everything that works on
            them works. `backward`: each goes down as soon as it is complete and `.grad` is freed;
            clip with `max_norm`.
        max_norm: Clip gradients to this global norm, as `clip_grad_norm_` does.
        grad_dtype: Type gradients go down in; None: float32, for 16-bit parameters their own.
        moments: float32, bfloat16 or blocks8; of a new state.
        resume: True, False, or None for whichever it is (see `DeviceArray`). On resuming, the
            parameters are set to the state's.
        accumulation_steps: With `offload="backward"`: how many backward passes make a step.
        tile, weights, note_bytes: Of a new state.
        options: How devices work.
        shaper, token, tls: Of the link.

    Raises:
        UserError: Something about the arguments, the folders or the state in them cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        devices: Sequence[str | Path],
        optimizer: str = "adamw",
        compress: str | TopK | None = None,
        offload: str = "step",
        max_norm: float | None = None,
        grad_dtype: str | None = None,
        moments: str = "float32",
        resume: bool | None = None,
        accumulation_steps: int = 1,
        tile: int = DEFAULT_TILE,
        weights: Sequence[float] | None = None,
        note_bytes: int = 1 << 16,
        options: DeviceOptions | None = None,
        shaper: Shaper | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        **hyperparameters: Any,
    ) -> None:
        self.kind = kinds.optimizer(optimizer)
        if offload not in ("step", "backward"):
            raise UserError(f"offload={offload!r}: use step or backward")
        if max_norm is not None and not max_norm > 0:
            raise UserError(f"max_norm={max_norm}: use more than 0")
        if accumulation_steps < 1:
            raise UserError(f"accumulation_steps={accumulation_steps}: use 1 or more")
        if grad_dtype is not None and grad_dtype not in DTYPES:
            raise UserError(f"grad_dtype={grad_dtype!r}: use {', '.join(DTYPES)}")
        self.compress = parse(compress)
        if self.compress is not None and offload == "backward":
            raise UserError("compress with offload='backward': compress at step()")
        self.offload, self.max_norm, self.grad_dtype = offload, max_norm, grad_dtype
        self.accumulation_steps = accumulation_steps
        super().__init__(params, kinds.merged(self.kind, hyperparameters))
        for group in self.param_groups:
            kinds.check(self.kind, group)
        momenta = {bool(self.kind.moments(group)) for group in self.param_groups}
        if len(momenta) > 1:
            raise UserError("groups with and without momentum: give all of them one, or none")
        self._params, self._group_of = self._flatten()
        described = [self._described(i) for i in range(len(self._params))]
        self.array = DeviceArray(
            devices, described, self.kind, momentum=momenta.pop(), options=options,
            state=StateOptions(moments, tile, note_bytes), resume=resume, weights=weights,
            slot_bytes=self._slot_bytes, shaper=shaper, token=token, tls=tls,
        )  # fmt: skip
        self.layout = self.array.layout
        self.steps = [0] * len(self._params)
        self.extra: dict[str, Any] = {}
        """Stored with every step, and back after a resume; anything JSON holds."""
        self.phases: dict[str, float] = {}
        """Seconds of the last step by what they went to."""
        self._active: list[bool] = [False] * len(self._params)
        self._flow = NearStorage(self.array)
        self._compressor: Compressor | None = None
        if self.compress is not None:
            self._compressor = Compressor(self.compress)
        self._gradient = np.zeros(self.layout.tile, np.float32)
        try:
            if self.array.resumed:
                self._restore()
            else:
                self._load_masters()
        except BaseException:
            self.array.kill()
            raise
        if offload == "backward":
            from smart_infinity.offload import Offload

            self._offload: Any = Offload(self)

    # ------------------------------------------------------------------ parameters

    def _flatten(self) -> tuple[list[torch.Tensor], list[int]]:
        params: list[torch.Tensor] = []
        groups: list[int] = []
        for number, group in enumerate(self.param_groups):
            for param in group["params"]:
                params.append(param)
                groups.append(number)
        return params, groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; after construction there is no room for more (UserError)."""
        if hasattr(self, "array"):
            raise UserError("parameters cannot be added: their devices are laid out already")
        super().add_param_group(param_group)

    def _name(self, i: int) -> str:
        group = self.param_groups[self._group_of[i]]
        names = group.get("param_names")
        if names is None:
            return str(i)
        first = self._group_of.index(self._group_of[i])
        return str(names[i - first])

    def _described(self, i: int) -> Parameter:
        param = self._local(self._params[i])
        if param.dtype not in _NAMES:
            raise UserError(
                f"parameter {self._name(i)!r} is {param.dtype}: use float32, bfloat16 or float16"
            )
        return Parameter(self._name(i), tuple(param.shape), _NAMES[param.dtype])

    @staticmethod
    def _local(tensor: torch.Tensor) -> torch.Tensor:
        """Give this rank's shard of a tensor that is sharded (FSDP2), else the tensor."""
        return tensor.to_local() if hasattr(tensor, "to_local") else tensor

    def _slot_bytes(self, tile: int) -> tuple[int, int]:
        down = 4 * tile
        if self.compress is not None:
            down = max(down, self.compress.bytes(tile))
        # READ and WRITE move whole records of floats.
        state = 4 * (1 + len(self.kind.arrays)) * tile
        return max(down, state), state

    def _grad_type(self, tile: Tile) -> str:
        if self.grad_dtype is not None:
            return self.grad_dtype
        return tile.dtype

    # ------------------------------------------------------------------ a step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; parameters are the new ones when it returns.

        What the devices still write then goes on while the next forward pass runs. A step either
        happens on all devices or on none.

        Raises:
            NotFinite: A gradient holds NaN or Inf; parameters and state are as they were.
            Fault: A device failed or is lost.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        begin = time.perf_counter()
        self.array.settle()
        settled = time.perf_counter()
        if self.offload == "backward":
            stepped = self._offload.step()
        else:
            stepped = self._step_from_grads()
        if stepped:
            self.array.commit(self.array.step + 1, self._note())
        self.phases = {
            "settle_s": settled - begin,
            "step_s": time.perf_counter() - settled,
            "total_s": time.perf_counter() - begin,
        }
        return loss

    def _step_from_grads(self) -> bool:
        self._active = [param.grad is not None for param in self._params]
        if not any(self._active):
            return False
        clip = (
            1.0
            if self.max_norm is None
            else self._clip(
                [self._local(param.grad) for param in self._params if param.grad is not None]
            )
        )
        self._begin(clip)
        self._update(self._fill)
        return True

    def _clip(self, gradients: list[torch.Tensor]) -> float:
        """Give what clip_grad_norm_ would multiply by, rounded as it rounds."""
        norms = [torch.linalg.vector_norm(gradient, 2.0) for gradient in gradients]
        return self._clip_from(norms)

    def _clip_from(self, norms: list[torch.Tensor]) -> float:
        assert self.max_norm is not None
        first = norms[0].device
        total = torch.linalg.vector_norm(torch.stack([norm.to(first) for norm in norms]), 2.0)
        self.grad_norm = float(total)
        coefficient = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        return float(coefficient)

    def _begin(self, clip: float) -> None:
        """Tell the devices what this step does to each parameter."""
        numbers: dict[tuple[int, int], int] = {}
        hyper_of = np.full(len(self._params), _SKIP, np.uint16)
        for i, active in enumerate(self._active):
            if active:
                key = (self._group_of[i], self.steps[i] + 1)
                hyper_of[i] = numbers.setdefault(key, len(numbers))
        if len(numbers) >= _SKIP:
            raise UserError(f"{len(numbers)} different settings and step counts: too many")
        settings = [kinds.settings(self.param_groups[group]) for group, _ in numbers]
        body = plan(settings, [step for _, step in numbers], hyper_of, clip=clip)
        self._flow.begin(self.array.step + 1, body)

    def _update(self, fill: Fill | None) -> None:
        """Update all tiles that have a gradient; take everything back when something goes wrong."""
        active = [
            tile
            for tile in self.layout.tiles
            if any(self._active[piece.parameter] for piece in tile.pieces)
        ]
        try:
            self._flow.update(active, fill, self._take)
            if self.array.failure is not None:
                raise self.array.failure
            if self._flow.not_finite:
                raise self._not_finite_error(self._flow.not_finite[0])
        except BaseException:
            self._undo(active)
            raise
        for i, active_now in enumerate(self._active):
            self.steps[i] += active_now

    def _fill(self, tile: Tile, area: memoryview) -> tuple[int, int]:
        """Put a tile's gradient into a slot: its bytes, and the flags that say what they are."""
        whole = all(self._active[piece.parameter] for piece in tile.pieces)
        compressor = self._compressor
        if compressor is not None and whole and self.array.step >= compressor.topk.warmup:
            gradient = self._gradient[: tile.elements]
            gradient[:] = 0
            self._copy_gradient(tile, torch.from_numpy(gradient))
            values = DTYPES.index(compressor.topk.values)
            try:
                return compressor.encode(tile, gradient, area), wire.TOPK | values
            except NotFinite:
                raise self._not_finite_error(tile) from None
        name = self._grad_type(tile)
        into = torch.frombuffer(area, dtype=_TORCH[name], count=tile.elements)
        self._copy_gradient(tile, into)
        return tile.elements * BYTES[name], DTYPES.index(name)

    def _copy_gradient(self, tile: Tile, into: torch.Tensor) -> None:
        for piece in tile.pieces:
            gradient = self._params[piece.parameter].grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                raise UserError(f"parameter {self._name(piece.parameter)!r} has a sparse gradient")
            flat = self._local(gradient).reshape(-1)
            length = piece.end - piece.begin
            into[piece.begin : piece.end].copy_(flat[piece.element : piece.element + length])

    def _take(self, tile: Tile, area: memoryview) -> None:
        """On a device's receiving thread: a tile's parameters have come up."""
        self._scatter(tile, area, tile.dtype)

    @torch.no_grad()
    def _scatter(self, tile: Tile, area: memoryview, dtype: str, everything: bool = False) -> None:
        """Copy a tile's parameters, in `dtype`, into the model's."""
        values = torch.frombuffer(area, dtype=_TORCH[dtype], count=tile.elements)
        for piece in tile.pieces:
            if not everything and not self._active[piece.parameter]:
                continue
            param = self._local(self._params[piece.parameter]).detach()
            part = values[piece.begin : piece.end]
            if param.is_contiguous():
                flat = param.view(-1)
                flat[piece.element : piece.element + len(part)].copy_(part)
            else:
                flat = param.reshape(-1).clone()
                flat[piece.element : piece.element + len(part)].copy_(part)
                param.copy_(flat.view_as(param))

    def _not_finite_error(self, tile: Tile) -> NotFinite:
        names = [
            self._name(piece.parameter)
            for piece in tile.pieces
            if (grad := self._params[piece.parameter].grad) is not None
            and not torch.isfinite(self._local(grad)).all()
        ] or [self._name(tile.pieces[0].parameter)]
        return NotFinite(
            f"the gradient of {names[0]!r} holds NaN or Inf: no parameter was changed; "
            "scale the loss down, clip, or skip the batch"
        )

    def _undo(self, tiles: Iterable[Tile]) -> None:
        """Back to the step before: devices forget, parameters that came up are fetched again."""
        if self.array.lost() is not None:
            return
        with contextlib.suppress(Exception):
            self.array.abandon()
            for tile, area in self.read_tiles(tiles, mask=1):
                self._scatter(tile, area, "float32", everything=True)

    # ------------------------------------------------------------------ state

    def _note(self) -> dict[str, Any]:
        same = len(set(self.steps)) == 1
        return {"steps": self.steps[0] if same else list(self.steps), "extra": self.extra}

    def read_tiles(self, tiles: Iterable[Tile], *, mask: int) -> Iterator[tuple[Tile, memoryview]]:
        """Read arrays of tiles from their devices, as float32, one after the other.

        `mask` has bit 0 for parameters, 1 and 2 for the moments. An area is good until the next.
        """
        flags = wire.DECODED | mask << wire.MASK_SHIFT
        for tile in tiles:
            device = self.array.devices[tile.device]
            device.on_answer = None
            slot = device.acquire()
            device.submit(Kind.READ, slot, tile.index, flags=flags)
            device.wait_idle()
            if device.failure is not None:
                raise device.failure
            assert device.slots is not None
            yield tile, device.slots.up(slot)

    def write_tiles(
        self, tiles: Iterable[Tile], fill: Callable[[Tile, npt.NDArray[np.float32]], None], *,
        mask: int,
    ) -> None:  # fmt: skip
        """Write arrays of tiles; `fill` is given each tile's floats [arrays, elements] to set."""
        arrays = bin(mask).count("1")
        for tile in tiles:
            device = self.array.devices[tile.device]
            device.on_answer = None
            slot = device.acquire()
            assert device.slots is not None
            length = 4 * arrays * tile.elements
            floats = np.frombuffer(device.slots.down(slot)[:length], np.float32)
            fill(tile, floats.reshape(arrays, tile.elements))
            flags = wire.DECODED | mask << wire.MASK_SHIFT
            device.submit(Kind.WRITE, slot, tile.index, length, flags)
        self.array.wait_idle()
        if self.array.failure is not None:
            raise self.array.failure

    @torch.no_grad()
    def _load_masters(self) -> None:
        """Give the devices the model's parameters, and commit them as step 0."""

        def fill(tile: Tile, floats: npt.NDArray[np.float32]) -> None:
            floats[:] = 0
            into = torch.from_numpy(floats[0])
            for piece in tile.pieces:
                flat = self._local(self._params[piece.parameter]).detach().reshape(-1)
                length = piece.end - piece.begin
                part = flat[piece.element : piece.element + length]
                into[piece.begin : piece.end].copy_(part)

        self.write_tiles(self.layout.tiles, fill, mask=1)
        self.array.commit(0, self._note(), wait=True)

    @torch.no_grad()
    def _restore(self) -> None:
        """Set the model's parameters and the step counts to the state's."""
        note = self.array.note
        steps = note.get("steps", 0)
        self.steps = list(steps) if isinstance(steps, list) else [steps] * len(self._params)
        self.extra = note.get("extra", {})
        for tile, area in self.read_tiles(self.layout.tiles, mask=1):
            self._scatter(tile, area, "float32", everything=True)

    def state_dict(self) -> dict[str, Any]:
        """Give everything in torch's form: `step`, moments and, of 16-bit parameters, `master`.

        It holds all of the state in memory; the devices' folders are the cheaper checkpoint.
        """
        self.array.settle()
        packed = super().state_dict()
        state: dict[int, dict[str, torch.Tensor]] = {}
        moments = self.kind.arrays if self.array.momentum else ()
        for i, param in enumerate(self._params):
            local = self._local(param)
            state[i] = {"step": torch.tensor(float(self.steps[i]))}
            names = (*moments, *(["master"] if local.dtype != torch.float32 else []))
            for name in names:
                state[i][name] = torch.empty(local.shape, dtype=torch.float32)
        mask = (1 << self.array.arrays) - 1
        for tile, area in self.read_tiles(self.layout.tiles, mask=mask):
            count = self.array.arrays * tile.elements
            rows = torch.frombuffer(area, dtype=torch.float32, count=count)
            rows = rows.view(self.array.arrays, tile.elements)
            for piece in tile.pieces:
                length = piece.end - piece.begin
                for row, name in enumerate(("master", *moments)):
                    if name in state[piece.parameter]:
                        flat = state[piece.parameter][name].view(-1)
                        flat[piece.element : piece.element + length] = rows[
                            row, piece.begin : piece.end
                        ]
        packed["state"] = state
        packed["extra"] = self.extra
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, or a torch optimizer of the same kind; durable on return.

        Parameters in float32 are taken from the model, as with torch.

        Raises:
            UserError: It is of other parameters, or lacks a moment.
        """
        self.array.settle()
        state = state_dict["state"]
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise UserError("the state_dict has other parameter groups than this optimizer")
        moments = self.kind.arrays if self.array.momentum else ()
        numbers = [i for group in groups for i in group["params"]]
        found = [state.get(i, {}) for i in numbers]
        for i, one in enumerate(found):
            shape = self._local(self._params[i]).shape
            for name in (*moments, "master"):
                if name in one and one[name] is not None and one[name].shape != shape:
                    raise UserError(
                        f"{name} of parameter {self._name(i)!r} is {list(one[name].shape)}, the "
                        f"parameter {list(shape)}"
                    )

        def fill(tile: Tile, floats: npt.NDArray[np.float32]) -> None:
            floats[:] = 0
            rows = torch.from_numpy(floats)
            for piece in tile.pieces:
                one = found[piece.parameter]
                length = piece.end - piece.begin
                for row, name in enumerate(("master", *moments)):
                    value = one.get(name)
                    if value is None and row == 0:
                        value = self._local(self._params[piece.parameter]).detach()
                    if value is None:
                        continue  # torch keeps no moments before the first step
                    flat = value.reshape(-1)[piece.element : piece.element + length]
                    rows[row, piece.begin : piece.end].copy_(flat)

        self.write_tiles(self.layout.tiles, fill, mask=(1 << self.array.arrays) - 1)
        self.steps = [int(one.get("step", 0)) for one in found]
        self.extra = state_dict.get("extra", {})
        for group, stored in zip(self.param_groups, groups, strict=True):
            group.update({key: value for key, value in stored.items() if key != "params"})
        self.array.commit(max(self.steps, default=0), self._note(), wait=True)

    # ------------------------------------------------------------------ end

    def flush(self) -> None:
        """Wait until the last step is durable on every device."""
        self.array.settle()

    def close(self) -> None:
        """Make the last step durable and end the devices; the optimizer is of no use after."""
        self.array.close()

    def __enter__(self) -> SmartOptimizer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
