"""`SmartOptimizer`: a torch optimizer whose state lives with devices, and is stepped there."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from shorthaul.errors import UserError

from smart_infinity import distributed, kinds, portable, tile_records, wire
from smart_infinity.array import DeviceArray, StateOptions, plan
from smart_infinity.changes import Changes
from smart_infinity.client import DeviceOptions
from smart_infinity.compress import Compressor, TopK, parse
from smart_infinity.errors import NotFinite
from smart_infinity.flow import Fill, NearStorage
from smart_infinity.layout import BYTES, DEFAULT_TILE, DTYPES, Tile
from smart_infinity.offload import Offload
from smart_infinity.parameters import TYPES, Parameters
from smart_infinity.shaper import Shaper
from smart_infinity.speculation import Speculation

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
        speculate: With `offload="step"`: step tiles while the backward pass still runs, in the hope
            that nothing is clipped or changed before `step()`; what was hoped in vain is taken
            back, and the step is the same. It takes the room of the parameters once more.
        resume: True, False, or None for whichever it is (see `DeviceArray`). On resuming, the
            parameters are set to the state's.
        accumulation_steps: With `offload="backward"` or `speculate`: how many backward passes make
            a step.
        tile, note_bytes: Of a new state.
        weights: Of a new state: each device's share of the parameters. None: equal shares;
            `"measured"`: by the devices' speeds, so that all are done at the same time however
            different their disks are. Measuring writes and reads a few hundred megabytes a device.
        apart: No two parameters share a tile, so that each can be stepped by itself.
        process_group: Ranks that train one model together. With whole parameters on each (DDP),
            every rank keeps the state of a share of them on its own devices and gets the others'
            new ones from them (ZeRO-1); sharded ones (FSDP2) are each rank's own, and their group
            need not be given. See docs/training.md.
        options: How devices work; a sequence has one for each.
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
        speculate: bool = False,
        resume: bool | None = None,
        accumulation_steps: int = 1,
        tile: int = DEFAULT_TILE,
        weights: Sequence[float] | Literal["measured"] | None = None,
        note_bytes: int = 1 << 16,
        apart: bool = False,
        process_group: Any = None,
        options: DeviceOptions | Sequence[DeviceOptions] | None = None,
        shaper: Shaper | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        **hyperparameters: Any,
    ) -> None:
        self.kind = kinds.optimizer(optimizer)
        if offload not in ("step", "backward"):
            raise UserError(f"offload={offload!r}: use step or backward")
        if max_norm is not None and not (isinstance(max_norm, (int, float)) and max_norm > 0):
            raise UserError(f"max_norm={max_norm!r}: use more than 0")
        if not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise UserError(f"accumulation_steps={accumulation_steps!r}: use 1 or more")
        if grad_dtype is not None and grad_dtype not in DTYPES:
            raise UserError(f"grad_dtype={grad_dtype!r}: use {', '.join(DTYPES)}")
        self.compress = parse(compress)
        self.compressor = None if self.compress is None else Compressor(self.compress)
        if self.compress is not None and offload == "backward":
            raise UserError("compress with offload='backward': compress at step()")
        if speculate and (self.compress is not None or offload == "backward"):
            other = "compress" if self.compress is not None else "offload='backward'"
            raise UserError(f"speculate with {other}: what went down cannot be sent again")
        self.offload, self.max_norm, self.grad_dtype = offload, max_norm, grad_dtype
        self.accumulation_steps = accumulation_steps
        super().__init__(params, kinds.merged(self.kind, hyperparameters))
        for group in self.param_groups:
            kinds.check(self.kind, group)
        momenta = {bool(self.kind.moments(group)) for group in self.param_groups}
        if len(momenta) > 1:
            raise UserError("groups with and without momentum: give all of them one, or none")
        self.parameters = Parameters(self.param_groups)
        self.ranks = self._find_ranks(process_group)
        if self.ranks is not None and offload == "backward":
            raise UserError(
                "offload='backward' on several ranks: gradients would go down before they are "
                "averaged; use offload='step'"
            )
        if self.ranks is not None and speculate:
            raise UserError(
                "speculate on several ranks: gradients would go down before they are averaged"
            )
        self.array = DeviceArray(
            devices, self.parameters.described(), self.kind, momentum=momenta.pop(),
            options=options, state=StateOptions(moments, tile, note_bytes, apart), resume=resume,
            weights=weights, slot_bytes=self._slot_bytes, shaper=shaper, token=token, tls=tls,
            ranks=self.ranks,
        )  # fmt: skip
        # A program that just ends, or forgets the optimizer, has its last step committed.
        self._finalizer = weakref.finalize(self, _end, self.array)
        self.layout = self.array.layout
        self.steps = [0] * len(self.parameters)
        self.extra: dict[str, Any] = {}
        """Stored with every step, and back after a resume; anything JSON holds."""
        self.phases: dict[str, float] = {}
        """Seconds of the last step by what they went to."""
        self._active: list[bool] = [False] * len(self.parameters)
        self._flow = NearStorage(self.array)
        self._changes = Changes(self.parameters, self.array)
        self._one = threading.RLock()  # who steps, or reads or writes the state
        self._gradient = np.zeros(self.layout.tile, np.float32)
        self._scale = 1.0  # that gradients are multiplied by on the host
        try:
            if self.array.resumed:
                self._restore()
            else:
                self._load_masters()
            self._offload = Offload(self) if offload == "backward" else None
            self.speculation = Speculation(self) if speculate else None
        except BaseException:
            self.array.kill()
            raise
        self._changes.settled()
        self._hooks = [one.hooks for one in (self._offload, self.speculation) if one is not None]
        for hooks in self._hooks:
            weakref.finalize(self, hooks.remove)

    # ------------------------------------------------------------------ parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; after construction there is no room for more (UserError)."""
        if hasattr(self, "array"):
            raise UserError("parameters cannot be added: their devices are laid out already")
        super().add_param_group(param_group)

    def _find_ranks(self, process_group: Any) -> distributed.Ranks | None:
        return distributed.ranks_of(process_group, self.parameters.tensors)

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
            UserError: The optimizer is closed or another process's, a setting is none, `extra` is
                not JSON or too long.
        """
        self.array.check_usable()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._one:
            begin = time.perf_counter()
            self.array.settle()
            settled = time.perf_counter()
            self.array.check_note(self._note())
            if self._offload is not None:
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
        self._active = [param.grad is not None for param in self.parameters.tensors]
        if self.ranks is not None:
            active = json.dumps([self.array.step, self._active]).encode()
            self.ranks.same("the step they are at or the gradients they have", zlib.crc32(active))
        if not any(self._active):
            self._forget()
            return False
        clip = 1.0
        if self.max_norm is not None:
            clip = self._clip(
                [param.grad for param in self.parameters.tensors if param.grad is not None]
            )
        self._scale = 1.0
        if self.compress is not None and self.compress.error_feedback and self._compresses():
            # What is left over is owed as it was clipped in its own step, not in a later one.
            self._scale, clip = clip, 1.0
        if self.speculation is not None and self.speculation.stands(self._plan(clip)):
            self._update(self._fill, self.speculation.finish)
        else:
            self._begin(clip)
            self._update(self._fill)
        return True

    def _forget(self) -> None:
        """Take back what was stepped ahead."""
        if self.speculation is not None:
            self.speculation.forget()

    def _compresses(self) -> bool:
        """Tell whether this step's gradients are compressed: there is a way to, and it is time."""
        return self.compress is not None and self.array.step >= self.compress.warmup

    def _clip(self, gradients: list[torch.Tensor]) -> float:
        """Give what clip_grad_norm_ would multiply by, rounded as it rounds."""
        norms = [torch.linalg.vector_norm(gradient, 2.0) for gradient in gradients]
        # Of a sharded gradient, over the shards of all ranks.
        whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
        return self._clip_from(whole)

    def _clip_from(self, norms: list[torch.Tensor]) -> float:
        assert self.max_norm is not None
        first = norms[0].device
        total = torch.linalg.vector_norm(torch.stack([norm.to(first) for norm in norms]), 2.0)
        self.grad_norm = float(total)
        coefficient = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        return float(coefficient)

    def _begin(self, clip: float) -> None:
        """Tell the devices what this step does to each parameter."""
        body = self._plan(clip)
        self._take_changes()
        self._flow.begin(self.array.step + 1, body)

    def _plan(self, clip: float) -> dict[str, Any]:
        """Give STEP's body."""
        numbers: dict[tuple[int, int], int] = {}
        hyper_of = np.full(len(self.parameters), _SKIP, np.uint16)
        for i, active in enumerate(self._active):
            if active:
                key = (self.parameters.group_of[i], self.steps[i] + 1)
                hyper_of[i] = numbers.setdefault(key, len(numbers))
        if len(numbers) >= _SKIP:
            raise UserError(f"{len(numbers)} different settings and step counts: too many")
        settings = [kinds.settings(self.param_groups[group]) for group, _ in numbers]
        if self.compress is not None and self.compress.momentum and self._compresses():
            for one in settings:  # what is sent is a momentum already
                one.update(kinds.WITHOUT_MOMENTUM[self.kind.name])
        return plan(settings, [step for _, step in numbers], hyper_of, clip=clip)

    def _take_changes(self) -> None:
        self._changes.take()

    def _update(
        self, fill: Fill | None, work: Callable[[Sequence[Tile]], None] | None = None
    ) -> None:
        """Update all tiles that have a gradient; take everything back when something goes wrong.

        `work` does it in another way than all at once.
        """
        active = [
            tile
            for tile in self.layout.tiles
            if any(self._active[piece.parameter] for piece in tile.pieces)
        ]
        try:
            with self.array.together():
                if work is not None:
                    work(active)
                else:
                    self._flow.update(active, fill, self._take)
                if self.array.failure is not None:
                    raise self.array.failure
                if self._flow.not_finite:
                    raise self.parameters.not_finite(self._flow.not_finite[0])
            self._hand_round()
        except BaseException:
            self._undo(active)
            raise
        self._changes.settled()
        for i, active_now in enumerate(self._active):
            self.steps[i] += active_now

    def _fill(self, tile: Tile, area: memoryview) -> tuple[int, int]:
        """Put a tile's gradient into a slot: its bytes, and the flags that say what they are."""
        whole = all(self._active[piece.parameter] for piece in tile.pieces)
        if self.compressor is not None and self._compresses() and whole:
            gradient = self._gradient[: tile.elements]
            gradient[:] = 0
            self._gather_gradient(tile, torch.from_numpy(gradient))
            values = DTYPES.index(self.compressor.topk.values)
            try:
                return self.compressor.encode(tile, gradient, area), wire.TOPK | values
            except NotFinite:
                raise self.parameters.not_finite(tile) from None
        name = self._grad_type(tile)
        into = torch.frombuffer(area, dtype=TYPES[name], count=tile.elements)
        self._gather_gradient(tile, into)
        return tile.elements * BYTES[name], DTYPES.index(name)

    def _gather_gradient(self, tile: Tile, into: torch.Tensor) -> None:
        self.parameters.gather_gradient(tile, into)
        if self._scale != 1.0:
            into *= self._scale

    @torch.no_grad()
    def _take(self, tile: Tile, area: memoryview) -> None:
        """On a device's receiving thread: a tile's parameters have come up."""
        self.parameters.scatter(tile, area, tile.dtype, self._active.__getitem__)

    def _hand_round(self, everything: bool = False) -> None:
        """Give other ranks the new parameters of this one's share, and take theirs (ZeRO-1)."""
        if self.ranks is None or self.ranks.sharded:
            return

        changed = None if everything else self._active.__getitem__

        def wanted(tile: Tile) -> bool:
            return changed is None or any(changed(piece.parameter) for piece in tile.pieces)

        @torch.no_grad()
        def write(tile: Tile, values: torch.Tensor) -> None:
            area = values.view(torch.uint8).numpy().data
            self.parameters.scatter(tile, area, tile.dtype, changed)

        rounds = distributed.rounds(self.array.whole, self.array.firsts, wanted)
        self.ranks.spread(rounds, TYPES, self.parameters.gather, write)

    def _undo(self, tiles: Iterable[Tile]) -> None:
        """Back to the step before: devices forget, parameters that came up are fetched again."""
        if self.array.lost() is not None:
            return
        with contextlib.suppress(Exception):
            self.array.abandon()
            self._fetch(tiles)
            self._changes.restore()

    @torch.no_grad()
    def _fetch(self, tiles: Iterable[Tile]) -> None:
        """Set the model's parameters to the devices'."""
        for tile, area in tile_records.read(self.array, tiles, mask=1):
            self.parameters.scatter(tile, area, "float32")

    # ------------------------------------------------------------------ state

    @property
    def moments(self) -> tuple[str, ...]:
        """Torch's names of what is stored beside the parameters, in order."""
        return self.kind.arrays if self.array.momentum else ()

    def _note(self) -> dict[str, Any]:
        same = len(set(self.steps)) == 1
        return {"steps": self.steps[0] if same else list(self.steps), "extra": self.extra}

    @torch.no_grad()
    def _load_masters(self, step: int = 0) -> None:
        """Give the devices the model's parameters, and commit them as a step."""

        def fill(tile: Tile, floats: npt.NDArray[np.float32]) -> None:
            floats[:] = 0
            self.parameters.gather(tile, torch.from_numpy(floats[0]))

        # Ranks that hold the same parameters may have begun with different ones.
        self._hand_round(everything=True)
        tile_records.write(self.array, self.layout.tiles, fill, mask=1)
        self.array.commit(step, self._note(), wait=True)

    @torch.no_grad()
    def _restore(self) -> None:
        """Set the model's parameters and the step counts to the state's."""
        note = self.array.note
        steps = note.get("steps", 0)
        self.steps = list(steps) if isinstance(steps, list) else [steps] * len(self.parameters)
        self.extra = note.get("extra", {})
        self._fetch(self.layout.tiles)
        self._hand_round(everything=True)

    def state_dict(self) -> dict[str, Any]:
        """Give everything in torch's form: `step`, moments and, of 16-bit parameters, `master`.

        It holds all of the state in memory; the devices' folders are the cheaper checkpoint. Of
        several ranks, each gives its own: of sharded parameters sharded tensors, else the elements
        of its share among zeros (`distributed.whole_state_dict` puts them together).
        """
        self.array.check_usable()
        with self._one:
            self.array.settle()
            self._forget()
            packed = super().state_dict() | {"state": portable.pack(self), "extra": self.extra}
        if self.ranks is not None and not self.ranks.sharded:
            packed["share"] = [self.ranks.rank, self.ranks.size]
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, or a torch optimizer of the same kind; durable on return.

        Parameters in float32 are taken from the model, as with torch.

        Raises:
            UserError: It is of other parameters, of another optimizer, or another rank's share.
        """
        self.array.check_usable()
        with self._one:
            self.array.settle()
            self._forget()
            portable.unpack(self, state_dict)
            self.array.commit(max(self.steps, default=0), self._note(), wait=True)
            self._changes.settled()

    def take_parameters(self) -> None:
        """Say that the model's parameters may have been changed in a way torch does not count.

        The next step begins with what they are then. Writing to a parameter itself (`copy_`,
        `load_state_dict`) is noticed without this, writing to its `.data` is not.
        """
        self._changes.expect()

    # ------------------------------------------------------------------ end

    def flush(self) -> None:
        """Wait until the last step is durable on every device."""
        self.array.check_usable()
        self.array.settle()

    def close(self) -> None:
        """Make the last step durable and end the devices; the optimizer is of no use after."""
        self._finalizer.detach()
        for hooks in self._hooks:
            hooks.remove()
        self.array.close()

    def __enter__(self) -> SmartOptimizer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _end(array: DeviceArray) -> None:
    with contextlib.suppress(Exception):  # nobody is left to be told
        array.close()
