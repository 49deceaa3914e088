"""Draws depend on what is computed, never on which process computes it."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipe_bd.rng import borrowed, derive, moment, now, reseed, step_generator

KEYS = st.lists(st.one_of(st.integers(), st.text()), max_size=4)


@given(a=KEYS, b=KEYS, seed=st.integers(0, 2**63))
def test_different_keys_give_different_seeds(a: list[int | str], b: list[int | str], seed: int):
    same = [(type(k), k) for k in a] == [(type(k), k) for k in b]
    assert (derive(seed, *a) == derive(seed, *b)) == same
    assert 0 <= derive(seed, *a) < 2**63


def test_keys_do_not_run_together():
    assert derive(0, "a", "b") != derive(0, "ab")
    assert derive(0, "a\x1fstr:b") != derive(0, "a", "b")
    assert derive(0, "1") != derive(0, 1)
    assert derive(1, 1) != derive(11)
    assert derive(0, "block1", 2) != derive(0, "block", 12)


def test_derive_is_the_same_in_every_process_and_version():
    # Checkpoints of older versions resume only if these stay.
    assert derive(7, "dropout", "block3", "narrow", 17, 0) == 3619428869045612201


def draw() -> torch.Tensor:
    return torch.rand(4)


def test_a_moment_seeds_by_block_candidate_step_and_row():
    seen = []
    for key in [("b", "c", 1, 0), ("b2", "c", 1, 0), ("b", "d", 1, 0), ("b", "c", 2, 0)]:
        with moment(0, *key):
            seen.append(draw())
    with moment(0, "b", "c", 1, 5):
        seen.append(draw())
    with moment(1, "b", "c", 1, 0):
        seen.append(draw())
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    torch.rand(100)  # whatever happened in between
    with moment(0, "b", "c", 1, 0):
        assert torch.equal(draw(), seen[0])


def test_a_group_shares_the_generator_of_a_step():
    def path(row: int, purpose: str = "path") -> torch.Tensor:
        with moment(0, "b", "c", 3, row):
            return torch.rand(4, generator=step_generator(purpose))

    assert torch.equal(path(0), path(5))
    assert not torch.equal(path(0), path(0, "other"))


def test_moments_nest_and_end():
    with moment(1, "outer", "x", 4, 0):
        with moment(1, "inner", "y", 9, 0):
            assert (now().block, now().candidate, now().step) == ("inner", "y", 9)
        assert (now().block, now().candidate, now().step) == ("outer", "x", 4)
    assert now().block == ""


def test_borrowed_generators_come_back():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    wanted = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    draws = []
    for _ in range(2):
        with borrowed():
            reseed(derive(3, "row"))
            draws.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
    assert draws[0] == draws[1] != wanted
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == wanted  # noqa: NPY002
