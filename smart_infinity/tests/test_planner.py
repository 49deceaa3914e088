"""The planner: against the formulas, by hand, and what must hold whatever is planned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from smart_infinity import formulas, planner
from smart_infinity.compress import TopK
from smart_infinity.planner import PAPER, Rates, Setup, forecast, saturation

TILE = 1 << 15

rates = st.floats(1e6, 1e11)
machines = st.builds(
    Rates, link_down=rates, link_up=rates, media_read=rates, media_write=rates,
    kernel=st.just(0.0) | rates, host_kernel=st.just(0.0) | rates,
    media_both=st.just(0.0) | rates, media_all=st.just(0.0) | rates,
    commit_s=st.floats(0, 0.1),
)  # fmt: skip


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    placement = draw(st.sampled_from(["device", "host"]))
    ratio = draw(st.none() | st.floats(0.001, 1)) if placement == "device" else None
    return Setup(
        params=TILE * draw(st.integers(1, 400)) + draw(st.integers(0, TILE - 1)),
        devices=draw(st.integers(1, 12)), placement=placement, moments=draw(st.integers(0, 2)),
        grad_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        param_dtype=draw(st.sampled_from(["float32", "float16"])),
        compress=None if ratio is None else TopK(ratio), ahead=draw(st.booleans()),
        landed=draw(st.booleans()), overlap=draw(st.booleans()), serial=draw(st.booleans()),
        tile=TILE,
    )  # fmt: skip


def link_of_a_tile(setup: Setup, rates: Rates) -> float:
    """Seconds of all that a tile moves over the link, either way."""
    each = forecast(setup, rates).link_bytes_per_param
    return each * setup.tile / min(rates.link_down, rates.link_up)


@given(setups(), machines)
@settings(max_examples=80, deadline=None)
def test_a_step_takes_as_long_as_its_slowest_part_and_no_longer_than_all(
    setup: Setup, rates: Rates
) -> None:
    found = forecast(setup, rates)
    assert found.update_s >= max(found.parts.values()) * (1 - 1e-9)
    assert found.bound_by in found.parts
    assert found.parts[found.bound_by] == max(found.parts.values())
    # Everything one after the other, were no two things ever at once. `media` is one direction.
    alone = (
        found.parts["link"] * 2 + found.parts.get("kernel", 0.0) + found.parts["media"] * 2
        + link_of_a_tile(setup, rates) * setup.devices + rates.commit_s
    )  # fmt: skip
    assert found.update_s <= alone * (1 + 1e-9)
    assert found.total_s == found.offload_s + found.update_s
    if not setup.ahead and setup.placement == "device":
        assert found.offload_s == 0


@given(setups(), machines)
@settings(max_examples=80, deadline=None)
def test_more_devices_are_never_slower(setup: Setup, rates: Rates) -> None:
    """But for a first tile that one more of them waits for on the link."""
    one = forecast(setup, rates)
    more = forecast(replace(setup, devices=setup.devices + 1), rates)
    wait = 0.0 if setup.serial else 2 * link_of_a_tile(setup, rates)
    assert more.total_s <= one.total_s * (1 + 1e-9) + wait
    assert more.parts["media"] <= one.parts["media"] * (1 + 1e-9)
    assert more.link_bytes_per_param == one.link_bytes_per_param


@given(setups(), machines, st.sampled_from([f for f in vars(Rates()) if f != "commit_s"]))
@settings(max_examples=80, deadline=None)
def test_a_faster_part_is_never_slower(setup: Setup, rates: Rates, name: str) -> None:
    faster = replace(rates, **{name: 2 * getattr(rates, name)})
    assert forecast(setup, faster).total_s <= forecast(setup, rates).total_s * (1 + 1e-9)


@given(setups(), machines)
@settings(max_examples=80, deadline=None)
def test_all_parts_twice_as_fast_take_half(setup: Setup, rates: Rates) -> None:
    twice = {name: 2 * value for name, value in vars(rates).items()}
    twice["commit_s"] = rates.commit_s / 2
    found = forecast(setup, Rates(**twice)).total_s
    assert found == pytest.approx(forecast(setup, rates).total_s / 2)


@given(setups(), machines)
@settings(max_examples=80, deadline=None)
def test_more_parameters_are_never_faster(setup: Setup, rates: Rates) -> None:
    more = replace(setup, params=setup.params + 100 * TILE * setup.devices)
    assert forecast(more, rates).total_s >= forecast(setup, rates).total_s * (1 - 1e-9)


@given(setups())
@settings(max_examples=80, deadline=None)
def test_bytes_are_the_formulas(setup: Setup) -> None:
    """Of a whole tile, without headers and without the blocks' counts of compressed gradients."""
    found = forecast(setup, PAPER)
    exact = formulas.link_bytes(
        [1 << 24], placement=setup.placement, moments=setup.moments, compress=setup.compress,
        grad_dtype=setup.grad_dtype, param_dtype=setup.param_dtype,
    ).total / (1 << 24)  # fmt: skip
    assert found.link_bytes_per_param == pytest.approx(exact, abs=2e-4)
    media = formulas.media_bytes_per_param(setup.moments, landed=setup.waits)
    assert found.media_bytes_per_param == pytest.approx(sum(media))


