"""The tables that C++ reads, and the shapes that its bindings refuse."""

import numpy as np
import pytest

from pipe_bd import _core
from pipe_bd.profile import BlockProfile, LinkProfile, Profile, Samples
from pipe_bd.tables import native


def tables(**changes):
    """Arguments of a valid two-block, two-size profile."""
    two = np.ones((2, 2))
    cells = (np.zeros(5, dtype=np.int64), np.zeros(0))
    rows = (np.zeros(3, dtype=np.int64), np.zeros(0))
    return {
        "groups": [1, 2],
        "teacher_s": two,
        "student_s": two,
        "allreduce_s": two,
        "memory_bytes": two,
        "update_s": np.ones(2),
        "activation_bytes": np.ones(2),
        "latency_s": 0.0,
        "bytes_per_s": 1.0,
        "loader_s": 0.0,
        "teacher_samples": cells,
        "student_samples": cells,
        "update_samples": rows,
    } | changes


def test_valid_tables():
    assert _core.plan(_core.Profile(**tables()), 2, None, 0)[2] == -1


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_s": np.ones(4)},
        {"teacher_s": np.ones((2, 3))},
        {"student_s": np.ones((3, 2))},
        {"memory_bytes": np.ones((1, 2))},
        {"update_s": np.ones(3)},
        {"update_s": np.ones(0)},
        {"update_s": np.ones((2, 1))},
        {"update_s": np.array([1.0, np.nan])},
        {"activation_bytes": np.ones(1)},
        {"teacher_s": -np.ones((2, 2))},
        {"teacher_s": np.full((2, 2), np.inf)},
        {"teacher_s": np.array([[1.0, np.nan], [1.0, 1.0]])},
        {"groups": [2, 1]},
        {"groups": [0, 1]},
        {"latency_s": -1.0},
        {"bytes_per_s": 0.0},
        {"loader_s": float("nan")},
        {"teacher_samples": (np.zeros(4, dtype=np.int64), np.zeros(0))},
        {"teacher_samples": (np.array([0, 1, 2, 3, 9]), np.ones(4))},
        {"teacher_samples": (np.array([0, 3, 2, 3, 4]), np.ones(4))},
        {"teacher_samples": (np.array([1, 1, 2, 3, 4]), np.ones(4))},
        {"update_samples": (np.array([0, 1, 1]), -np.ones(1))},
    ],
)
def test_bindings_refuse_wrong_tables(changes):
    with pytest.raises(ValueError, match=r"expected|wrong|must|offsets"):
        _core.Profile(**tables(**changes))


def options(**changes):
    return {"steps": 5, "depth": 1, "prefetch": 1, "seed": 0, "jitter": 0.0} | changes


@pytest.mark.parametrize(
    "call",
    [
        lambda p: _core.plan(p, 0, None, 0),
        lambda p: _core.plan(p, 1, float("nan"), 0),
        lambda p: _core.plan(p, 1, None, -1),
        lambda p: _core.simulate_relay(p, [(0, 0, 1)], False, 1, **options()),
        lambda p: _core.simulate_relay(p, [(0, 2, 1)], False, 1, **options()),
        lambda p: _core.simulate_relay(p, [(1, 1, 1), (0, 0, 1)], False, 2, **options()),
        lambda p: _core.simulate_relay(p, [(0, 1, 3)], False, 3, **options()),
        lambda p: _core.simulate_relay(p, [(0, 1, -1)], False, 3, **options()),
        lambda p: _core.simulate_relay(p, [(0, 1, 1)], False, 1, **options(steps=0)),
        lambda p: _core.simulate_relay(p, [(0, 1, 1)], False, 1, **options(depth=0)),
        lambda p: _core.simulate_relay(p, [(0, 1, 1)], False, 1, **options(prefetch=-1)),
        lambda p: _core.simulate_relay(p, [(0, 1, 1)], False, 1, **options(jitter=2.0)),
        lambda p: _core.simulate_dp(p, 3, **options()),
        lambda p: _core.simulate_ls(p, [[0], [2]], **options()),
        lambda p: _core.simulate_ls(p, [[-1]], **options()),
        lambda p: _core.bin_pack([1.0], 0),
    ],
)
def test_bindings_refuse_wrong_calls(call):
    with pytest.raises(ValueError, match=r"expected|no such|below|lacks"):
        call(_core.Profile(**tables()))


def test_limits_become_gaps():
    """A size is a column only where some block can use it."""
    blocks = (
        BlockProfile("a", {1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}, {2: 0.0}, 0.0, 0.0, max_group=1),
        BlockProfile(
            "b",
            {1: 1.0, 2: 0.5, 8: 0.1},
            {1: 1.0, 2: 0.5, 8: 0.1},
            {2: 0.0, 8: 0.0},
            0.0,
            0.0,
            samples=Samples(teacher_s={1: (1.0,)}),
        ),
    )
    profile = Profile(4, LinkProfile(0.0, 1.0), blocks)
    assert profile.sizes() == (1, 2)  # 8 exceeds the batch
    stages, period, _ = _core.plan(native(profile), 3, None, 0)
    assert (stages, period) == ([(0, 0, 1), (1, 1, 1)], 2.0)
    assert _core.plan(native(profile), 3, None, 1)[0] == stages
