"""Profiles: costs, files, and one line for every fault in one."""

import copy
import json
import math

import pytest
from shorthaul.errors import UserError

from pipe_bd.paths import resource
from pipe_bd.profile import Profile


def data():
    return {
        "batch": 16,
        "link": {"latency_s": 0.5, "bytes_per_s": 100.0},
        "loader_s": 9.0,
        "blocks": [
            {
                "name": name,
                "teacher_s": {"1": 2.0, "2": 1.0},
                "student_s": {"1": 4.0, "2": 2.0},
                "allreduce_s": {"2": 0.5},
                "update_s": 0.25,
                "activation_bytes": 50,
                "memory_bytes": {"1": 300, "2": 200},
            }
            for name in ("a", "b", "c")
        ],
    }


def test_cost_sums_the_parts_of_a_stage():
    cost = Profile.from_dict(data()).cost(1, 2, 2)
    assert (cost.teacher_s, cost.student_s, cost.allreduce_s, cost.update_s) == (2, 4, 1, 0.5)
    assert cost.link_s == 0.5 + 50 / 100
    assert cost.memory_bytes == 400
    assert cost.period_s == 8.5
    assert cost.to_dict()["period_s"] == 8.5


def test_first_stage_has_no_link_and_waits_for_the_loader():
    cost = Profile.from_dict(data()).cost(0, 0, 1)
    assert cost.link_s == 0
    assert cost.period_s == 9.0


def test_allreduce_of_one_device_is_free():
    assert Profile.from_dict(data()).cost(1, 1, 1).allreduce_s == 0


def test_sizes_need_every_measurement():
    raw = data()
    del raw["blocks"][0]["allreduce_s"]["2"]
    raw["blocks"][1]["max_group"] = 1
    profile = Profile.from_dict(raw)
    assert [block.sizes() for block in profile.blocks] == [(1,), (1,), (1, 2)]
    with pytest.raises(UserError, match="no group size 2 for block 'a'"):
        profile.cost(0, 0, 2)
    with pytest.raises(UserError, match="block 'b' allows groups of at most 1"):
        profile.cost(1, 2, 2)


def test_a_group_is_not_larger_than_the_batch():
    raw = data()
    raw["batch"] = 1
    profile = Profile.from_dict(raw)
    assert profile.sizes() == (1,)
    with pytest.raises(UserError, match="batch of 1"):
        profile.cost(0, 0, 2)


def test_memory_may_be_unknown():
    raw = data()
    raw["blocks"][0]["memory_bytes"] = {}
    assert Profile.from_dict(raw).cost(0, 1, 1).memory_bytes is None


def test_file_round_trip(tmp_path):
    raw = data()
    raw["blocks"][1]["max_group"] = 4
    raw["blocks"][2]["samples"] = {"teacher_s": {"1": [1.0, 3.0]}, "update_s": [0.25]}
    raw["environment"] = {"machine": "m"}
    profile = Profile.from_dict(raw)
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["format"] == "pipe-bd-profile"
    assert written["version"] == 1
    assert written["blocks"][0]["activation_bytes"] == 50


def test_the_example_ships():
    profile = Profile.load(resource("configs/example-profile.json"))
    assert len(profile.blocks) == 12
    assert profile.sizes() == tuple(range(1, 9))


def test_unrelated_extra_keys_are_notes():
    raw = data()
    raw["comment"] = "mine"
    raw["blocks"][0]["color"] = "red"
    assert Profile.from_dict(raw) == Profile.from_dict(data())


