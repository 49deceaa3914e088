"""Queues are bounded, streams are read once, the trace shows what overlaps. Three real ranks."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul import atomic
from shorthaul.errors import UserError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipe_bd import formulas
from pipe_bd.api import clone, run_here
from pipe_bd.blocks import BlockPair, Task, check
from pipe_bd.models import build, virtual
from pipe_bd.options import Options
from pipe_bd.plan import Plan
from pipe_bd.profile import BlockProfile, LinkProfile, Profile
from pipe_bd.runtime.world import join
from pipe_bd.source import StreamSource
from pipe_bd.verify import compare, composition_plan

WORLD, STEPS = 3, 8
SLOW = 0.04


def _profile(seconds: list[float]) -> Profile:
    blocks = tuple(
        BlockProfile(
            name=f"b{i}",
            teacher_s={1: 0.3 * s},
            student_s={1: 0.7 * s},
            allreduce_s={1: 0.0},
            update_s=0.0,
            activation_bytes=4096,
            memory_bytes={1: 1},
        )
        for i, s in enumerate(seconds)
    )
    return Profile(4, LinkProfile(0.0, 1e9), blocks)


def _queues() -> dict[int, Any]:
    """The last stage takes ten times as long as the ones before."""
    task = virtual.task(_profile([SLOW / 10, SLOW / 10, SLOW]), steps=12)
    out = {}
    for depth in (1, 2, 4):
        options = Options(
            schedule="dpu", devices=WORLD, plan=Plan.even(3, 3), depth=depth, device="cpu"
        )
        result = run_here(clone(task), options)
        out[depth] = [r["counters"] for r in result.ranks]
    return out


def _traces() -> dict[str, Any]:
    world = join("cpu")
    box = [tempfile.mkdtemp() if world.rank == 0 else ""]
    torch.distributed.broadcast_object_list(box, src=0)
    task = virtual.task(_profile([0.01, 0.01, 0.02]), steps=6)
    out: dict[str, Any] = {}
    for schedule in ("tr", "dpu"):
        folder = Path(box[0]) / schedule
        options = Options(
            schedule=schedule, devices=WORLD, plan=Plan.even(3, 3), trace_dir=folder, device="cpu"
        )
        run_here(clone(task), options)
        world.barrier()
        if world.rank == 0:
            out[schedule] = [
                event
                for file in sorted(folder.glob("*.json"))
                for event in atomic.read_json(file)["traceEvents"]
                if event["ph"] == "X"
            ]
    return out


class Noisy(Dataset[Any]):
    """Augments through torch's global generator; dropout draws from the same one."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        return torch.full((4,), float(n)) + torch.rand(4), n


class Counted:
    """A loader that counts what is read from it in this process."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.reads = loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for item in self.loader:
            self.reads += 1
            yield item


def _stream(dropout: float) -> tuple[Task, Counted]:
    torch.manual_seed(0)
    loader = Counted(DataLoader(Noisy(), batch_size=5, shuffle=True))
    pairs = [
        BlockPair(
            f"b{i}",
            nn.Linear(4, 4),
            nn.Sequential(nn.Linear(4, 4), nn.Dropout(dropout)),
            optimizer=lambda p: torch.optim.SGD(p, lr=1e-3),
        )
        for i in range(3)
    ]
    return Task(pairs, StreamSource(loader, steps=STEPS, seed=7)), loader


def _streams() -> dict[str, Any]:
    world = join("cpu")
    out: dict[str, Any] = {}
    plans = {
        "1+1+1": ("ahd", (1, 1, 1)),
        "2": ("ahd", (2,)),
        "3": ("ahd", (3,)),
        "2+1": ("ahd", (2, 1)),
        "1+2": ("ahd", (1, 2)),
        "dp": ("dp", None),
        "ls": ("ls", None),
    }
    for label, (schedule, widths) in plans.items():
        # With dropout nothing may be split: its draws depend on the row range.
        task, _ = _stream(0.0 if schedule == "dp" or max(widths or (1,)) > 1 else 0.5)
        bounds = check(task)
        reference = clone(task)
        run_here(reference, Options(schedule="sequential", device="cpu"))
        torch.manual_seed(world.rank * 1000 + 17)  # ranks' own generators must not matter
        ours = clone(task)
        again, loader = _stream(0.0)  # a loader nobody has read from
        ours.source = again.source
        before = loader.reads
        options = Options(
            schedule=schedule,
            devices=WORLD,
            plan=None if widths is None else composition_plan(3, widths),
            assignment=(0, 1, 0) if schedule == "ls" else None,
            device="cpu",
        )
        result = run_here(ours, options)
        reads = [before, *world.gather(loader.reads)]
        want = formulas.of_run(ours, result, bounds, WORLD)
        out[label] = {
            "equal": compare(reference, ours),
            "miscounts": formulas.differences(want, formulas.found(result)),
            "reads": reads,
        }
    return out


def _all() -> dict[str, Any]:
    return {"queues": _queues(), "traces": _traces(), "streams": _streams()}


@pytest.fixture(scope="module")
def found(ranks: Any) -> dict[str, Any]:
    result: dict[str, Any] = ranks(_all, WORLD)
    return result


def test_a_slow_consumer_bounds_what_is_under_way(found: dict[str, Any]) -> None:
    for depth, counters in found["queues"].items():
        assert [c["peak_sends"] <= depth for c in counters] == [True] * 3
        assert [c["peak_receives"] <= depth + 1 for c in counters] == [True] * 3
        assert counters[1]["peak_sends"] == depth  # the queue did fill
        assert counters[1]["peak_receives"] >= depth
        waited = counters[1]["seconds"]["send_wait"] + counters[0]["seconds"]["send_wait"]
        assert waited > 0


def spans(events: list[dict[str, Any]], *kinds: str) -> list[tuple[float, float, int, int, Any]]:
    """(start, end, rank, step, block) of the events of these kinds."""
    streams = {"teacher", "student", "recv_wait", "update"}
    assert set(kinds) <= streams
    return [
        (e["ts"], e["ts"] + e["dur"], e["pid"], e["args"]["step"], e["args"].get("block"))
        for e in events
        if e["kind"] in kinds
    ]


def kinds_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events with their stream's name, told by what each carries."""
    named = []
    for e in events:
        args = e["args"]
        if "step" not in args:
            continue
        if "block" not in args:
            kind = "recv_wait" if e["name"] in ("recv_wait", "loader") else e["name"]
        elif "/" in e["name"]:
            kind = "student"
        else:
            kind = "update" if e["name"].endswith("update") else "teacher"
        named.append({**e, "kind": kind})
    return named


