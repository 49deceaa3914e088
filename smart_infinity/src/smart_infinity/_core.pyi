"""The compiled core; the C++ headers say what each thing does."""

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

class Kind(enum.Enum):
    adamw = 0
    adam = 1
    adagrad = 2
    sgd = 3

class Dtype(enum.Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2

class Moments(enum.Enum):
    float32 = 0
    bfloat16 = 1
    blocks8 = 2

class Encoding(enum.Enum):
    dense = 0
    topk = 1

class Updater(enum.Enum):
    cpu = 0
    opencl = 1

class Settings:
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    momentum: float
    dampening: float
    lr_decay: float
    nesterov: bool
    maximize: bool

class Segments:
    def __init__(
        self,
        tile: npt.ArrayLike,
        begin: npt.ArrayLike,
        end: npt.ArrayLike,
        parameter: npt.ArrayLike,
        rest: npt.ArrayLike,
        element: npt.ArrayLike,
    ) -> None: ...

class Plan:
    def __init__(
        self,
        kind: Kind,
        step: int,
        settings: Sequence[Settings],
        steps: Sequence[int],
        hyper_of: npt.ArrayLike,
        unscale: float = 1.0,
        clip: float = 1.0,
    ) -> None: ...

class Stepper:
    def __init__(
        self,
        kind: Kind,
        momentum: bool,
        moments: Moments,
        tile: int,
        elements: npt.ArrayLike,
        segments: Segments,
        update: Updater = Updater.cpu,
    ) -> None: ...
    def run(
        self,
        tile: int,
        plan: Plan,
        gradient: Any,
        type: Dtype,
        record: Any,
        out: Any,
        out_type: Dtype,
        encoding: Encoding = Encoding.dense,
    ) -> bool: ...

class State:
    def __init__(self, folder: Path | str, readonly: bool = True) -> None: ...
    @property
    def shape(self) -> dict[str, Any]: ...
    @property
    def description(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def note(self) -> bytes: ...
    @property
    def previous_step(self) -> int | None: ...
    def offset(self, tile: int, extent: int, array: int) -> int: ...
    def extent(self, tile: int) -> int: ...
    def rollback(self) -> None: ...
    def verify(self, previous: bool = False) -> list[tuple[int, int]]: ...

Event = tuple[str, str, int, int, int, bool, str, str]

class Engine:
    def __init__(
        self,
        folder: Path | str,
        segments: Segments,
        slots: int = 8,
        landing_bytes: int = 0,
        read_rate: float = 0.0,
        write_rate: float = 0.0,
        trace: bool = False,
        update: Updater = Updater.cpu,
    ) -> None: ...
    @property
    def shape(self) -> dict[str, Any]: ...
    @property
    def description(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def note(self) -> bytes: ...
    @property
    def previous_step(self) -> int | None: ...
    @property
    def io_reason(self) -> str: ...
    @property
    def direct(self) -> bool: ...
    @property
    def counters(self) -> dict[str, float]: ...
    def begin(self, plan: Plan) -> None: ...
    def update(
        self,
        tile: int,
        tag: int,
        gradient: Any,
        encoding: Encoding,
        type: Dtype,
        out: Any,
        out_type: Dtype,
    ) -> None: ...
    def land(self, tile: int, tag: int, gradient: Any, type: Dtype, add: bool = False) -> None: ...
    def update_landed(self, tile: int, tag: int, out: Any, out_type: Dtype) -> None: ...
    def read(self, tile: int, tag: int, out: Any, mask: int, decoded: bool = True) -> None: ...
    def write(self, tile: int, tag: int, values: Any, mask: int, decoded: bool = True) -> None: ...
    def next(self, timeout_s: float) -> Event | None: ...
    def prepare(self, step: int, note: str | bytes) -> None: ...
    def commit(self) -> None: ...
    def abandon(self) -> None: ...
    def rollback(self) -> None: ...
    def take_trace(self) -> list[tuple[str, int, float, float]]: ...

def create_state(
    folder: Path | str,
    kind: Kind,
    momentum: bool,
    moments: Moments,
    tile: int,
    elements: npt.ArrayLike,
    description: str,
    note_bytes: int,
) -> None: ...
def needed_bytes(
    kind: Kind,
    momentum: bool,
    moments: Moments,
    tile: int,
    elements: npt.ArrayLike,
    description: str,
    note_bytes: int,
) -> int: ...
def update(
    kind: Kind,
    settings: Settings,
    step: int,
    unscale: float,
    clip: float,
    rest: bool,
    parameters: Floats,
    gradients: Floats,
    first: Floats | None = None,
    second: Floats | None = None,
) -> None: ...
def check_settings(kind: Kind, settings: Settings) -> None: ...
def simd() -> str: ...
def simd_levels() -> list[str]: ...
def use_simd(name: str) -> None: ...
def opencl_reason() -> str: ...
def opencl_device() -> str: ...
def to_float(type: Dtype, values: Any, out: Floats) -> None: ...
def from_float(type: Dtype, values: Floats, out: Any) -> None: ...
def finite(values: Floats) -> bool: ...
def topk_kept(n: int, ratio: float) -> int: ...
def topk_bytes(n: int, k: int, values: Dtype) -> int: ...
def topk_encode(
    gradient: Floats, k: int, values: Dtype, out: Any, residual: Floats | None = None
) -> int: ...
def cuda_topk_encode(
    device: int,
    stream: int,
    gradient: int,
    n: int,
    k: int,
    values: Dtype,
    out: Any,
    residual: int = 0,
) -> int: ...
def cuda_reason() -> str: ...
def topk_decode(encoded: Any, values: Dtype, out: Floats) -> None: ...
def crc32c(bytes: Any, crc: int = 0) -> int: ...
def page_sum(bytes: Any) -> int: ...
