"""Step time, memory and disk of a setup, from the rates of its parts (a model, not a measurement).

Whatever moves at the same time counts by its slowest part, whatever follows by its sum:

- near storage, gradients sent ahead: gradients down (and onto the media, where they wait there),
  then the update, where all is read, stepped and written and parameters go up, at once;
- near storage, gradients with the step: all of it at once;
- on the host: gradients down, then state and gradients up while state goes down again;
- the paper's machine moves one way after the other on the host's side, and reads and writes of a
  device share its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shorthaul.errors import UserError

from smart_infinity.compress import TopK
from smart_infinity.formulas import MOMENT_BYTES
from smart_infinity.layout import BYTES


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
    """

    link_down: float = 0.0
    link_up: float = 0.0
    media_read: float = 0.0
    media_write: float = 0.0
    media_both: float = 0.0
    media_all: float = 0.0
    kernel: float = 0.0
    host_kernel: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
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
        ahead: Gradients go down before the step (in the backward pass).
        landed: They wait on the media, not in the device's memory.
        serial: As the paper's machine: see the module.
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
    serial: bool = False

    def __post_init__(self) -> None:
        if self.params < 1 or self.devices < 1:
            raise UserError(f"--params {self.params:g}, --devices {self.devices}: use 1 or more")
        if self.placement not in ("device", "host"):
            raise UserError(f"--placement {self.placement}: use device or host")
        if self.moment_type not in MOMENT_BYTES:
            raise UserError(f"--moments {self.moment_type}: use {', '.join(MOMENT_BYTES)}")

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


@dataclass(frozen=True)
class Forecast:
    """What the model says of a setup.

    Attributes:
        offload_s: Gradients going down before the step.
        update_s: The step.
        bound_by: The slowest part of the update.
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


def _over(amount: float, rate: float) -> float:
    return amount / rate if rate > 0 else 0.0


def _media(n: float, d: int, read: float, written: float, r: Rates, serial: bool) -> float:
    reading = _over(read * n / d, r.media_read)
    writing = _over(written * n / d, r.media_write)
    both = _over((read + written) * n / d, r.media_both)
    shared = _over((read + written) * n, r.media_all)
    alone = reading + writing if serial else max(reading, writing)
    return max(alone, both, shared)


def forecast(setup: Setup, rates: Rates) -> Forecast:
    """Give the step time of a setup."""
    n, d, r = setup.params, setup.devices, rates
    gradient, state, up = setup.gradient_bytes, setup.state_bytes, BYTES[setup.param_dtype]
    host = setup.placement == "host"
    ahead = setup.ahead or host
    landed = gradient if (host or (ahead and setup.landed)) else 0.0
    offload = 0.0
    if ahead:
        offload = max(_over(gradient * n, r.link_down), _media(n, d, 0.0, landed, r, setup.serial))
    parts: dict[str, float] = {}
    if host:
        rising, falling = _over((state + gradient) * n, r.link_up), _over(state * n, r.link_down)
        parts["link"] = rising + falling if setup.serial else max(rising, falling)
        parts["kernel"] = _over(n, r.host_kernel)
        link = gradient + state + gradient + state
    else:
        falling = 0.0 if ahead else _over(gradient * n, r.link_down)
        rising = _over(up * n, r.link_up)
        parts["link"] = rising + falling if setup.serial else max(rising, falling)
        parts["kernel"] = _over(n / d, r.kernel)
        link = gradient + up
    parts["media"] = _media(n, d, state + landed, state, r, setup.serial)
    bound_by = max(parts, key=lambda name: parts[name])
    update = parts[bound_by]
    if setup.serial and not host:
        # Parameters go up when a device has written them: behind the media, not beside.
        update = max(parts["media"], parts["kernel"]) + parts["link"]
    return Forecast(offload, update, bound_by, parts, link, 2 * state + 2 * landed)


def saturation(setup: Setup, rates: Rates, most: int = 64) -> int:
    """Give the number of devices beyond which another one gains less than 5 %."""
    before = forecast(Setup(**{**vars(setup), "devices": 1}), rates).total_s
    for devices in range(2, most + 1):
        now = forecast(Setup(**{**vars(setup), "devices": devices}), rates).total_s
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
    if setup.compress is not None and setup.compress.error_feedback:
        host += 4 * setup.params
    return Needs(disk, memory, host)


def compare(setups: Mapping[str, Setup], rates: Rates, devices: Sequence[int]) -> dict[str, Any]:
    """Give every setup's step time at every number of devices."""
    return {
        name: [
            forecast(Setup(**{**vars(setup), "devices": d}), rates).total_s for d in devices
        ]
        for name, setup in setups.items()
    }  # fmt: skip