SLACK_US = 1.0  # a trace holds microseconds


@pytest.mark.parametrize("schedule", ["tr", "dpu"])
def test_nothing_starts_before_what_it_needs(found: dict[str, Any], schedule: str) -> None:
    events = kinds_of(found["traces"][schedule])
    teacher = {(r, s, b): (lo, hi) for lo, hi, r, s, b in spans(events, "teacher")}
    student = {(r, s, b): (lo, hi) for lo, hi, r, s, b in spans(events, "student")}
    received = {(r, s): hi for _, hi, r, s, _ in spans(events, "recv_wait")}
    assert len(teacher) == len(student) == 3 * 6
    assert len(received) == 3 * 6
    for (rank, step, block), (start, end) in teacher.items():
        assert received[rank, step] <= start + SLACK_US
        assert end <= student[rank, step, block][0] + SLACK_US
        if rank > 0:  # its input was made by the rank before
            assert teacher[rank - 1, step, block - 1][1] <= received[rank, step] + SLACK_US


def overlaps_across_steps(events: list[dict[str, Any]]) -> int:
    work = spans(kinds_of(events), "teacher", "student")
    return sum(
        a[2] != b[2] and a[3] < b[3] and min(a[1], b[1]) - max(a[0], b[0]) > SLACK_US
        for a in work
        for b in work
    )


def test_decoupled_updates_overlap_steps_and_the_barrier_does_not(found: dict[str, Any]) -> None:
    assert overlaps_across_steps(found["traces"]["dpu"]) > 0
    assert overlaps_across_steps(found["traces"]["tr"]) == 0


def test_a_stream_gives_the_same_students_under_every_schedule(found: dict[str, Any]) -> None:
    for label, row in found["streams"].items():
        same, largest = row["equal"]
        split = label == "dp" or any(c in "23" for c in label)
        assert same or (split and largest < 1e-6), (label, largest)
        assert row["miscounts"] == {}, label


def test_a_stream_is_read_once_per_step(found: dict[str, Any]) -> None:
    for label, row in found["streams"].items():
        made, *reads = row["reads"]
        assert made == 1  # one look at the batch size, which is kept
        if label not in ("dp", "ls"):
            # The first rank reads each batch once; the others looked at the first one only.
            assert reads == [STEPS, 1, 1], label


def test_a_ragged_stream_ends_a_run_with_one_line() -> None:
    task, _ = _stream(0.0)
    source = StreamSource(DataLoader(Noisy(), batch_size=6), seed=1)
    with pytest.raises(UserError, match="batch 3 has 2 rows, the first had 6: use drop_last"):
        run_here(Task(task.pairs, source), Options(schedule="sequential", device="cpu"))


def test_toy_models_have_sources_that_a_thread_may_read() -> None:
    assert build("toy-vgg").source.threaded  # type: ignore[attr-defined]
