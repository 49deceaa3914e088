"""What a rank does in the tests of several; as a program under torchrun it does `equal`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from shorthaul.errors import Fault
from smart_testing import differing_bits
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from smart_infinity import SmartOptimizer
from smart_infinity.distributed import whole_state_dict
from smart_infinity.wire import Kind

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.01}


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(40, 65), torch.nn.Tanh(), torch.nn.Linear(65, 24))


def batch(step: int, rank: int, ranks: int) -> torch.Tensor:
    whole = torch.randn(8, 40, generator=torch.Generator().manual_seed(step))
    return whole.chunk(ranks)[rank]


def backward(net: Any, step: int, rank: int = 0, ranks: int = 1) -> float:
    net.zero_grad()
    loss = net(batch(step, rank, ranks)).square().mean()
    loss.backward()
    return float(loss.detach())


def local_of(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def locals_of(net: Any) -> list[torch.Tensor]:
    """What a rank holds of the parameters."""
    return [local_of(p) for p in net.parameters()]


def copies(net: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in locals_of(net)]


class Rank:
    """One rank's model in one of the two ways, and what its optimizers need."""

    def __init__(self, kind: str, folder: Path, seed: int = 0) -> None:
        self.kind, self.folder = kind, folder
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.net = model(seed)
        if kind == "ddp":
            self.net = DistributedDataParallel(self.net)
        else:
            for layer in self.net:
                if isinstance(layer, torch.nn.Linear):
                    fully_shard(layer)
            fully_shard(self.net)

    def smart(self, devices: int = 1, **options: Any) -> SmartOptimizer:
        folders = [self.folder / f"rank{self.rank}-device{d}" for d in range(devices)]
        group = dist.group.WORLD if self.kind == "ddp" else None
        return SmartOptimizer(
            self.net.named_parameters(), devices=folders, tile=1024, process_group=group,
            **{**OPTIONS, **options},
        )  # fmt: skip

    def torchs(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), fused=True, **OPTIONS)

    def steps(self, optimizer: Any, steps: range, max_norm: float | None = None) -> list[float]:
        losses = []
        for step in steps:
            losses.append(backward(self.net, step, self.rank, self.size))
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), max_norm)
            optimizer.step()
        return losses


def equal(kind: str, folder: Path) -> dict[str, Any]:
    """Seven steps as torch takes them, and as ours does, with states handed between the two."""
    reference = Rank(kind, folder)
    theirs = reference.torchs()
    losses = reference.steps(theirs, range(5), max_norm=0.1)
    mine = Rank(kind, folder)
    with mine.smart(max_norm=0.1) as optimizer:
        assert mine.steps(optimizer, range(5)) == losses
        counts = optimizer.array.counts()
        state = whole_state_dict(optimizer)
        differ = differing_bits(copies(mine.net), copies(reference.net))
        moments = [
            differing_bits([local_of(state["state"][i][name])], [local_of(theirs.state[p][name])])
            for i, p in enumerate(reference.net.parameters())
            for name in ("exp_avg", "exp_avg_sq")
        ]
        # And both ways between torch's state_dict and ours.
        optimizer.load_state_dict(theirs.state_dict())
        again = Rank(kind, folder)
        with torch.no_grad():
            for into, source in zip(locals_of(again.net), locals_of(mine.net), strict=True):
                into.copy_(source)
        torchs = again.torchs()
        torchs.load_state_dict({key: state[key] for key in ("state", "param_groups")})
        for one in torchs.param_groups:
            one["fused"] = True
        mine.steps(optimizer, range(5, 7))
        reference.steps(theirs, range(5, 7), max_norm=0.1)
        again.steps(torchs, range(5, 7), max_norm=0.1)
        later = [
            differing_bits(copies(net), copies(reference.net)) for net in (mine.net, again.net)
        ]
    return {
        "differ": differ, "moments": sum(moments), "later": later,
        "sent": sum(one["link"]["sent"]["gradient"]["payload_bytes"] for one in counts),
        "elements": optimizer.layout.elements if kind == "fsdp" else optimizer.array.whole.elements,
        "own": sum(tile.elements for tile in optimizer.layout.tiles),
        "full": [p.full_tensor() if hasattr(p, "full_tensor") else p.detach()
                 for p in mine.net.parameters()],
    }  # fmt: skip