def test_the_formulas_of_the_paper() -> None:
    for scheme, options in {
        "host": {"placement": "host"},
        "device fp32/fp32": {},
        "device fp32/fp16": {"param_dtype": "float16"},
        "device fp16/fp16": {"param_dtype": "float16", "grad_dtype": "float16"},
    }.items():
        setup = Setup(1e9, **options)  # type: ignore[arg-type]
        assert forecast(setup, PAPER).link_bytes_per_param == formulas.bytes_per_param(scheme)


def test_a_step_by_hand() -> None:
    """Two devices, four tiles: what each part takes, and when its first and last tile pass."""
    rates = Rates(link_down=100, link_up=50, media_read=30, media_write=10, commit_s=0.5)
    found = forecast(Setup(params=40, devices=2, tile=10), rates)
    # Gradients of a tile go down in 0.4 s, its state is read in 4 and written in 12.
    assert found.parts == pytest.approx({"link": 3.2, "media": 24.0, "kernel": 0.0})
    assert found.update_s == pytest.approx(2 * 0.4 + 4 + 24 + 0.5)
    ahead = forecast(Setup(params=40, devices=2, tile=10, ahead=True, landed=True), rates)
    # They wait on the media: written in 4 s a tile, read with the state.
    assert ahead.offload_s == pytest.approx(2 * 0.4 + 8)
    assert ahead.update_s == pytest.approx(16 / 3 + 24 + 0.5)
    serial = forecast(Setup(params=40, devices=2, tile=10, overlap=False), rates)
    assert serial.update_s == pytest.approx(2 * 0.4 + 2 * 16 + 0.5)  # parameters go up beside


def test_the_fullest_device_decides() -> None:
    """Five tiles on two devices are three and two."""
    rates = Rates(media_write=10)
    four = forecast(Setup(params=40, devices=2, tile=10), rates)
    five = forecast(Setup(params=50, devices=2, tile=10), rates)
    six = forecast(Setup(params=60, devices=2, tile=10), rates)
    assert four.update_s < five.update_s == six.update_s


def test_devices_without_a_tile_wait_for_none() -> None:
    rates = Rates(link_down=1e6, link_up=1e6, media_read=1e6, media_write=1e6)
    few = forecast(Setup(params=TILE, devices=1, tile=TILE), rates)
    many = forecast(Setup(params=TILE, devices=64, tile=TILE), rates)
    assert many.total_s == few.total_s


def test_the_papers_curve() -> None:
    """Its base gets no faster beyond four devices, ours does; one device is a little slower."""
    base = Setup(4e9, placement="host", serial=True)
    near = Setup(4e9, ahead=True, landed=True, serial=True)
    assert saturation(base, PAPER) == 4
    assert saturation(near, PAPER) >= 10
    curves = planner.compare({"base": base, "near": near}, PAPER, range(1, 11))
    assert curves["base"][5:] == [curves["base"][9]] * 5
    assert 0.95 < curves["base"][0] / curves["near"][0] < 1
    assert curves["base"][9] / curves["near"][9] > 1.6


def test_saturation_ends_somewhere() -> None:
    """Without a link nothing saturates, up to where the planner looks."""
    assert saturation(Setup(1 << 40), Rates(media_read=1e9, media_write=1e9), most=8) == 8


def test_needs_count_state_waiting_gradients_and_feedback() -> None:
    plain = planner.needs(Setup(1e9, devices=4))
    assert plain.disk_each == 2 * 12 * 1e9 / 4
    assert plain.host_memory == 8e9
    ahead = planner.needs(Setup(1e9, devices=4, ahead=True), landing=0.5e9)
    assert ahead.device_memory_each - plain.device_memory_each == 0.5e9
    assert ahead.disk_each - plain.disk_each == 4 * 1e9 / 4 - 0.5e9
    assert planner.needs(Setup(1e9, ahead=True), landing=1e12).disk_each == 24e9
    fed = planner.needs(Setup(1e9, devices=4, compress=TopK(0.01)))
    assert fed.host_memory - plain.host_memory == 8e9
    big = planner.needs(Setup(1e12, devices=4))
    assert big.device_memory_each == plain.device_memory_each


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"params": 0}, "--params 0"),
        ({"params": math.nan}, "--params nan"),
        ({"params": math.inf}, "--params inf"),
        ({"devices": 0}, "--devices 0"),
        ({"moments": 3}, "moments=3"),
        ({"tile": 0}, "--tile 0"),
        ({"placement": "gpu"}, "--placement gpu"),
        ({"placement": "host", "compress": TopK(0.01)}, "the baseline sends all"),
        ({"moment_type": "int4"}, "--moments int4"),
        ({"grad_dtype": "int8"}, "--grad-dtype int8"),
        ({"param_dtype": "int8"}, "--param-dtype int8"),
    ],
)
def test_setups_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Setup(**{"params": 1e6, **options})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_rates_that_cannot_be(value: float) -> None:
    with pytest.raises(UserError, match="link_up="):
        Rates(link_up=value)
