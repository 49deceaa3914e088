"""All devices of a host as one: opened, brought to one step, stepped and committed together."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from shorthaul import logs
from shorthaul.errors import Fault, UserError

from smart_infinity import layout as layouts
from smart_infinity.client import Device, DeviceOptions, description_of
from smart_infinity.committer import Committer
from smart_infinity.errors import Corrupt, DeviceLost
from smart_infinity.kinds import MOMENTS, Optimizer
from smart_infinity.layout import Parameter
from smart_infinity.shaper import Shaper
from smart_infinity.wire import Kind

if TYPE_CHECKING:
    from smart_infinity.distributed import Ranks

_log = logs.get(__name__)


@dataclass(frozen=True)
class StateOptions:
    """What is stored, fixed when a state is made.

    Attributes:
        moments: How moments are stored: float32, bfloat16 or blocks8 (8 bits, blocks of 256).
        tile: Elements of a tile.
        note_bytes: Room for what the host stores with each step.
        apart: Every parameter begins a tile of its own, so that it can be stepped by itself.
    """

    moments: str = "float32"
    tile: int = layouts.DEFAULT_TILE
    note_bytes: int = 1 << 16
    apart: bool = False

    def __post_init__(self) -> None:
        if self.moments not in MOMENTS:
            raise UserError(f"moments={self.moments!r}: use {', '.join(MOMENTS)}")


class DeviceArray:
    """Devices and the layout over them; a step is theirs together or nobody's.

    Args:
        addresses: Of the devices, see `Device`.
        parameters: Of the model, in order.
        kind: Optimizer, and `momentum` whether it keeps moments at all (SGD).
        options: How devices work; a sequence has one for each.
        state: What a new state is like; an existing one keeps its own.
        resume: True: there must be a state; False: there must be none; None: either.
        weights: Share of each device in a new state; None: equal shares; `"measured"`: by their
            speeds, each measured alone with a few hundred megabytes (`rates.device_speed`).
        ranks: Others that step with this one, each with an array of its own. Where all of them hold
            the same parameters, `whole` is the layout over all their devices, `firsts` the number
            of each rank's first one, and `layout` this rank's part.
    """

    def __init__(
        self,
        addresses: Sequence[str | Path],
        parameters: Sequence[Parameter],
        kind: Optimizer,
        *,
        momentum: bool = True,
        options: DeviceOptions | Sequence[DeviceOptions] | None = None,
        state: StateOptions | None = None,
        resume: bool | None = None,
        weights: Sequence[float] | Literal["measured"] | None = None,
        slot_bytes: Callable[[int], tuple[int, int]] | None = None,
        shaper: Shaper | None = None,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        _check_addresses(addresses)
        self.kind, self.momentum, self.ranks = kind, momentum, ranks
        self.options = _each(options, len(addresses))
        self.devices: list[Device] = []
        self._committer = Committer()
        self._not_committed: BaseException | None = None  # why the last step was not
        self._owner = os.getpid()
        self._closed = False
        try:
            with self.together():
                # All start, then all are greeted.
                for address, own in zip(addresses, self.options, strict=True):
                    self.devices.append(Device(address, own, shaper=shaper, tls=tls))
                for device in self.devices:
                    device.greet(token)
            self._open(parameters, state or StateOptions(), resume, weights, slot_bytes)
        except BaseException:
            self.kill()
            raise

    # ------------------------------------------------------------------ opening

    def together(self) -> contextlib.AbstractContextManager[None]:
        """A block whose error on any rank is raised on all."""
        return contextlib.nullcontext() if self.ranks is None else self.ranks.together()

    def _gather(self, value: Any) -> list[Any]:
        """Give every rank's value."""
        return [value] if self.ranks is None else self.ranks.gather(value)

    def _open(
        self,
        parameters: Sequence[Parameter],
        state: StateOptions,
        resume: bool | None,
        weights: Sequence[float] | Literal["measured"] | None,
        slot_bytes: Callable[[int], tuple[int, int]] | None,
    ) -> None:
        with self.together():
            self.resumed = self._holds(resume)
            shares = self._shares(weights)
            if len(shares) != len(self.devices):
                raise UserError(f"{len(shares)} weights for {len(self.devices)} devices")
        holding = self._gather(self.resumed)
        if len(set(holding)) > 1:
            raise UserError(
                f"rank {holding.index(False)} holds no state, rank {holding.index(True)} does: "
                "give every rank the folders it made, or only new ones"
            )
        self.firsts = [0]
        if self.ranks is not None and not self.ranks.sharded:
            every = self._gather(shares)
            self.firsts = [sum(map(len, every[:rank])) for rank in range(self.ranks.size)]
            shares = [weight for one in every for weight in one]
        if weights == "measured":  # speeds so far
            shares = weights_by_speed(shares)
        with self.together():
            if self.resumed:
                self._adopt(parameters, state, shares)
            else:
                self._create(parameters, state, shares)
        if self.resumed:
            self._reconcile()
        moments = len(self.kind.arrays) if self.momentum else 0
        self.arrays = 1 + moments
        down, up = (slot_bytes or _plain_slots)(self.layout.tile)
        with self.together():
            for d, device in enumerate(self.devices):
                device.open(self.layout.segments(d), down, up)
            self._align_steps()

    def _shares(self, weights: Sequence[float] | Literal["measured"] | None) -> list[float]:
        if weights is None or (weights == "measured" and self.resumed):
            return [1.0] * len(self.devices)
        if weights == "measured":
            from smart_infinity.rates import device_speeds

            return device_speeds([device.address for device in self.devices], self.options)
        if isinstance(weights, str):
            raise UserError(f"weights={weights!r}: use numbers, or 'measured'")
        return list(weights)

    def _holds(self, resume: bool | None) -> bool:
        """Tell whether the devices hold a state; a UserError where that is not as wanted."""
        self._cut_off = self._never_made()
        if self._cut_off:
            if resume:
                raise UserError(
                    f"{self.devices[0].address} holds no state to resume: the making of one was "
                    "cut off"
                )
            return False
        held = [device for device in self.devices if device.state is not None]
        if held and len(held) < len(self.devices):
            empty = next(device for device in self.devices if device.state is None)
            raise UserError(
                f"{empty.address} holds no state, {held[0].address} does: give all devices of a "
                "state, or only new folders"
            )
        if resume is True and not held:
            raise UserError(f"{self.devices[0].address} holds no state to resume")
        if resume is False and held:
            raise UserError(
                f"{held[0].address} holds a state already: resume it, or give a new folder"
            )
        return bool(held)

    def _never_made(self) -> bool:
        """Tell whether somebody began to make a state here and was killed before it had numbers.

        The first commit brings a note with it. Until all devices have made it, none can have gone
        further than step 0, and nothing has been trained.
        """
        states = [device.state for device in self.devices]
        bare = any(s is not None and s["step"] == 0 and not s["note"] for s in states)
        return bare and all(s is None or s["step"] == 0 for s in states)

    @property
    def _first(self) -> int:
        """Number of this rank's first device among those of all ranks that share a state."""
        return 0 if self.ranks is None or self.ranks.sharded else self.firsts[self.ranks.rank]

    def _lay_out(
        self, parameters: Sequence[Parameter], state: StateOptions, weights: Sequence[float]
    ) -> None:
        self.whole = self.layout = layouts.build(
            parameters, tile=state.tile, weights=weights, align=self._align(state)
        )
        if len(weights) > len(self.devices):
            self.layout = layouts.share(self.whole, self._first, len(self.devices))

    def _identity(
        self, device: int, state: StateOptions, weights: Sequence[float]
    ) -> dict[str, Any]:
        return {
            "optimizer": self.kind.name, "momentum": self.momentum, "moments": state.moments,
            "note_bytes": state.note_bytes, "weights": list(weights),
            "devices": self.whole.devices, "device": self._first + device,
            "align": self._align(state),
            "ranks": 1 if self.ranks is None else self.ranks.size,
            "rank": 0 if self.ranks is None else self.ranks.rank,
        }  # fmt: skip

    def _align(self, state: StateOptions) -> int:
        if state.apart:
            return state.tile
        return layouts.BLOCK if state.moments == "blocks8" else 1

    def _create(
        self, parameters: Sequence[Parameter], state: StateOptions, shares: list[float]
    ) -> None:
        state = replace(state, note_bytes=state.note_bytes + 24 * len(parameters))
        self.state = state
        self._lay_out(parameters, state, shares)
        self.step = 0
        self.note: dict[str, Any] = {}
        self.weights = shares
        for d, device in enumerate(self.devices):
            shape = {
                "kind": self.kind.name, "momentum": self.momentum, "moments": state.moments,
                "tile": state.tile, "elements": self.layout.tile_elements(d).tolist(),
            }  # fmt: skip
            description = layouts.describe(self.layout, **self._identity(d, state, shares))
            device.create(shape, description, state.note_bytes, replace=self._cut_off)

    def _adopt(
        self, parameters: Sequence[Parameter], asked: StateOptions, shares: list[float]
    ) -> None:
        """Take the state that is there, if it is this model's."""
        first = description_of(self.devices[0])
        state = StateOptions(first["moments"], first["tile"], first["note_bytes"], asked.apart)
        if asked.moments != state.moments:
            _log.warning(
                "%s has moments in %s, as it was made; moments=%r is for new folders",
                self.devices[0].address, state.moments, asked.moments,
            )  # fmt: skip
        self.state, self.weights = state, first["weights"]
        same = len(self.weights) == len(shares)
        self._lay_out(parameters, state, self.weights if same else shares)
        for d, device in enumerate(self.devices):
            wanted = json.loads(
                layouts.describe(self.layout, **self._identity(d, state, first["weights"]))
            )
            layouts.compare(description_of(device), wanted, device.address)

    def _states(self) -> list[dict[str, Any]]:
        return [device.state or {} for device in self.devices]

    def _reconcile(self) -> None:
        """Find the step that all devices can be at; those ahead by one go back when opened.

        A device commits a step only when all have it on disk, and begins the next only when all
        have committed: they are at most one step apart, and who is ahead still has the step before.
        """
        states = self._states()
        self.step = min(self._gather(min(int(state["step"]) for state in states)))
        self._behind = [state["step"] != self.step for state in states]
        with self.together():
            for device, state in zip(self.devices, states, strict=True):
                if self.step not in (state["step"], state["previous_step"]):
                    raise Corrupt(
                        f"{device.address} is at step {state['step']}, others at {self.step}, and "
                        f"it has no step {self.step} to go back to: see smart-infinity repair"
                    )
        # Of a device that is at that step, not of one that is still ahead of it.
        notes = [state["note"] for state in states if state["step"] == self.step]
        self.note = json.loads(next(note for some in self._gather(notes) for note in some) or "{}")

    def _align_steps(self) -> None:
        """Take devices that are a step ahead back."""
        if not self.resumed:
            return
        for device, ahead in zip(self.devices, self._behind, strict=True):
            if ahead:
                device.command(Kind.ROLLBACK, Kind.DONE)
                device.welcome["state"]["step"] = self.step

    # ------------------------------------------------------------------ steps

    def check_usable(self) -> None:
        """Raise UserError when these devices are closed, behind, or another process's (a fork)."""
        if os.getpid() != self._owner:
            raise UserError(
                f"the devices are those of process {self._owner}, which this one was forked from: "
                "step there, or make an optimizer of its own here"
            )
        if self._not_committed is not None:
            raise UserError(
                "the step before was not committed, and the model is ahead of its devices "
                f"({self._not_committed}): make a new optimizer, it goes on from the folders"
            )
        if self._closed:
            raise UserError("the optimizer is closed: make a new one, it goes on from the folders")

    def begin(self, step: int, plan: dict[str, Any]) -> None:
        """Tell every device what the coming updates do; `plan` is STEP's body, see `plan`."""
        for device in self.devices:
            device.send(Kind.STEP, plan, arg=step)
        for device in self.devices:
            device.answer(Kind.DONE)

    def wait_idle(self) -> None:
        """Wait for every answer of every device; a device's failure is not raised here."""
        for device in self.devices:
            device.wait_idle()

    @property
    def failure(self) -> Exception | None:
        """The first failure of any device."""
        return next((d.failure for d in self.devices if d.failure is not None), None)

    def commit(self, step: int, note: dict[str, Any], *, wait: bool = False) -> None:
        """Make the step's outcome durable everywhere, then current everywhere.

        It goes on behind the caller's back unless `wait`; `settle` waits for it.
        """
        self.settle()
        text = self.check_note(note)

        def everywhere(kind: Kind, answer: Kind, body: dict[str, Any] | None = None) -> None:
            error: Exception | None = None
            try:
                for device in self.devices:
                    device.send(kind, body, arg=step)
                for device in self.devices:
                    device.answer(answer)
            except Exception as raised:
                error = raised
            if self.ranks is not None:
                self.ranks.agree(error, committing=True)
            elif error is not None:
                raise error

        def work() -> None:
            everywhere(Kind.PREPARE, Kind.PREPARED, {"note": text})
            everywhere(Kind.COMMIT, Kind.DONE)

        self.pending = (step, note)
        self._committer.begin(work)
        if wait:
            self.settle()

    def check_note(self, note: dict[str, Any]) -> str:
        """Give a note as it is stored; one that is not JSON, or too long, is a UserError."""
        try:
            text = json.dumps(note, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"extra: only what JSON holds can be stored ({error})") from None
        if len(text) > self.state.note_bytes:
            raise UserError(
                f"extra: a note of {len(text)} bytes, this state has room for "
                f"{self.state.note_bytes}; store less, or give note_bytes= with new folders"
            )
        return text

    @property
    def settling(self) -> bool:
        """Whether the last commit is still under way, or has failed and `settle` will say so."""
        return self._committer.busy or self._committer.failed

    def settle(self) -> None:
        """Wait until the step before is committed on every device; raise when it was not."""
        try:
            if self._committer.settle():
                self.step, self.note = self.pending
        except BaseException as error:
            self._not_committed = error
            raise

    def abandon(self) -> None:
        """Forget what was done since the last commit, on every device."""
        self.wait_idle()
        for device in self.devices:
            device.command(Kind.ABANDON, Kind.DONE)
            device.clear()

    # ------------------------------------------------------------------ end

    def counts(self, trace: bool = False) -> list[dict[str, Any]]:
        """Give every device's counts, and those of the host's ends of the links.

        The step before is committed when they are taken.
        """
        self.settle()
        return [
            {
                "address": device.address,
                "link": {
                    "sent": device.link.sent.snapshot(),
                    "received": device.link.received.snapshot(),
                },
                "device": device.counts(trace),
            }
            for device in self.devices
        ]

    def close(self) -> None:
        """Wait for the last commit, then end all devices; in a forked process do nothing."""
        if os.getpid() != self._owner:
            return
        self._closed = True
        try:
            self.settle()
        finally:
            self._committer.end()
            for device in self.devices:
                device.close()

    def kill(self) -> None:
        """End all devices at once; what was not committed is gone."""
        if os.getpid() != self._owner:
            return
        self._closed = True
        for device in self.devices:
            device.kill()
        self._committer.end()

    def lost(self) -> DeviceLost | None:
        """The first device that is lost, if any."""
        found = (device.failure for device in self.devices)
        return next((error for error in found if isinstance(error, DeviceLost)), None)


