"""Who am I, and on which device: all ranks of a machine decide alike."""

import pytest
import torch
from shorthaul.errors import UserError

from pipe_bd.runtime import world
from pipe_bd.runtime.world import World, join, under_torchrun


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_alone_there_is_no_process_group() -> None:
    me = join("cpu")
    assert (me.rank, me.size, me.device.type) == (0, 1, "cpu")
    assert not torch.distributed.is_initialized()
    assert not under_torchrun()
    assert me.gather("x") == ["x"]
    assert me.control() is None
    assert me.group([0]) is None
    me.barrier()


def test_cuda_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"this rank \(local 1\) sees 1 GPUs"):
        join("cuda")


@pytest.mark.parametrize(("gpus", "kind"), [(0, "gloo"), (1, "gloo"), (2, "nccl"), (8, "nccl")])
@pytest.mark.parametrize("local", [0, 1])
def test_ranks_that_share_a_machine_choose_the_same_back_end(
    gpus: int, kind: str, local: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[object] = []
    for name, value in {"RANK": local, "WORLD_SIZE": 2, "LOCAL_RANK": local}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda back_end, timeout: chosen.append((back_end, timeout)),
    )
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: local)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(world, "_world", None)
    monkeypatch.setattr(world, "_of", None)
    assert join("auto").size == 2
    assert chosen == [(kind, world.PATIENCE)]


def test_a_group_of_one_needs_no_process_group() -> None:
    assert World(2, 4, torch.device("cpu")).group([3]) is None
