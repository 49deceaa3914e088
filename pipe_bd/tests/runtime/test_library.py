"""Candidates that share a teacher pass end as if each had been trained alone. Three real ranks."""

import copy
from typing import Any

import pytest
import torch

from pipe_bd.api import clone, run_here
from pipe_bd.blocks import BlockPair, Task
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import Plan
from pipe_bd.runtime.world import join
from pipe_bd.verify import compare

WORLD, STEPS = 3, 4
NAMES = [f"ffn{i}" for i in range(4)]


def _run(task: Task, schedule: str, **options: Any) -> tuple[Task, Any]:
    ours = clone(task)
    return ours, run_here(ours, Options(schedule=schedule, device="cpu", **options))


def _only(task: Task, name: str, steps: int | None = None) -> Task:
    pairs = []
    for pair in clone(task).pairs:
        candidate = copy.copy(pair.candidates[name])
        candidate.steps, candidate.target_loss = steps, None
        pairs.append(
            BlockPair(pair.name, pair.teacher, {name: candidate}, pair.loss, pair.optimizer)
        )
    return Task(pairs, task.source, task.entry)


def _same(a: Task, b: Task, name: str) -> bool:
    ours, theirs = _only(a, name), _only(b, name)
    return compare(ours, theirs)[0]


def _library() -> dict[str, Any]:
    world = join("cpu")
    task = build("toy-library", steps=STEPS)
    blocks = len(task.pairs)
    reference, whole = _run(task, "sequential")
    plans: dict[str, dict[str, Any]] = {
        "tr": {"devices": 3, "plan": Plan.even(blocks, 3)},
        "dpu": {"devices": 3, "plan": Plan.even(blocks, 3)},
        "ls": {"devices": 2, "assignment": (0, 1, 1, 0)},
    }
    out: dict[str, Any] = {"schedules": {}, "alone": {}, "early": {}}
    for schedule, options in plans.items():
        ours, result = _run(task, schedule, **options)
        out["schedules"][schedule] = compare(reference, ours)[0]
        out[f"calls {schedule}"] = sum(result.total("teacher_calls").values())
    out["steps"] = whole.total("student_steps")
    for label, options in {
        "dpu": plans["dpu"],
        "ahd": {"devices": 2, "plan": Plan.joint(blocks, 2)},  # a group, with dropout
    }.items():
        together, _ = _run(task, label, **options)
        for name in NAMES:
            single, result = _run(_only(task, name), label, **options)
            out["alone"][label, name] = _same(together, single, name)
            out[f"calls alone {label}"] = sum(result.total("teacher_calls").values())
        # One ends after two steps, one when its loss is low enough, one never starts.
        early = clone(task)
        target = {}
        for pair in early.pairs:
            losses = whole.losses[pair.name]["ffn1"]
            target[pair.name] = sorted(losses.values())[1]
            pair.candidates["ffn0"].steps = 2
            pair.candidates["ffn1"].target_loss = target[pair.name]
            pair.candidates["ffn2"].steps = 0
        ended, result = _run(early, label, **options)
        out["early"][label] = {
            "steps": result.total("student_steps"),
            "ffn0": _same(ended, _run(_only(task, "ffn0", 2), label, **options)[0], "ffn0"),
            "ffn2": _same(ended, task, "ffn2"),
            "ffn3": _same(ended, together, "ffn3"),
        }
        for pair in ended.pairs:
            taken = [k for k in result.losses[pair.name]["ffn1"]]
            values = result.losses[pair.name]["ffn1"]
            reached = [k for k in taken if values[k] <= target[pair.name]]
            single, _ = _run(_only(task, "ffn1", len(taken)), label, **options)
            index = [p.name for p in ended.pairs].index(pair.name)
            mine = ended.pairs[index].candidates["ffn1"].module.state_dict()
            theirs = single.pairs[index].candidates["ffn1"].module.state_dict()
            equal = all(torch.equal(v, theirs[k]) for k, v in mine.items())
            stopped = not reached or reached == [taken[-1]]
            out["early"][label, pair.name] = (equal, stopped, len(taken))
    assert world.size == WORLD
    return out


@pytest.fixture(scope="module")
def found(ranks: Any) -> dict[str, Any]:
    result: dict[str, Any] = ranks(_library, WORLD)
    return result


def test_dropout_does_not_depend_on_the_schedule(found: dict[str, Any]) -> None:
    assert found["schedules"] == {"tr": True, "dpu": True, "ls": True}


def test_each_candidate_equals_training_alone_in_a_pipeline_and_in_a_group(
    found: dict[str, Any],
) -> None:
    assert found["alone"] == {(label, n): True for label in ("dpu", "ahd") for n in NAMES}


def test_four_candidates_need_no_more_teacher_calls_than_one(found: dict[str, Any]) -> None:
    assert found["calls dpu"] == found["calls tr"] == found["calls alone dpu"] == 4 * STEPS
    assert found["steps"] == {f"block{i}/{n}": STEPS for i in range(4) for n in NAMES}


def test_a_candidate_that_ends_early_equals_training_alone_for_as_long(
    found: dict[str, Any],
) -> None:
    for label in ("dpu", "ahd"):
        early = found["early"][label]
        assert early["ffn0"]
        assert early["ffn2"]
        assert early["ffn3"]
        group = 2 if label == "ahd" else 1
        assert {early["steps"][f"block{i}/ffn0"] for i in range(4)} == {2 * group}
        assert not any("ffn2" in k for k in early["steps"])
    ended = [v for k, v in found["early"].items() if isinstance(k, tuple)]
    assert len(ended) == 8
    assert all(equal and stopped for equal, stopped, _ in ended)
    assert any(taken < STEPS for _, _, taken in ended)  # a target was reached at all