def plan(
    settings: Sequence[dict[str, Any]],
    steps: Sequence[int],
    hyper_of: np.ndarray[Any, Any],
    *,
    unscale: float = 1.0,
    clip: float = 1.0,
) -> dict[str, Any]:
    """Give STEP's body: settings, step counts, and which of them each parameter goes by."""
    return {
        "settings": list(settings), "steps": list(steps), "hyper_of": hyper_of.tolist(),
        "unscale": unscale, "clip": clip,
    }  # fmt: skip


def _check_addresses(addresses: Sequence[str | Path]) -> None:
    if isinstance(addresses, (str, Path)):
        raise UserError(f"devices={str(addresses)!r}: give a list of folders")
    if not addresses:
        raise UserError("devices=[]: give at least one folder")
    for address in addresses:
        if not isinstance(address, (str, os.PathLike)) or not str(address):
            raise UserError(f"device {address!r}: name a folder, unix:PATH or tcp:HOST:PORT")
    if len(set(map(str, addresses))) != len(addresses):
        raise UserError(f"devices {list(map(str, addresses))}: each once")


def _each(
    options: DeviceOptions | Sequence[DeviceOptions] | None, count: int
) -> list[DeviceOptions]:
    if options is None or isinstance(options, DeviceOptions):
        return [options or DeviceOptions()] * count
    if len(options) != count:
        raise UserError(f"{len(options)} options for {count} devices")
    return list(options)


def _plain_slots(tile: int) -> tuple[int, int]:
    return 4 * tile, 4 * tile


def weights_by_speed(rates: Sequence[float]) -> list[float]:
    """Give devices' shares from their measured speeds, rounded so that noise moves nothing."""
    if not rates or min(rates) <= 0:
        raise Fault(f"speeds {list(rates)}: all must be above 0")
    fastest = max(rates)
    return [max(round(16 * rate / fastest), 1) / 16 for rate in rates]
