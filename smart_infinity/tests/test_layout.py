"""Every element is on one device once, whatever the shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from smart_infinity import layout
from smart_infinity.layout import Parameter

shapes = st.lists(
    st.tuples(st.integers(0, 5000), st.sampled_from(layout.DTYPES)), min_size=1, max_size=12
).filter(lambda found: any(n for n, _ in found))


@given(
    shapes,
    st.sampled_from([1024, 2048, 4096]),
    st.lists(st.floats(0.1, 8), min_size=1, max_size=4),
    st.sampled_from([1, 256]),
)
@settings(max_examples=200, deadline=None)
def test_every_element_is_somewhere_once(
    found: list[tuple[int, str]], tile: int, weights: list[float], align: int
) -> None:
    parameters = [Parameter(str(i), (n,), dtype) for i, (n, dtype) in enumerate(found)]
    laid = layout.build(parameters, tile=tile, weights=weights, align=align)
    seen = [np.zeros(n, int) for n, _ in found]
    for t in laid.tiles:
        at = 0
        for piece in t.pieces:
            assert at <= piece.begin < piece.end <= t.elements <= tile
            at = piece.end
            assert piece.begin % align == 0 or piece.element > 0
            seen[piece.parameter][piece.element : piece.element + piece.end - piece.begin] += 1
            assert parameters[piece.parameter].dtype == t.dtype
    assert all((one == 1).all() for one in seen)
    for device, numbers in enumerate(laid.by_device):
        assert [laid.tiles[t].index for t in numbers] == list(range(len(numbers)))
        assert all(laid.tiles[t].device == device for t in numbers)


@given(shapes, st.sampled_from([1024, 4096]), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_segments_cut_where_torch_passes_to_single_elements(
    found: list[tuple[int, str]], tile: int, devices: int
) -> None:
    parameters = [Parameter(str(i), (n,), dtype) for i, (n, dtype) in enumerate(found)]
    laid = layout.build(parameters, tile=tile, weights=[1.0] * devices)
    whole = [np.zeros(n, int) for n, _ in found]
    for device in range(devices):
        columns = laid.segments(device)
        assert len({len(column) for column in columns.values()}) == 1
        for t, begin, end, parameter, rest, element in zip(*columns.values(), strict=True):
            assert 0 <= begin < end <= laid.tile_elements(device)[t]
            whole[parameter][element : element + end - begin] += 10 if rest else 1
    for one in whole:
        cut = len(one) - len(one) % 8
        assert (one[:cut] == 1).all()
        assert (one[cut:] == 10).all()


@given(st.lists(st.integers(1, 16), min_size=2, max_size=5))
@example([15, 1, 1, 1, 1])  # the first has two tiles more than its share: the others would wait
@settings(deadline=None)
def test_no_tile_would_be_done_sooner_elsewhere(weights: list[int]) -> None:
    laid = layout.build([Parameter("w", (1024 * 200,))], tile=1024, weights=weights)
    tiles = [len(numbers) for numbers in laid.by_device]
    assert sum(tiles) == 200
    for mine, my_weight in zip(tiles, weights, strict=True):
        for others, weight in zip(tiles, weights, strict=True):
            assert mine * weight <= (others + 1) * my_weight
        assert abs(mine / 200 - my_weight / sum(weights)) < len(weights) / 200


def test_what_cannot_be_laid_out_is_named() -> None:
    one = [Parameter("w", (5,))]
    for call, said in (
        (lambda: layout.build([]), "no parameters"),
        (lambda: layout.build(one, tile=1000), "tile=1000"),
        (lambda: layout.build(one, weights=[1, 0]), "weights"),
        (lambda: layout.build([Parameter("w", (5,), "int8")]), "type int8"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_a_difference_is_named() -> None:
    laid = layout.build([Parameter("a", (5,)), Parameter("b", (2, 3))])
    stored = json.loads(layout.describe(laid, optimizer="adam"))
    layout.compare(stored, json.loads(layout.describe(laid, optimizer="adam")), "x")
    other = layout.build([Parameter("a", (5,)), Parameter("b", (3, 2))])
    with pytest.raises(UserError, match=r"x: its parameter 'b' is float32 \[2, 3\], .* \[3, 2\]"):
        layout.compare(stored, json.loads(layout.describe(other, optimizer="adam")), "x")
    with pytest.raises(UserError, match="made with optimizer='adam', asked for 'sgd'"):
        layout.compare(stored, json.loads(layout.describe(laid, optimizer="sgd")), "x")
