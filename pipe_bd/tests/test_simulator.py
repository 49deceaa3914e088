"""The simulator against closed forms, and properties that hold for any profile."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import UserError

from pipe_bd.options import SCHEDULES
from pipe_bd.plan import Plan, Stage
from pipe_bd.planner import plan as best_plan
from pipe_bd.profile import BlockProfile, LinkProfile, Profile, Samples
from pipe_bd.simulator import simulate, sweep


def profile_of(times, *, sizes=(1, 2, 4, 8), update=0.0, link=(0.0, 1e9), **more):
    """A profile of (teacher, student) seconds per block that scale perfectly."""
    blocks = tuple(
        BlockProfile(
            name=f"b{number}",
            teacher_s={g: teacher / g for g in sizes},
            student_s={g: student / g for g in sizes},
            allreduce_s={g: 0.125 * (g > 1) for g in sizes},
            update_s=update,
            activation_bytes=1e6,
            memory_bytes={g: 1.0 for g in sizes},
        )
        for number, (teacher, student) in enumerate(times)
    )
    return Profile(64, LinkProfile(*link), blocks, **more)


EQUAL = profile_of([(1.0, 2.0)] * 8, update=0.25)


# -- closed forms (paper notes, sections 1.3 to 1.5) ---------------------------------------


def test_sequential_is_the_sum():
    result = simulate(EQUAL, "sequential", 4)
    assert result.period_s == pytest.approx(8 * 3.25)
    assert result.utilisation == pytest.approx(0.25)
    assert result.plan == Plan.joint(8, 1)


def test_joint_shares_the_batch_and_reduces_every_block():
    result = simulate(EQUAL, "joint", 4)
    assert result.period_s == pytest.approx(8 * (3 / 4 + 0.125 + 0.25))


def test_dp_reruns_the_teacher():
    result = simulate(EQUAL, "dp", 4)
    expected = sum((i + 1) * 1 / 4 + 2 / 4 + 0.125 + 0.25 for i in range(8))
    assert result.period_s == pytest.approx(expected)
    assert result.total_s == pytest.approx(200 * expected)
    assert result.plan is None


def test_dp_loads_in_line_without_prefetch():
    profile = replace(EQUAL, loader_s=0.5)
    gain = simulate(profile, "dp", 4, prefetch=0).period_s - simulate(EQUAL, "dp", 4).period_s
    assert gain == pytest.approx(8 * 0.5)


def test_ls_is_the_fullest_device():
    result = simulate(EQUAL, "ls", 2)
    # Costs 3.25 to 10.25 by ones; longest first onto two devices gives 27 and 27.
    assert result.period_s == pytest.approx(27.0)
    assert result.bytes_per_step == 0


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_tr_and_dpu_periods_and_their_ratio(devices):
    even = Plan.even(8, devices)
    tau, sigma = 8 / devices * 1.0, 8 / devices * 2.0
    free = profile_of([(1.0, 2.0)] * 8)
    tr = simulate(free, "tr", devices, plan=even)
    dpu = simulate(free, "dpu", devices, plan=even)
    # 1 MB at 1 GB/s per cut.
    assert tr.period_s == pytest.approx((devices - 1) * (tau + 1e-3) + tau + sigma)
    assert dpu.period_s == pytest.approx(tau + sigma)
    assert tr.period_s / dpu.period_s == pytest.approx(1 + (devices - 1) / 3, rel=0.01)
    assert dpu.bytes_per_step == (devices - 1) * 1e6


def test_tr_of_unequal_stages():
    profile = profile_of([(1, 2), (2, 5), (1, 3)], update=0.25, link=(0.5, 1e12))
    starts = [0.0, 1.5, 4.0]
    expected = max(
        start + tau + sigma
        for start, (tau, sigma) in zip(starts, [(1, 2), (2, 5), (1, 3)], strict=True)
    )
    result = simulate(profile, "tr", 3, plan=Plan.even(3, 3))
    assert result.period_s == pytest.approx(expected + 0.25, rel=1e-5)


def test_ahd_with_groups():
    plan = Plan((Stage(0, 3, 4), Stage(4, 7, 2)))
    result = simulate(EQUAL, "ahd", 8, plan=plan)
    assert result.period_s == pytest.approx(4 * (3 / 2 + 0.125 + 0.25))
    assert [use.idle == 1.0 for use in result.use] == [False] * 6 + [True] * 2


def test_default_plans_are_the_planner_s():
    uneven = profile_of([(1, 2), (1, 2), (4, 8)])
    assert simulate(uneven, "ahd", 4).plan.stages == best_plan(uneven, 4).stages
    assert simulate(uneven, "dpu", 4).plan.stages == (Stage(0, 1, 1), Stage(2, 2, 1))
    assert simulate(uneven, "tr", 4).plan.stages == (Stage(0, 1, 1), Stage(2, 2, 1))


def test_slow_consumer_bounds_the_queue():
    profile = profile_of([(1, 1), (10, 20)])
    for depth in (1, 2, 4):
        result = simulate(profile, "dpu", 2, plan=Plan.even(2, 2), depth=depth)
        assert result.period_s == pytest.approx(30)
        assert result.peak_unsent == depth
        assert result.peak_queue == 2 * depth


def test_jitter_costs_little_at_depth_two():
    """Paper notes, check 20: ±30 % at depth 2 within 1.15 of the mean slowest stage."""
    free = profile_of([(1.0, 2.0)] * 8)
    result = simulate(free, "dpu", 8, plan=Plan.even(8, 8), jitter=0.3, steps=1000)
    assert 3.0 <= result.period_s <= 1.15 * 3.0


def test_samples_are_drawn():
    profile = profile_of([(1.0, 2.0)])
    blocks = (replace(profile.blocks[0], samples=Samples(student_s={1: (1.0, 5.0)})),)
    result = simulate(replace(profile, blocks=blocks), "sequential", 1, steps=4000)
    assert result.total_s / 4000 == pytest.approx(1.0 + 3.0, rel=0.05)
    again = simulate(replace(profile, blocks=blocks), "sequential", 1, steps=4000)
    other = simulate(replace(profile, blocks=blocks), "sequential", 1, steps=4000, seed=1)
    assert again == result
    assert other.total_s != result.total_s


def test_1024_devices_take_less_than_a_few_seconds():
    profile = profile_of([(0.1, 0.2)] * 1024, sizes=(1,))
    start = time.process_time()
    result = simulate(profile, "dpu", 1024, plan=Plan.even(1024, 1024), jitter=0.3)
    assert time.process_time() - start < 2.0
    assert len(result.use) == 1024


# -- properties ----------------------------------------------------------------------------

seconds = st.floats(0.001, 10.0)


@st.composite
def cases(draw):
    times = draw(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6))
    profile = profile_of(
        times,
        update=draw(st.floats(0.0, 1.0)),
        link=(draw(st.floats(0.0, 5.0)), draw(st.sampled_from([1e5, 1e6, 1e9]))),
        loader_s=draw(st.floats(0.0, 5.0)),
    )
    cuts = draw(st.sets(st.integers(1, len(times)), max_size=len(times) - 1)) - {len(times)}
    edges = [0, *sorted(cuts), len(times)]
    stages = tuple(
        Stage(lo, hi - 1, draw(st.sampled_from([1, 2, 4]))) for lo, hi in pairwise(edges)
    )
    return profile, Plan(stages)


def bounds(profile, plan):
    """Every resource's own seconds per step."""
    work = []
    for stage in plan.stages:
        cost = profile.cost(stage.first, stage.last, stage.devices)
        work.append(cost.teacher_s + cost.student_s + cost.allreduce_s + cost.update_s)
    links = [profile.link.seconds(profile.blocks[cut].activation_bytes) for cut in plan.cuts]
    return work, links


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(1, 4))
def test_dpu_period_is_that_of_the_slowest_resource(case, depth):
    profile, plan = case
    result = simulate(profile, "ahd", plan.devices_used, plan=plan, depth=depth)
    work, links = bounds(profile, plan)
    assert result.period_s == pytest.approx(max([*work, *links, profile.loader_s]), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(1, 3), st.integers(0, 3))
