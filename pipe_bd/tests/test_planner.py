"""The C++ planner against brute force and the Python dynamic programme, and its explanations."""

import random
import time

import pytest
from shorthaul.errors import UserError

from pipe_bd import planner_reference as reference
from pipe_bd.plan import Plan, Stage
from pipe_bd.planner import explain, layer_scheduling, period, plan
from pipe_bd.profile import BlockProfile, LinkProfile, Profile


def random_profile(rng, blocks, devices, *, holes=0.1, batch=64):
    rows = []
    for number in range(blocks):
        teacher, student = rng.uniform(0.1, 2), rng.uniform(0.1, 3)
        sizes = [g for g in range(1, devices + 1) if rng.random() >= holes]
        sizes = sizes or [rng.randint(1, devices)]
        rows.append(
            BlockProfile(
                name=f"b{number}",
                teacher_s={g: teacher / g * rng.uniform(1, 1.3) for g in sizes},
                student_s={g: student / g * rng.uniform(1, 1.3) for g in sizes},
                allreduce_s={g: rng.uniform(0, 0.2) * (g > 1) for g in sizes},
                update_s=rng.uniform(0, 0.2),
                activation_bytes=rng.choice([0, rng.uniform(0, 5e8)]),
                memory_bytes={g: rng.uniform(0.2e9, 1e9) / g for g in sizes},
                max_group=rng.choice([None, None, None, 1, 2]),
            )
        )
    link = LinkProfile(rng.uniform(0, 0.01), 1e9)
    return Profile(batch, link, tuple(rows), loader_s=rng.choice([0.0, 0.0, rng.uniform(0, 2)]))


def outcome(profile, devices, cap):
    """Stages and period, or what the error says."""
    try:
        found = plan(profile, devices, cap)
    except UserError as error:
        return str(error)
    found.validate(len(profile.blocks), devices, [b.max_group for b in profile.blocks])
    return found.stages, found.period_s


def test_equals_brute_force_on_1000_instances():
    rng = random.Random(20230417)
    infeasible = with_cap = grouped = idle = 0
    for _ in range(1000):
        blocks, devices = rng.randint(1, 7), rng.randint(1, 5)
        profile = random_profile(
            rng, blocks, devices, batch=rng.choice([64, 64, rng.randint(1, 5)])
        )
        cap = rng.choice([None, rng.uniform(0.3e9, 3e9)])
        expected = reference.brute_force(profile, devices, cap)
        found = outcome(profile, devices, cap)
        with_cap += cap is not None
        if not expected.stages:
            infeasible += 1
            assert isinstance(found, str)
            assert "block 'b" in found
            continue
        assert found == (expected.stages, expected.period_s)
        grouped += any(s.devices > 1 for s in expected.stages)
        idle += sum(s.devices for s in expected.stages) < devices
    # The instances really exercise caps, groups, idle devices and infeasibility.
    assert min(infeasible, with_cap, grouped, idle) >= 50
    assert infeasible <= 600


def test_equals_the_python_dynamic_programme():
    rng = random.Random(3)
    for _ in range(40):
        blocks, devices = rng.randint(1, 24), rng.randint(1, 16)
        profile = random_profile(rng, blocks, devices, holes=0.02)
        cap = rng.choice([None, rng.uniform(0.8e9, 6e9)])
        expected = reference.dynamic_programme(profile, devices, cap)
        found = outcome(profile, devices, cap)
        if expected.stages:
            assert found == (expected.stages, expected.period_s)
        else:
            assert isinstance(found, str)
    profile = random_profile(rng, 24, 16, holes=0.0)
    expected = reference.dynamic_programme(profile, 16)
    assert outcome(profile, 16, None) == (expected.stages, expected.period_s)


def test_reference_flag_gives_the_same_plan_and_the_same_error():
    rng = random.Random(5)
    profile = random_profile(rng, 6, 4)
    assert plan(profile, 4, reference=True) == plan(profile, 4)
    with pytest.raises(UserError) as native:
        plan(profile, 4, 1e6)
    with pytest.raises(UserError) as python:
        plan(profile, 4, 1e6, reference=True)
    assert str(native.value) == str(python.value)


def test_96_blocks_on_64_devices_within_a_second():
    profile = random_profile(random.Random(1), 96, 64, holes=0.0, batch=256)
    start = time.process_time()
    plan(profile, 64)
    assert time.process_time() - start <= 1.0


# -- examples ------------------------------------------------------------------------------


def block(name, teacher, student, *, sizes=(1, 2, 3, 4), memory=1e9, activation=0, **more):
    return BlockProfile(
        name=name,
        teacher_s={g: teacher / g for g in sizes},
        student_s={g: student / g for g in sizes},
        allreduce_s={g: 0.0 for g in sizes},
        update_s=0.0,
        activation_bytes=activation,
        memory_bytes={g: memory / g for g in sizes},
        **more,
    )


def profile_of(*blocks, **more):
    return Profile(64, LinkProfile(0.0, 1e9), blocks, **more)


