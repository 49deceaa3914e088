"""Step time, memory and disk of a setup, from the rates of its parts (a model, not a measurement).

Tiles pass through the parts of a setup one behind the other, as on a belt. All parts work at once,
so a pass takes as long as its slowest part has work, and a little more: the first tile has to come
to that part, and the last one has to go on from it. A link that all devices share gives each of
them a first tile in turn.

- near storage, gradients with the step: gradient down, state read, stepped, written, while the
  parameters go up;
- near storage, gradients ahead: a pass for the gradients (down, and onto the media where they wait
  there), then one as above without them;
- on the host: a pass for the gradients; then state and gradient are read, go up, are stepped, go
  down, and the state is written;
- with one tile at a time (`overlap` off) reading, stepping and writing of a device are one part;
- the paper's machine moves one way after the other on the host's side, reads and writes of a device
  share its path, and parameters go up when they have been written (`serial`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shorthaul.errors import UserError

from smart_infinity.compress import TopK
from smart_infinity.formulas import MOMENT_BYTES
from smart_infinity.layout import BYTES, DEFAULT_TILE


@dataclass(frozen=True)
class Rates:
    """What the parts of a setup do, in bytes a second and, for kernels, parameters a second.

    Attributes:
        link_down: Shared by all devices; 0 is as fast as it gets.
        link_up: The same, upward.
        media_read: Of one device's media.
        media_write: The same.
        media_both: Reads and writes together, where they share a path; 0: they do not.
        media_all: Of all devices together, where they share a disk; 0: they do not.
        kernel: Updates of one device.
        host_kernel: Updates on the host.
        commit_s: Seconds that making a step durable takes when all is written.
    """

    link_down: float = 0.0
    link_up: float = 0.0
    media_read: float = 0.0
    media_write: float = 0.0
    media_both: float = 0.0
    media_all: float = 0.0
    kernel: float = 0.0
    host_kernel: float = 0.0
    commit_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"{name}={value}: use 0 or more")


# SmartSSDs behind a shared PCIe switch, as the paper has them (section on evaluation); its kernel
# goes through 28 bytes a parameter at 8.2 GB/s.
PAPER = Rates(
    link_down=8e9, link_up=8e9, media_read=3.0e9, media_write=1.7e9, kernel=8.2e9 / 28,
    host_kernel=1e9,
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """What is planned.

    Attributes:
        placement: `device` or `host`.
        moments: Arrays of them: Adam 2, AdaGrad and SGD with momentum 1.
        ahead: Gradients go down before the step (in the backward pass); on the host they always do.
        landed: They wait on the media, not in the device's memory; on the host they always do.
        overlap: A device reads, steps and writes several tiles at once.
        serial: As the paper's machine: see the module.
        tile: Elements of a tile.
    """

    params: float
    devices: int = 1
    placement: str = "device"
    moments: int = 2
    moment_type: str = "float32"
    grad_dtype: str = "float32"
    param_dtype: str = "float32"
    compress: TopK | None = None
    ahead: bool = False
    landed: bool = False
    overlap: bool = True
    serial: bool = False
    tile: int = DEFAULT_TILE

    def __post_init__(self) -> None:
        if not (self.params >= 1 and math.isfinite(self.params)):
            raise UserError(f"--params {self.params:g}: use 1 or more")
        if self.params != int(self.params):
            raise UserError(f"--params {self.params}: use a whole number")
        if self.devices < 1:
            raise UserError(f"--devices {self.devices}: use 1 or more")
        if self.moments not in (0, 1, 2):
            raise UserError(f"moments={self.moments}: use 0, 1 or 2")
        if self.tile < 1:
            raise UserError(f"--tile {self.tile}: use 1 or more")
        if self.placement not in ("device", "host"):
            raise UserError(f"--placement {self.placement}: use device or host")
        if self.placement == "host" and self.compress is not None:
            raise UserError("--compress with --placement host: the baseline sends all")
        if self.moment_type not in MOMENT_BYTES:
            raise UserError(f"--moments {self.moment_type}: use {', '.join(MOMENT_BYTES)}")
        for name in ("grad_dtype", "param_dtype"):
            if getattr(self, name) not in BYTES:
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise UserError(f"{flag}: use {', '.join(BYTES)}")

    @property
    def gradient_bytes(self) -> float:
        """Down per parameter."""
        if self.compress is None:
            return float(BYTES[self.grad_dtype])
        return self.compress.ratio * (2 + BYTES[self.compress.values])

    @property
    def state_bytes(self) -> float:
        """Of master and moments, per parameter."""
        return 4.0 + self.moments * MOMENT_BYTES[self.moment_type]

    @property
    def waits(self) -> float:
        """Bytes per parameter of gradients that wait on the media for their step."""
        host = self.placement == "host"
        return self.gradient_bytes if host or (self.ahead and self.landed) else 0.0

    @property
    def most(self) -> float:
        """Parameters of the fullest device, which decides when all are done."""
        whole, rest = divmod(self.params, self.tile)
        rounds, left = divmod(whole, self.devices)
        return rounds * self.tile + (self.tile if left else rest)


@dataclass(frozen=True)
class Forecast:
    """What the model says of a setup.

    Attributes:
        offload_s: Gradients going down before the step.
        update_s: The step, durable at its end.
        bound_by: The slowest part of the update: link, media or kernel.
        parts: Seconds of the update's parts, were each alone.
        link_bytes_per_param: Both directions.
    """

    offload_s: float
    update_s: float
    bound_by: str
    parts: Mapping[str, float] = field(repr=False)
    link_bytes_per_param: float = 0.0
    media_bytes_per_param: float = 0.0

    @property
    def total_s(self) -> float:
        """The optimizer's part of an iteration."""
        return self.offload_s + self.update_s


