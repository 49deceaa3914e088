"""A resumed run ends bit by bit where an uninterrupted one does, whatever was saved of it."""

import dataclasses
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul.errors import UserError

from pipe_bd.api import clone, run_here
from pipe_bd.blocks import Task
from pipe_bd.losses import MSE
from pipe_bd.models import build
from pipe_bd.options import Options
from pipe_bd.plan import Plan, Stage
from pipe_bd.runtime import checkpoint
from pipe_bd.runtime.world import join
from pipe_bd.verify import compare

WORLD, STEPS, EVERY = 4, 6, 2
EVEN = Plan.even(4, 4)
HYBRID = Plan((Stage(0, 1, 2), Stage(2, 2, 1), Stage(3, 3, 1)))
JOINT = Plan.joint(4, 2)


def _options(schedule: str, folder: Path | None, **options: Any) -> Options:
    return Options(
        schedule=schedule,
        devices=options.pop("devices", WORLD),
        checkpoint_dir=folder,
        checkpoint_every=EVERY,
        device="cpu",
        **options,
    )


def _run(task: Task, options: Options) -> tuple[Task, Any]:
    ours = clone(task)
    return ours, run_here(ours, options)


def _cut(folder: Path, kept: list[int | None]) -> None:
    """Leave of each block the checkpoint of one step, as ranks killed at different moments do."""
    for index, step in enumerate(kept):
        for file in sorted(folder.glob(f"block-{index:04d}/*.ckpt")):
            if step is None or file.name != f"step-{step:08d}.ckpt":
                file.unlink()
        found = [] if step is None else [step]
        assert checkpoint._steps(folder, index) == found