def test_explanation_names_bottleneck_and_alternatives():
    profile = profile_of(block("a", 1, 2), block("b", 3, 6, max_group=2))
    chosen = plan(profile, 4)
    assert chosen.stages == (Stage(0, 0, 1), Stage(1, 1, 2))
    why = chosen.explanation
    assert why["bottleneck"] == {"stage": 1, "because": "student"}
    assert why["devices_idle"] == 1
    assert [row["share_of_period"] for row in why["stages"]] == [3 / 4.5, 1.0]
    rows = {row["name"]: row for row in why["alternatives"]}
    assert "at most 2" in rows["joint"]["why_not"]
    assert rows["pipeline"]["period_s"] == 9.0
    assert rows["pipeline"]["slower"] == 2.0
    assert rows["even"]["shape"] == "0-0x1|1-1x1"
    assert rows["single"]["period_s"] == 12.0
    text = explain(chosen)
    assert "3 of 4 devices (1 idle" in text
    assert "the slowest is stage 1, mostly student" in text
    assert "not possible: block 'b' allows groups of at most 2" in text


def test_explanation_says_when_an_alternative_is_the_plan():
    assert "= this plan" in explain(plan(profile_of(block("a", 1, 2), block("b", 1, 2)), 2))


def test_explanation_of_memory_and_loader():
    chosen = plan(profile_of(block("a", 1, 2), block("b", 1, 2), loader_s=50.0), 2, 1e9)
    assert chosen.explanation["bottleneck"]["because"] == "loader"
    rows = {row["name"]: row for row in chosen.explanation["alternatives"]}
    assert rows["single"]["why_not"] == "needs 2 GB on a device"


def test_no_pure_pipeline_is_explained():
    chosen = plan(profile_of(block("a", 1, 2, memory=2e9)), 2, 1e9)
    rows = {row["name"]: row for row in chosen.explanation["alternatives"]}
    assert rows["pipeline"]["why_not"] == "no stages of one device each fit"


def test_free_blocks_are_planned():
    chosen = plan(profile_of(block("a", 0, 0), block("b", 0, 0)), 2)
    assert chosen.period_s == 0.0
    assert chosen.devices_used == 1
    assert "×1.00" in explain(chosen) or "= this plan" in explain(chosen)


def test_period_of_any_plan():
    profile = profile_of(block("a", 1, 2), block("b", 1, 5))
    assert period(profile, Plan.joint(2, 3)) == 3.0
    assert period(profile, Plan.pipeline([1, 2])) == 6.0


def test_layer_scheduling_packs_by_cost_with_the_teacher_rerun():
    profile = profile_of(block("a", 1, 2), block("b", 1, 2), block("c", 1, 2))
    assert layer_scheduling(profile, 2) == ((2,), (0, 1))
    with pytest.raises(UserError, match="no group size 1 for block 'x'"):
        layer_scheduling(profile_of(block("x", 1, 2, sizes=(2,))), 2)


# -- what cannot be planned ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "devices", "cap", "message"),
    [
        (
            [block("a", 1, 1), block("fat", 1, 1, memory=9e9)],
            2,
            2e9,
            "block 'fat' needs 4.5 GB per device at its best group size 2, above the cap of 2 GB",
        ),
        (
            [block("a", 1, 1), block("wide", 1, 1, sizes=(4,))],
            2,
            None,
            "block 'wide' was profiled for group sizes 4 and may use at most 2",
        ),
        (
            [block("a", 1, 1, max_group=1), block("b", 1, 1, sizes=(2,))],
            2,
            None,
            "the blocks before block 'b' leave no devices for it: give more --devices",
        ),
        (
            [block("a", 1, 1), block("b", 1, 1), block("c", 1, 1)],
            2,
            1e9,
            "of 1 GB: the blocks before block 'c' leave no devices for it: give more --devices or "
            "raise --memory-gb",
        ),
    ],
)
def test_infeasible_names_the_block(blocks, devices, cap, message):
    with pytest.raises(UserError) as caught:
        plan(profile_of(*blocks), devices, cap)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_batch_of_one_cannot_be_split():
    profile = Profile(1, LinkProfile(0.0, 1e9), (block("a", 1, 1),))
    assert plan(profile, 4).devices_used == 1


def test_a_cap_needs_measured_memory():
    blind = BlockProfile("a", {1: 1.0}, {1: 1.0}, {}, 0.0, 0.0)
    assert plan(profile_of(blind), 1).period_s == 2.0
    with pytest.raises(UserError, match="block 'a' has no memory_bytes"):
        plan(profile_of(blind), 1, 1e9)


@pytest.mark.parametrize("devices", [0, -1, True, 1 << 21])
def test_devices_must_be_positive(devices):
    with pytest.raises(UserError, match="--devices"):
        plan(profile_of(block("a", 1, 1)), devices)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_memory_must_be_positive(cap):
    with pytest.raises(UserError, match="--memory-gb"):
        plan(profile_of(block("a", 1, 1)), 1, cap)