@dataclass(frozen=True)
class _Part:
    """Of a belt: seconds of its work, until it has passed a first tile on, and a last one."""

    name: str
    work: float
    first: float
    last: float


def _over(amount: float, rate: float) -> float:
    return amount / rate if rate > 0 else 0.0


class _Belt:
    """The parts of a setup, given bytes per parameter."""

    def __init__(self, setup: Setup, rates: Rates) -> None:
        self.s, self.r = setup, rates
        self.of_device = setup.most
        self.tile = min(setup.tile, self.of_device)

    def link(self, each: float, rate: float) -> _Part:
        """All devices' first tiles come one after another."""
        work, one = _over(each * self.s.params, rate), _over(each * self.tile, rate)
        return _Part("link", work, min(one * self.s.devices, work), one)

    def media(self, each: float, rate: float) -> _Part:
        one = _over(each * self.tile, rate)
        return _Part("media", _over(each * self.of_device, rate), one, one)

    def kernel(self, amount: float, rate: float) -> _Part:
        return _Part("kernel", _over(amount, rate), *2 * (_over(self.tile, rate),))

    def shared(self, each: float) -> float:
        """Seconds of the media where reads and writes, or all devices, share a path."""
        both = _over(each * self.of_device, self.r.media_both)
        return max(both, _over(each * self.s.params, self.r.media_all))


def _join(name: str, *parts: _Part) -> _Part:
    """One part that does what several do, one after the other."""
    return _Part(
        name, sum(p.work for p in parts), sum(p.first for p in parts), sum(p.last for p in parts)
    )


def _pass(*chain: tuple[_Part, ...]) -> tuple[float, dict[str, float]]:
    """Seconds of a pass, and of its parts; those of one tuple work on a tile at the same time.

    However fast the others are, no part ends before it has had its first tile and done all of its
    work, and the last tile has gone on from it.
    """
    seconds, named = 0.0, dict[str, float]()
    for i, here in enumerate(chain):
        before = sum(max(p.first for p in parts) for parts in chain[:i])
        after = sum(max(p.last for p in parts) for parts in chain[i + 1 :])
        for part in here:
            seconds = max(seconds, before + part.work + after)
            named[part.name] = max(named.get(part.name, 0.0), part.work)
    return seconds, named


