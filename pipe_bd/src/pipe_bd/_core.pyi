"""Types of the C++ core (cpp/bindings.cpp)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Doubles = NDArray[np.float64]
_Samples = tuple[NDArray[np.int64], _Doubles]
_Stage = tuple[int, int, int]

class Profile:
    def __init__(
        self,
        *,
        groups: Sequence[int],
        teacher_s: _Doubles,
        student_s: _Doubles,
        allreduce_s: _Doubles,
        memory_bytes: _Doubles,
        update_s: _Doubles,
        activation_bytes: _Doubles,
        latency_s: float,
        bytes_per_s: float,
        loader_s: float,
        teacher_samples: _Samples,
        student_samples: _Samples,
        update_samples: _Samples,
    ) -> None: ...

def plan(
    profile: Profile, devices: int, memory_cap_bytes: float | None, largest_group: int
) -> tuple[list[_Stage], float, int]: ...
def simulate_relay(
    profile: Profile,
    stages: Sequence[_Stage],
    barrier: bool,
    devices: int,
    *,
    steps: int,
    depth: int,
    prefetch: int,
    seed: int,
    jitter: float,
) -> dict[str, Any]: ...
def simulate_dp(
    profile: Profile,
    devices: int,
    *,
    steps: int,
    depth: int,
    prefetch: int,
    seed: int,
    jitter: float,
) -> dict[str, Any]: ...
def simulate_ls(
    profile: Profile,
    assignment: Sequence[Sequence[int]],
    *,
    steps: int,
    depth: int,
    prefetch: int,
    seed: int,
    jitter: float,
) -> dict[str, Any]: ...
def bin_pack(costs: Sequence[float], bins: int) -> list[list[int]]: ...