BLOCK_FAULTS = {
    "teacher_s.1 negative": (("teacher_s", "1"), -1.0, "teacher_s[1] is -1.0"),
    "student_s.2 NaN": (("student_s", "2"), math.nan, "student_s[2] is nan"),
    "infinite": (("memory_bytes", "1"), math.inf, "memory_bytes[1] is inf"),
    "huge": (("teacher_s", "1"), 10**400, "teacher_s[1] is inf"),
    "text": (("teacher_s", "1"), "2", "teacher_s[1] is '2'"),
    "bool": (("allreduce_s", "2"), True, "allreduce_s[2] is True"),
    "no map": (("student_s",), 3.0, "student_s is 3.0: expected a map"),
    "empty map": (("teacher_s",), {}, "teacher_s is empty"),
    "group 0": (("teacher_s",), {"0": 1.0}, "'0' is not a group size"),
    "group x": (("teacher_s",), {"x": 1.0}, "'x' is not a group size"),
    "update": (("update_s",), -0.5, "update_s is -0.5"),
    "update null": (("update_s",), None, "update_s is None"),
    "activation": (("activation_bytes",), math.nan, "activation_bytes is nan"),
    "max_group": (("max_group",), 0, "max_group is 0"),
    "max_group real": (("max_group",), 1.5, "max_group is 1.5"),
    "samples": (("samples",), [1], "samples must be an object"),
    "samples list": (("samples",), {"update_s": 3}, "samples.update_s must be a list"),
    "samples map": (("samples",), {"teacher_s": [1]}, "samples.teacher_s must map"),
    "samples value": (("samples",), {"teacher_s": {"1": [-1]}}, "samples.teacher_s[1] is -1"),
    "typo": (("max_groups",), 2, "did you mean 'max_group'"),
}


@pytest.mark.parametrize("fault", BLOCK_FAULTS)
def test_a_fault_names_field_and_block(fault):
    keys, value, message = BLOCK_FAULTS[fault]
    raw = data()
    target = raw["blocks"][1]
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    with pytest.raises(UserError) as caught:
        Profile.from_dict(raw, source="p.json")
    said = str(caught.value)
    assert said.startswith("p.json: block 'b'")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "key", ["teacher_s", "student_s", "update_s", "activation_bytes", "memory_bytes"]
)
def test_a_missing_field_is_named(key):
    raw = data()
    del raw["blocks"][1][key]
    with pytest.raises(UserError, match=f"block 'b' lacks '{key}'"):
        Profile.from_dict(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("batch"), "lacks 'batch'"),
        (lambda d: d.update(batch=0), "batch is 0"),
        (lambda d: d.update(batch=True), "batch is True"),
        (lambda d: d.pop("link"), "lacks 'link'"),
        (lambda d: d.update(link=3), "link must be an object"),
        (lambda d: d["link"].pop("latency_s"), "link lacks 'latency_s'"),
        (lambda d: d["link"].update(latency_s=-1), "link.latency_s is -1"),
        (lambda d: d["link"].update(bytes_per_s=0), "bytes_per_s is 0"),
        (lambda d: d.update(loader_s="x"), "loader_s is 'x'"),
        (lambda d: d.update(blocks=[]), "at least one block"),
        (lambda d: d.update(blocks={}), "at least one block"),
        (lambda d: d["blocks"].append(3), "blocks[3] must be an object"),
        (lambda d: d["blocks"][2].pop("name"), "blocks[2] lacks a 'name'"),
        (lambda d: d["blocks"][2].update(name="a"), "two blocks are named 'a'"),
        (lambda d: d.update(version=2), "version 2 is newer"),
        (lambda d: d.update(format="x"), "format is 'x'"),
        (lambda d: d.update(environment=3), "environment must be an object"),
        (lambda d: d.update(loader=1), "did you mean 'loader_s'"),
    ],
)
def test_a_fault_at_the_top_is_named(change, message):
    raw = copy.deepcopy(data())
    change(raw)
    with pytest.raises(UserError) as caught:
        Profile.from_dict(raw)
    assert message in str(caught.value)


def test_no_object():
    with pytest.raises(UserError, match="JSON object"):
        Profile.from_dict([1])


def test_profiles_made_in_python_are_checked_for_names():
    profile = Profile.from_dict(data())
    with pytest.raises(UserError, match="two blocks"):
        Profile(16, profile.link, (profile.blocks[0], profile.blocks[0]))
    with pytest.raises(UserError, match="empty"):
        Profile(16, profile.link, ())