def test_tr_is_never_faster_than_dpu(case, depth, prefetch):
    profile, plan = case
    options = {"plan": plan, "depth": depth, "prefetch": prefetch, "steps": 40}
    tr = simulate(profile, "tr", plan.devices_used, **options)
    dpu = simulate(profile, "dpu", plan.devices_used, **options)
    assert tr.total_s >= dpu.total_s * (1 - 1e-12)


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_more_depth_or_prefetch_is_never_slower(case, seed, jitter):
    profile, plan = case
    options = {"plan": plan, "seed": seed, "jitter": jitter, "steps": 60}
    totals = [
        simulate(profile, "ahd", plan.devices_used, depth=d, prefetch=d, **options).total_s
        for d in (1, 2, 3, 8)
    ]
    for shallow, deep in pairwise(totals):
        assert deep <= shallow * (1 + 1e-12)


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from(SCHEDULES))
def test_work_is_conserved(case, schedule):
    """However it is scheduled, a device is busy for exactly the work it was given."""
    profile, plan = case
    plan = plan if schedule in ("tr", "dpu", "ahd") else None
    devices = plan.devices_used if plan else 4
    steps = 10
    result = simulate(profile, schedule, devices, plan=plan, steps=steps)
    for use in result.use:
        shares = list(vars(use).values())
        assert min(shares) >= 0
        assert sum(shares) == pytest.approx(1)
    total = {
        part: sum(getattr(use, part) for use in result.use) * result.total_s
        for part in ("teacher", "student", "update")
    }
    blocks = profile.blocks
    # Perfect scaling: splitting a batch changes neither the teacher's nor the student's total.
    rerun = [len(blocks) - i if schedule in ("dp", "ls") else 1 for i in range(len(blocks))]
    teacher = sum(b.teacher_s[1] * times for b, times in zip(blocks, rerun, strict=True))
    assert total["teacher"] == pytest.approx(steps * teacher)
    assert total["student"] == pytest.approx(steps * sum(b.student_s[1] for b in blocks))