def _resumes() -> dict[str, Any]:
    world = join("cpu")
    box = [tempfile.mkdtemp() if world.rank == 0 else ""]
    torch.distributed.broadcast_object_list(box, src=0)
    root = Path(box[0])
    # Without dropout where a batch is split, with it where not: there it must be exact as well.
    tasks = {
        "library": build("toy-library", steps=STEPS, optimizer="adamw"),
        "bn": build("toy-bn", steps=STEPS, dtype="float64"),
    }
    out: dict[str, Any] = {}

    def case(
        name: str,
        model: str,
        first: tuple[str, dict[str, Any]],
        kept: list[int | None],
        second: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        task, folder = tasks[model], root / name
        whole, _ = _run(task, _options(first[0], folder, **first[1]))
        files = len(list(folder.rglob("*.ckpt")))
        world.barrier()
        if world.rank == 0:
            _cut(folder, kept)
        world.barrier()
        schedule, options = second or first
        again, result = _run(task, _options(schedule, folder, resume=True, **options))
        world.barrier()
        first_left = min(s or 0 for s in kept)
        out[name] = {
            "equal": compare(whole, again),
            "reads": result.total("loader_reads"),
            "files": files,
            "left": [str(p) for p in root.rglob("*") if p.name.endswith(".tmp")],
            "first": first_left,
            "losses": {
                b: sorted({k for c in v.values() for k in c}) for b, v in result.losses.items()
            },
        }

    dpu = ("dpu", {"plan": EVEN})
    local = {"batchnorm": "sync"}
    hybrid = ("ahd", {"plan": HYBRID, **local})
    case("dpu", "library", dpu, [6, 4, 4, 6])
    case("dpu, some never saved", "library", dpu, [4, None, 6, 6])
    case("tr", "library", ("tr", {"plan": EVEN}), [6, 4, 6, 4])
    case("hybrid", "bn", hybrid, [4, 6, 4, 6])
    case("one stage", "library", ("sequential", {"devices": 1}), [4, 6, 4, 6])
    case("ls", "library", ("ls", {"devices": 2, "assignment": (0, 1, 0, 1)}), [4, 4, 6, 4])
    case("dp", "bn", ("dp", local), [4, 6, 4, 6])
    case("dpu to sequential", "library", dpu, [4, 6, 4, 4], ("sequential", {"devices": 1}))
    case("dpu to ls", "library", dpu, [4, 6, 4, 4], ("ls", {"assignment": (0, 1, 2, 3)}))
    narrow = ("dpu", {"plan": Plan.pipeline([1, 4]), "devices": 2})
    case("other cuts", "library", dpu, [4, 6, 6, 4], narrow)
    case("hybrid to joint", "bn", hybrid, [4, 4, 4, 4], ("ahd", {"plan": JOINT, **local}))
    case("finished", "library", dpu, [6, 6, 6, 6])

    # Nothing is left to do, so nothing is read, and what is there stays.
    folder = root / "finished"
    task = tasks["library"]
    stamp = {p.name: p.read_bytes() for p in folder.rglob("*.ckpt")}
    world.barrier()
    _, result = _run(task, _options("dpu", folder, resume=True, plan=EVEN))
    world.barrier()
    out["no-op"] = (
        sum(result.total("teacher_calls").values()),
        sum(result.total("student_steps").values()),
        {p.name: p.read_bytes() for p in folder.rglob("*.ckpt")} == stamp,
    )
    # More steps continue a finished run.
    longer = build("toy-library", steps=STEPS + 3, optimizer="adamw")
    reference, _ = _run(longer, Options(schedule="sequential", device="cpu"))
    ours, _ = _run(longer, _options("dpu", folder, resume=True, plan=EVEN))
    out["longer"] = compare(reference, ours)
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(root)
    return out


@pytest.fixture(scope="module")
def found(ranks: Any) -> dict[str, Any]:
    result: dict[str, Any] = ranks(_resumes, WORLD)
    return result


@pytest.mark.timeout(240)
def test_resuming_is_exact_though_blocks_were_at_different_steps(found: dict[str, Any]) -> None:
    for name, row in found.items():
        if name in ("no-op", "longer"):
            continue
        same, largest = row["equal"]
        if name == "hybrid to joint":  # another split of the batch
            assert largest <= 1e-12
        else:
            assert same, (name, largest)
        assert row["left"] == [], name
        assert row["files"] == 8, name  # two of each of four blocks


def test_only_what_is_missing_is_trained_again(found: dict[str, Any]) -> None:
    taken = found["dpu"]["losses"]
    assert taken == {"block0": [], "block1": [4, 5], "block2": [4, 5], "block3": []}
    # The relay starts at the earliest step that any block needs.
    assert found["dpu"]["reads"] == 2
    assert found["dpu, some never saved"]["reads"] == 6
    assert found["finished"]["reads"] == 0


def test_resuming_a_finished_run_does_nothing_and_a_longer_one_goes_on(
    found: dict[str, Any],
) -> None:
    assert found["no-op"] == (0, 0, True)
    assert found["longer"][0]


def _alone(folder: Path, **options: Any) -> Any:
    task = options.pop("task", None) or build("toy-gpt", steps=4)
    given = {"schedule": "sequential", "device": "cpu", "checkpoint_every": 2, **options}
    return run_here(task, Options(checkpoint_dir=folder, **given))


def test_a_checkpoint_of_another_model_is_one_line(tmp_path: Path) -> None:
    _alone(tmp_path)
    other = build("toy-gpt", steps=4)
    for pair in other.pairs:
        student = pair.student
        student.up = torch.nn.Linear(32, 16)  # type: ignore[assignment]
        student.down = torch.nn.Linear(16, 32)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"does not fit block 'block0': .*size mismatch") as error:
        _alone(tmp_path, task=other, resume=True)
    assert "block-0000/step-00000004.ckpt" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="seed was 0, now it is 1: resume with the same seed"):
        _alone(tmp_path, seed=1, resume=True)
    with pytest.raises(UserError, match=r"data was .* resume with the same data"):
        _alone(tmp_path, task=build("toy-gpt", steps=4, seed=2), resume=True)
    with pytest.raises(UserError, match=r"this run has \['block0', 'block1', 'block2', 'block3'\]"):
        _alone(tmp_path, task=build("toy-library", steps=4), resume=True)
    with pytest.raises(UserError, match="already holds checkpoints: pass resume"):
        _alone(tmp_path)
    with pytest.raises(UserError, match="nothing to resume"):
        _alone(tmp_path / "nowhere", resume=True)