def forecast(setup: Setup, rates: Rates) -> Forecast:
    """Give the step time of a setup."""
    s, r = setup, rates
    gradient, state, up, waits = s.gradient_bytes, s.state_bytes, BYTES[s.param_dtype], s.waits
    host = s.placement == "host"
    ahead = s.ahead or host
    link = gradient + (2 * state + gradient if host else up)
    media = 2 * state + 2 * waits
    if s.serial:
        offload, update, parts = _serial(s, r, ahead)
    else:
        belt = _Belt(s, r)
        offload = 0.0
        down, landing = belt.link(gradient, r.link_down), belt.media(waits, r.media_write)
        if ahead:
            offload = max(_pass((down,), (landing,))[0], belt.shared(waits))
        read, write = belt.media(state + waits, r.media_read), belt.media(state, r.media_write)
        if host:
            step = belt.kernel(s.params, r.host_kernel)
            rising = belt.link(state + gradient, r.link_up)
            falling = belt.link(state, r.link_down)
            update, parts = _pass((read,), (rising,), (step,), (falling,), (write,))
        else:
            step = belt.kernel(belt.of_device, r.kernel)
            rising = belt.link(up, r.link_up)
            chain = [(read,), (step,), (write, rising)]
            if not s.overlap:
                chain = [(_join("media", read, step, write), rising)]
            if not ahead:
                chain.insert(0, (down,))
            update, parts = _pass(*chain)
        shared = belt.shared(2 * state + waits)
        parts["media"] = max(parts["media"], shared)
        update = max(update, shared) + r.commit_s
    bound_by = max(parts, key=lambda name: parts[name])
    return Forecast(offload, update, bound_by, parts, link, media)


def _serial(s: Setup, r: Rates, ahead: bool) -> tuple[float, float, dict[str, float]]:
    """The paper's machine: sums where ours overlaps, and no tiles."""
    n, each = s.params, s.params / s.devices
    gradient, state, up = s.gradient_bytes, s.state_bytes, BYTES[s.param_dtype]
    offload = 0.0
    if ahead:
        offload = max(_over(gradient * n, r.link_down), _over(s.waits * each, r.media_write))
    media = _over((state + s.waits) * each, r.media_read) + _over(state * each, r.media_write)
    shared = max(_over((2 * state + s.waits) * each, r.media_both),
                 _over((2 * state + s.waits) * n, r.media_all))  # fmt: skip
    parts = {"media": max(media, shared)}
    if s.placement == "host":
        parts["link"] = _over((state + gradient) * n, r.link_up) + _over(state * n, r.link_down)
        parts["kernel"] = _over(n, r.host_kernel)
        return offload, max(parts.values()) + r.commit_s, parts
    falling = 0.0 if ahead else _over(gradient * n, r.link_down)
    parts["link"] = falling + _over(up * n, r.link_up)
    parts["kernel"] = _over(each, r.kernel)
    # Parameters go up when a device has written them: behind the media, not beside.
    return offload, max(parts["media"], parts["kernel"]) + parts["link"] + r.commit_s, parts


def saturation(setup: Setup, rates: Rates, most: int = 64) -> int:
    """Give the number of devices beyond which another one gains less than 5 %."""
    before = forecast(replace(setup, devices=1), rates).total_s
    for devices in range(2, most + 1):
        now = forecast(replace(setup, devices=devices), rates).total_s
        if before / now < 1.05:
            return devices - 1
        before = now
    return most


@dataclass(frozen=True)
class Needs:
    """Memory and disk of a setup, in bytes."""

    disk_each: float
    device_memory_each: float
    host_memory: float


def needs(
    setup: Setup, *, tile: int = 1 << 18, slots: int = 8, window: int = 8, landing: float = 1 << 30
) -> Needs:
    """Give what must be there: two extents of state a device, its slots, the host's tensors."""
    each = setup.params / setup.devices
    disk = 2 * setup.state_bytes * each
    waiting = 0.0
    if setup.ahead:
        gradients = BYTES[setup.grad_dtype] * each
        waiting = min(gradients, landing)
        disk += max(0.0, 4 * each - landing) if gradients > landing else 0.0
    record = setup.state_bytes * tile
    memory = slots * record + window * 8 * tile + waiting + (40 << 20)
    host = setup.params * (BYTES[setup.param_dtype] + BYTES[setup.grad_dtype])
    if setup.compress is not None:  # what is owed, and the momentum
        host += 4 * setup.params * (setup.compress.error_feedback + bool(setup.compress.momentum))
    return Needs(disk, memory, host)


def compare(
    setups: Mapping[str, Setup], rates: Rates, devices: Sequence[int]
) -> dict[str, list[float]]:
    """Give every setup's step time at every number of devices."""
    return {
        name: [forecast(replace(setup, devices=d), rates).total_s for d in devices]
        for name, setup in setups.items()
    }