@settings(deadline=None, max_examples=60)
@given(cases(), st.floats(0.0, 0.5), st.integers(1, 50))
def test_a_run_takes_at_least_its_busiest_device(case, jitter, steps):
    profile, plan = case
    result = simulate(profile, "ahd", 32, plan=plan, jitter=jitter, steps=steps)
    assert result.total_s > 0
    assert 0 <= result.fill_s <= result.total_s
    assert result.peak_unsent <= 2
    assert result.peak_queue <= 4
    assert all(use.idle >= -1e-9 for use in result.use)


# -- faces ---------------------------------------------------------------------------------


def test_sweep_reports_gaps_with_their_reason():
    rows = sweep(EQUAL, ["dp", "dpu"], [2, 3], steps=5)
    assert [row.schedule for row in (rows[0], rows[1], rows[3])] == ["dp", "dpu", "dpu"]
    assert rows[2] == ("dp", 3, "the profile has no group size 3 for block 'b0'")


def test_to_dict_says_simulated():
    out = simulate(EQUAL, "ahd", 4, steps=5).to_dict()
    assert out["simulated"] is True
    assert out["schedule"] == "ahd"
    assert len(out["use"]) == 4
    assert out["stages"][0]["first"] == 0
    assert simulate(EQUAL, "dp", 4, steps=5).to_dict()["stages"] is None


@pytest.mark.parametrize(
    ("schedule", "devices", "options", "message"),
    [
        ("dqu", 2, {}, "did you mean 'dpu'"),
        ("dpu", 0, {}, "--devices is 0"),
        ("dpu", 1025, {}, "--devices is 1025: give a whole number from 1 to 1024"),
        ("dpu", 2, {"steps": 0}, "--steps is 0"),
        ("dpu", 2, {"depth": 0}, "--depth is 0"),
        ("dpu", 2, {"prefetch": -1}, "--prefetch is -1"),
        ("dpu", 2, {"seed": -1}, "--seed is -1"),
        ("dpu", 2, {"jitter": 1.5}, "--jitter is 1.5"),
        ("dpu", 2, {"jitter": float("nan")}, "--jitter is nan"),
        ("dp", 3, {}, "no group size 3 for block 'b0'"),
        ("joint", 3, {}, "no group size 3 for block 'b0'"),
        ("joint", 128, {}, "a batch of 64 cannot be split over 128 devices"),
        ("joint", 2, {"plan": Plan.joint(8, 2)}, "takes no plan"),
        ("ahd", 2, {"plan": Plan.joint(7, 2)}, "does not cover block 7"),
        ("ahd", 2, {"plan": Plan.joint(8, 4)}, "needs 4 devices, but there are 2 ranks"),
        ("ahd", 4, {"plan": Plan.joint(8, 3)}, "no group size 3"),
    ],
)
def test_bad_input_is_one_line(schedule, devices, options, message):
    with pytest.raises(UserError) as caught:
        simulate(EQUAL, schedule, devices, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_block_that_forbids_groups_is_named():
    blocks = (replace(EQUAL.blocks[0], max_group=1), *EQUAL.blocks[1:])
    with pytest.raises(UserError, match="block 'b0' allows groups of at most 1"):
        simulate(replace(EQUAL, blocks=blocks), "dp", 2)


def test_ls_needs_size_one():
    with pytest.raises(UserError, match="no group size 1"):
        simulate(profile_of([(1, 2)], sizes=(2,)), "ls", 2)
