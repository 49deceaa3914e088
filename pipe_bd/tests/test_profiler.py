"""A profile measures every block at every size, exactly where it can, and changes nothing."""

from pathlib import Path

import pytest
import torch
from shorthaul.errors import UserError
from torch import nn

from pipe_bd.api import clone
from pipe_bd.blocks import BlockPair, Candidate, Task, check, freeze
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.profile import Profile
from pipe_bd.profiler import measure
from pipe_bd.runtime.world import join
from pipe_bd.source import tensor_source
from pipe_bd.verify import compare


def profile(task: Task, trials: int = 2, together: int = 0, **options: object) -> Profile:
    freeze(task, "eval")
    given = Options(**{"device": "cpu", **options})  # type: ignore[arg-type]
    return measure(task, join("cpu"), check(task), given, trials=trials, together=together)


def test_what_can_be_known_exactly_is(tmp_path: Path) -> None:
    task = build("toy-vgg", batch=10)
    before = clone(task)
    torch.manual_seed(3)
    found = profile(task)
    assert compare(before, task)[0]
    bounds = check(task)
    for index, block in enumerate(found.blocks):
        assert block.name == f"block{index}"
        assert block.activation_bytes == bounds[index + 1].bytes(10)
        assert block.allreduce_s == {1: 0.0}
        assert block.max_group is None
        assert block.teacher_s[1] >= 0
        assert block.samples is not None
        assert len(block.samples.student_s[1]) == 2
        weights = sum(p.numel() * 4 for p in task.pairs[index].student.parameters())
        teacher = sum(p.numel() * 4 for p in task.pairs[index].teacher.parameters())
        # Teacher, weights, gradients and momentum, and two buffers and the batch in use.
        assert block.memory_bytes[1] > teacher + 3 * weights + 3 * bounds[index].bytes(10)
    assert sum(b.student_s[1] for b in found.blocks) > 0
    assert found.batch == 10
    found_again = Profile.load(save(found, tmp_path / "p.json"))
    assert found_again.to_dict() == found.to_dict()


def save(found: Profile, path: Path) -> Path:
    found.save(path)
    return path


def test_adamw_keeps_twice_what_sgd_keeps() -> None:
    sgd = profile(build("toy-vgg", optimizer="sgd")).blocks[5].memory_bytes[1]
    task = build("toy-vgg", optimizer="adamw")
    weights = sum(p.numel() * 4 for p in task.pairs[5].student.parameters())
    adamw = profile(task).blocks[5].memory_bytes[1]
    assert weights <= adamw - sgd <= weights + 1024


@pytest.mark.parametrize(("policy", "limit"), [("one-device", 1), ("sync", None), ("local", None)])
def test_batchnorm_limits_the_group_unless_asked(policy: str, limit: int | None) -> None:
    assert {b.max_group for b in profile(build("toy-bn"), batchnorm=policy).blocks} == {limit}


def test_a_block_that_is_kept_costs_no_training() -> None:
    pairs = [
        BlockPair("kept", nn.ReLU(), {"same": Candidate(nn.ReLU(), steps=0)}),
        BlockPair("learnt", nn.Linear(4, 4), nn.Linear(4, 4)),
    ]
    found = profile(Task(pairs, tensor_source(torch.ones(8, 4), 4)))
    assert found.blocks[0].memory_bytes[1] < found.blocks[1].memory_bytes[1]


def test_a_library_costs_the_sum_of_its_candidates() -> None:
    task = build("toy-library")
    one = clone(task)
    for pair in one.pairs:
        pair.candidates = {"ffn0": pair.candidates["ffn0"]}
    four, single = profile(task), profile(one)
    assert four.blocks[0].memory_bytes[1] > 2 * single.blocks[0].memory_bytes[1]


def test_early_ends_do_not_shorten_the_measurement() -> None:
    task = build("toy-vgg")
    for pair in task.pairs:
        pair.candidates["student"].steps = 1
        pair.candidates["student"].target_loss = 1e9
    found = profile(task, trials=4)
    assert all(b.samples is not None and len(b.samples.student_s[1]) == 4 for b in found.blocks)
    assert sum(b.student_s[1] for b in found.blocks) > 0


@pytest.mark.parametrize("together", [1, 4, 6])
def test_blocks_may_take_turns_in_smaller_groups(together: int) -> None:
    whole, parts = profile(build("toy-vgg")), profile(build("toy-vgg"), together=together)
    for a, b in zip(whole.blocks, parts.blocks, strict=True):
        assert (a.name, a.memory_bytes, a.activation_bytes) == (
            b.name,
            b.memory_bytes,
            b.activation_bytes,
        )


def test_blocks_that_do_not_fit_together_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("pipe_bd.profiler.BlockTrainer.backward", full)
    with pytest.raises(UserError, match=r"blocks 0 to 3 .* pipe-bd profile --together 2"):
        profile(build("toy-vgg"), together=4)
