"""Plans: shapes, validation messages, files."""

import json

import pytest
from shorthaul.errors import UserError

from pipe_bd.plan import Plan, Stage, all_plans, compositions, row_ranges


def test_pipeline_takes_exclusive_ends():
    assert Plan.pipeline([2, 6]).stages == (Stage(0, 1, 1), Stage(2, 5, 1))


@pytest.mark.parametrize("cuts", [[], [0, 3], [3, 3], [4, 2]])
def test_pipeline_refuses_cuts_that_do_not_rise(cuts):
    with pytest.raises(UserError, match="do not rise"):
        Plan.pipeline(cuts)


def test_joint_and_even():
    assert Plan.joint(6, 4).stages == (Stage(0, 5, 4),)
    assert [len(s.blocks) for s in Plan.even(6, 4).stages] == [2, 2, 1, 1]
    assert Plan.even(2, 4).devices_used == 2


def test_ranks_are_consecutive():
    plan = Plan((Stage(0, 0, 2), Stage(1, 3, 1), Stage(4, 5, 3)))
    assert [list(plan.ranks(s)) for s in range(3)] == [[0, 1], [2], [3, 4, 5]]
    assert [plan.stage_of(rank) for rank in range(7)] == [0, 0, 1, 2, 2, 2, None]
    assert plan.cuts == (0, 3)
    assert plan.shape() == "0-0x2|1-3x1|4-5x3"
    assert list(plan.stages[1].blocks) == [1, 2, 3]


@pytest.mark.parametrize(
    ("batch", "g", "expected"),
    [
        (10, 3, [(0, 4), (4, 7), (7, 10)]),
        (8, 4, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (1, 2, [(0, 1), (1, 1)]),
    ],
)
def test_row_ranges_are_ragged_from_the_front(batch, g, expected):
    assert row_ranges(batch, g) == expected


def test_row_ranges_refuse_nonsense():
    with pytest.raises(ValueError, match="0 ranks"):
        row_ranges(4, 0)


def test_compositions_of_four():
    assert sorted(compositions(4)) == sorted(
        [(4,), (3, 1), (1, 3), (2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1, 1)]
    )


def test_all_plans_are_distinct_and_valid():
    plans = list(all_plans(4, 3))
    assert len({p.stages for p in plans}) == len(plans)
    for plan in plans:
        plan.validate(4, 3)
    exact = list(all_plans(4, 3, idle=False))
    assert {p.devices_used for p in exact} == {3}
    assert len(exact) == sum(p.devices_used == 3 for p in plans)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "block 0 is not covered"),
        ((Stage(1, 3, 1),), "does not cover block 0 (a)"),
        ((Stage(0, 0, 1), Stage(2, 3, 1)), "does not cover block 1 (b)"),
        ((Stage(0, 2, 1),), "does not cover block 3 (d)"),
        ((Stage(0, 1, 1), Stage(1, 3, 1)), "covers block 1 (b) twice"),
        ((Stage(0, 5, 1),), "names block 5"),
        ((Stage(0, 1, 2), Stage(2, 3, 2)), "needs 4 devices, but there are 3 ranks"),
        ((Stage(0, 3, 0),), "0 devices"),
        ((Stage(0, 3, 1), Stage(4, 3, 1)), "before its first"),
        ((Stage(0, 3, 2),), "block 2 (c) allows groups of at most 1"),
    ],
)
def test_validate_names_what_is_wrong(stages, message):
    plan = Plan(stages, blocks=("a", "b", "c", "d"))
    with pytest.raises(UserError) as caught:
        plan.validate(4, 3, max_groups=[None, None, 1, 2])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validate_takes_a_good_plan():
    Plan((Stage(0, 1, 2), Stage(2, 3, 1))).validate(4, 4, max_groups=[None, 2, 1, None])


def test_file_round_trip(tmp_path):
    plan = Plan(
        (Stage(0, 1, 2), Stage(2, 2, 1)),
        period_s=0.25,
        blocks=("a", "b", "c"),
        batch=10,
        explanation={"bottleneck": {"stage": 0}},
        devices=4,
    )
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    written = json.loads(path.read_text())
    assert written["stages"][0] == {"first": 0, "last": 1, "devices": 2}
    assert written["period_s"] == 0.25
    assert written["devices"] == 4
    assert written["devices_used"] == 3


def test_a_plan_by_hand_needs_stages_only():
    plan = Plan.from_dict({"stages": [{"first": 0, "last": 3, "devices": 2}]})
    assert plan == Plan((Stage(0, 3, 2),))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "JSON object"),
        ({}, "'stages' must be a list"),
        ({"stages": []}, "'stages' must be a list"),
        ({"stages": [3]}, "stages[0] must be an object"),
        ({"stages": [{"first": 0, "last": 1}]}, "stages[0] lacks 'devices'"),
        ({"stages": [{"first": 0, "last": "1", "devices": 1}]}, "stages[0].last is '1'"),
        ({"stages": [{"first": -1, "last": 1, "devices": 1}]}, "stages[0].first is -1"),
        ({"stages": [{"first": True, "last": 1, "devices": 1}]}, "stages[0].first is True"),
        ({"format": "other", "stages": []}, "format is 'other'"),
        ({"version": 2, "stages": []}, "newer than 1"),
        ({"stages": [{"first": 0, "last": 0, "devices": 1}], "period_s": "x"}, "period_s"),
        ({"stages": [{"first": 0, "last": 0, "devices": 1}], "blocks": [1]}, "'blocks'"),
        ({"stages": [{"first": 0, "last": 0, "devices": 1}], "explanation": 3}, "'explanation'"),
    ],
)
def test_bad_plan_data_is_one_line(data, message):
    with pytest.raises(UserError) as caught:
        Plan.from_dict(data, source="p.json")
    assert str(caught.value).startswith("p.json: ")
    assert message in str(caught.value)


def test_bad_plan_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Plan.load(tmp_path / "bad.json")