def resume(kind: str, folder: Path, first: int, last: int, end: str) -> dict[str, Any]:
    """Take steps up to `last` from wherever the folders are; `end` says how it ends."""
    mine = Rank(kind, folder, seed=3 if first else 0)  # of a resumed one the state has the weights
    optimizer = mine.smart()
    assert optimizer.array.step == first, optimizer.array.step
    assert optimizer.extra == ({"epoch": 4} if first else {})
    optimizer.extra = {"epoch": 4}
    mine.steps(optimizer, range(first, last))
    if end == "close":
        optimizer.close()
        reference = Rank(kind, folder)
        reference.steps(reference.torchs(), range(last))
        return {"differ": differing_bits(copies(mine.net), copies(reference.net))}
    optimizer.flush()
    backward(mine.net, last, mine.rank, mine.size)
    if end == "killed":  # rank 1 in the middle of a step, when rank 0 waits for it
        if mine.rank == 1:
            for place, name in ((optimizer, "_hand_round"), (optimizer.array, "commit")):
                setattr(place, name, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))
        try:
            optimizer.step()
            optimizer.flush()
        except Fault as error:
            return {"said": str(error)}
    # All have the step on disk, and rank 0 alone gets to say that it counts.
    assert end == "half committed"
    setattr(optimizer.array, "commit", lambda *args, **options: None)  # noqa: B010
    optimizer.step()
    note = {"note": json.dumps({"steps": last + 1, "extra": {"epoch": 9}})}
    for device in optimizer.array.devices:
        device.command(Kind.PREPARE, Kind.PREPARED, note, arg=last + 1)
    if mine.rank == 0:
        for device in optimizer.array.devices:
            device.command(Kind.COMMIT, Kind.DONE)
    dist.barrier()
    return {}


def not_finite(kind: str, folder: Path) -> dict[str, Any]:
    """A NaN that rank 1 alone sees ends the step on both, and the next one is taken."""
    mine = Rank(kind, folder)
    with mine.smart() as optimizer:
        mine.steps(optimizer, range(2))
        before = copies(mine.net)
        backward(mine.net, 99, mine.rank, mine.size)
        if mine.rank == 1:
            for param in mine.net.parameters():
                assert param.grad is not None
                local_of(param.grad).fill_(float("nan"))
        said = [said_by(optimizer.step)]
        changed = differing_bits(copies(mine.net), before)
        mine.steps(optimizer, range(2, 4))
        # Ranks that do not have the same gradients do not wait for each other for ever.
        backward(mine.net, 4, mine.rank, mine.size)
        if mine.rank == 0:
            next(iter(mine.net.parameters())).grad = None
        said.append(said_by(optimizer.step))
    reference = Rank(kind, folder)
    reference.steps(reference.torchs(), range(4))
    differ = differing_bits(copies(mine.net), copies(reference.net))
    return {"said": said, "changed": changed, "differ": differ}


def refuse(kind: str, folder: Path) -> dict[str, Any]:
    """What cannot be is said on every rank."""
    mine = Rank(kind, folder)
    mine.smart().close()
    said = [
        said_by(mine.smart, **options)
        for options in ({"offload": "backward"}, {"resume": False}, {"devices": 2})
    ]
    others = [folder / f"rank{1 - mine.rank}-device0"]
    params = mine.net.named_parameters()
    said.append(
        said_by(SmartOptimizer, params, devices=others, process_group=dist.group.WORLD, **OPTIONS)
    )
    dist.barrier()
    if mine.rank == 1:
        for file in (folder / "rank1-device0").iterdir():
            file.unlink()
    dist.barrier()
    said.append(said_by(mine.smart))
    return {"said": said}


def said_by(call: Any, *args: Any, **options: Any) -> str:
    try:
        call(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "equal": equal,
    "resume": resume,
    "not_finite": not_finite,
    "refuse": refuse,
}


def run(rank: int, ranks: int, case: str, kind: str, folder: Path, *more: Any) -> None:
    """Run a case in a process that was forked for it, and leave what it gives in the folder."""
    store = dist.FileStore(str(folder / f"store-{case}-{more}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        torch.save(CASES[case](kind, folder, *more), folder / f"out{rank}.pt")
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Under torchrun: both ways to be of several ranks, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for kind in ("ddp", "fsdp"):
        folder = Path(sys.argv[1]) / kind
        torch.save(equal(kind, folder), folder / f"out{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