def test_a_damaged_checkpoint_says_how_to_fall_back_and_that_works(tmp_path: Path) -> None:
    reference = build("toy-gpt", steps=4)
    _alone(tmp_path, task=reference)
    file = tmp_path / "block-0003" / "step-00000004.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"block-0003/step-00000004.ckpt is corrupted"):
        _alone(tmp_path, resume=True)
    file.unlink()
    again = build("toy-gpt", steps=4)
    _alone(tmp_path, task=again, resume=True)
    assert compare(reference, again)[0]


def _diverging(steps: int) -> Task:
    task = build("toy-gpt", steps=steps)
    task.pairs[2].optimizer = lambda p: torch.optim.SGD(p, lr=1e25)
    return task


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="block 'block2': the loss or a weight of 'student' is not"):
        _alone(tmp_path, task=_diverging(8))
    saved = list(tmp_path.rglob("*.ckpt"))
    assert saved
    for file in saved:
        weights = checkpoint.read(file)["student"]["module"].values()
        assert all(torch.isfinite(t).all() for t in weights), file
    # Without checkpoints a run goes on, and its losses say so.
    result = run_here(_diverging(4), Options(schedule="sequential", device="cpu"))
    assert not math.isfinite(result.losses["block2"]["student"][3])
    assert all(math.isfinite(v) for v in result.losses["block1"]["student"].values())


def test_a_diverged_block_costs_the_others_nothing(tmp_path: Path) -> None:
    task = build("toy-vgg", steps=2)
    with torch.no_grad():
        next(task.pairs[0].student.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="block 'block0': the loss or a weight"):
        run_here(task, Options(schedule="sequential", device="cpu", checkpoint_dir=tmp_path))
    written = sorted(p.parent.name for p in tmp_path.glob("block-*/step-00000002.ckpt"))
    assert written == [f"block-{i:04d}" for i in range(1, 6)]


def test_what_was_queued_is_written_when_a_step_fails(tmp_path: Path) -> None:
    task = build("toy-vgg", steps=4)
    load = task.source.load
    task.source.load = lambda step, lo, hi: load(step, lo, hi - (step == 3))  # type: ignore[method-assign]
    options = Options(
        schedule="sequential", device="cpu", checkpoint_dir=tmp_path, checkpoint_every=1
    )
    with pytest.raises(UserError, match="9 rows for rows 0 to 9 of step 3: every batch must have"):
        run_here(task, options)
    assert len(list(tmp_path.glob("block-*/step-00000003.ckpt"))) == 6


def test_fewer_steps_than_were_taken_are_refused(tmp_path: Path) -> None:
    options = Options(schedule="sequential", device="cpu", checkpoint_dir=tmp_path)
    run_here(build("toy-vgg", steps=3), options)
    files = sorted(tmp_path.rglob("*.ckpt"))
    with pytest.raises(UserError, match="stands at step 3, the run would end at 2: give 3 steps"):
        run_here(build("toy-vgg", steps=2), dataclasses.replace(options, resume=True))
    assert sorted(tmp_path.rglob("*.ckpt")) == files


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    options = Options(schedule="sequential", device="cpu", checkpoint_dir=tmp_path)
    run_here(build("toy-vgg", steps=2, optimizer="adamw"), options)
    with pytest.raises(UserError, match="its optimizer was AdamW, now it is SGD; resume with the"):
        run_here(
            build("toy-vgg", steps=3, optimizer="sgd"), dataclasses.replace(options, resume=True)
        )


@pytest.mark.parametrize("what", ["teacher", "loss"])
def test_another_teacher_or_loss_is_refused(what: str, tmp_path: Path) -> None:
    options = Options(schedule="sequential", device="cpu", checkpoint_dir=tmp_path)
    run_here(build("toy-gpt", steps=2), options)
    other = build("toy-gpt", steps=2)
    if what == "teacher":
        with torch.no_grad():
            next(other.pairs[5].teacher.parameters())[0] += 1
    else:
        other.pairs = [dataclasses.replace(p, loss=MSE()) for p in other.pairs]
    with pytest.raises(UserError, match=f"resume with the same {what}"):
        run_here(other, dataclasses.replace(options, resume=True))
