"""The sides of a duel: how they are driven, and ours of them. DeepSpeed's is not in CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from shorthaul import experiments
from shorthaul.errors import Fault

from smart_infinity import deepspeed_environment, duel_sides
from smart_infinity.duel import Driver
from smart_infinity.duel_process import Process
from smart_infinity.experiments import deepspeed_duel, deepspeed_resume

MODEL = {"family": "gpt2", "layers": 1, "width": 32, "heads": 2, "context": 8}
GIVEN: dict[str, Any] = {
    "model": MODEL, "vocabulary": 64, "batch": 2, "seed": 0, "max_norm": 1.0,
    "optimizer": {"lr": 1e-3, "weight_decay": 0.01},
}  # fmt: skip
NVME = {
    "device": "nvme", "folder": "/disk", "pipeline": True, "buffer_count": 12,
    "sub_group_size": 1000, "block_size": 1 << 20, "queue_depth": 8, "intra_op_parallelism": 1,
    "single_submit": False, "overlap_events": True,
}  # fmt: skip


def opened(folder: Path) -> Process:
    process = Process("smart")
    settings = {"devices": [folder], "tile": 1024, "slots": 4}
    process.answer({"do": "open", **GIVEN, "settings": settings})
    return process


def test_our_side_steps_and_counts_what_it_moves(tmp_path: Path) -> None:
    process = opened(tmp_path / "state")
    steps = [process.answer({"do": "step", "number": number}) for number in range(3)]
    params = 64 * 32 + 8 * 32 + 12 * 32 * 32 + 13 * 32 + 2 * 32
    # A parameter and two moments once each way, and little else; nothing by the host.
    moved = steps[-1]["bytes"]["devices"]["step"]
    assert 12 * params <= moved["read"] <= 12 * params + 32 * 4096
    assert 12 * params <= moved["write"] <= 12 * params + 64 * 4096
    assert steps[-1]["bytes"]["host"]["step"] == {"read": 0, "write": 0}
    assert steps[-1]["peak"]["devices"] > 1 << 20
    assert set(steps[-1]["phases"]) == {"total_s", "update_s", "durable_s"}
    ended = process.answer({"do": "digest"})
    assert ended["step"] == 3
    process.side.close()
    again = opened(tmp_path / "state")
    assert again.answer({"do": "digest"}) == ended
    another = again.answer({"do": "step", "number": 3})
    assert another["loss"] not in [one["loss"] for one in steps]
    again.side.close()


def test_a_driver_says_what_its_side_cannot_and_that_it_has_died() -> None:
    with Driver("smart") as driver:
        with pytest.raises(Fault, match="smart cannot digest: AttributeError"):
            driver.ask("digest")
        with pytest.raises(Fault, match="smart cannot open: KeyError: 'settings'"):
            driver.open(model=MODEL)
        driver.kill()
        with pytest.raises(Fault, match="smart died while asked to digest: it said nothing"):
            driver.ask("digest")
    with Driver("nobody") as driver, pytest.raises(Fault, match="nobody cannot open: KeyError"):
        driver.open(model=MODEL)


def test_what_deepspeed_is_told() -> None:
    told = duel_sides._config({**GIVEN, "settings": NVME})
    assert told["optimizer"] == {"type": "AdamW", "params": GIVEN["optimizer"]}
    assert told["gradient_clipping"] == 1.0
    assert told["aio"]["queue_depth"] == 8
    assert told["zero_optimization"]["offload_optimizer"] == {
        "device": "nvme", "nvme_path": "/disk", "pin_memory": False, "buffer_count": 12,
        "pipeline_read": True, "pipeline_write": True,
    }  # fmt: skip
    given = {"device": "smart", "sub_group_size": 1000}
    bf16 = {**GIVEN, "model": {**MODEL, "dtype": "bfloat16"}, "settings": given}
    told = duel_sides._config(bf16)
    assert told["bf16"] == {"enabled": True}
    assert "optimizer" not in told
    assert told["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_a_side_of_deepspeed_is_one_rank_of_one_in_its_environment(tmp_path: Path) -> None:
    there = deepspeed_environment.Environment(tmp_path)
    found = there.variables(threads=2)
    assert found["WORLD_SIZE"] == "1"
    assert found["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "extensions")
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["PATH"].startswith(f"{tmp_path}/bin:{os.environ['PATH'][:4]}")


def test_without_deepspeed_what_is_ours_is_stopped_and_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(deepspeed_environment.VARIABLE, str(tmp_path / "absent"))
    found = experiments.run(
        deepspeed_resume.EXPERIMENT, artifact="smart_infinity", scale="smoke", root=tmp_path,
        overrides={"model": MODEL, "vocabulary": 64, "steps": 5, "stop": 2},
    ).summary()  # fmt: skip
    line = (
        f"DeepSpeed was not measured: DeepSpeed 0.19.8 with its operators is not in {tmp_path}"
        "/absent: make it by `python -m smart_infinity.deepspeed_environment"
    )
    assert found["notes"][0].startswith(line)
    assert any(record.getMessage().startswith(line) for record in caplog.records)
    metrics = found["metrics"]
    assert metrics["absent"] == ["deepspeed"]
    assert metrics["ours_stops"] == 1
    assert metrics["ours_differences"] == 0
    stopped = metrics["ours"]["float32"]["kill"]
    assert stopped["resumed_at"] in (2, 3)
    assert stopped["steps_after"] == 5
    assert stopped["losses_compared"] == 5 - stopped["resumed_at"]


def rounds(seconds: float, moved: float, loss: float = 5.0) -> list[dict[str, Any]]:
    """Rounds of a contestant, the machine being twice as slow in the second."""
    return [
        {"total_s": slow * seconds, "call_s": slow * (seconds - 0.2), "loss": loss,
         "iteration_s": slow * (seconds + 1),
         "read": moved / 2, "write": moved / 2, "peak_host": 1 << 20, "peak_devices": 0}
        for slow in (1, 2, 1)
    ]  # fmt: skip


def test_ratios_are_of_rounds_side_by_side() -> None:
    raw = [{"total_s": seconds, "rate": 24e6 / seconds} for seconds in (0.9, 1.8, 0.9)]
    taken = {
        deepspeed_duel.OURS: rounds(1.0, 24.0), deepspeed_duel.BF16: rounds(0.75, 16.0, 5.1),
        deepspeed_duel.AHEAD: rounds(0.5, 24.0),
        deepspeed_duel.BARE: [{"iteration_s": slow * 0.9} for slow in (1, 2, 1)],
        deepspeed_duel.PIPELINED: rounds(2.0, 32.0, 5.001),
        deepspeed_duel.PLAIN: rounds(3.0, 32.0), deepspeed_duel.RAW: raw,
    }  # fmt: skip
    names = [name for name in taken if name not in (deepspeed_duel.RAW, deepspeed_duel.BARE)]
    found = deepspeed_duel._metrics(taken, 1_000_000, names)
    assert found["over"]["pipelined"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["least_over"] == 2.0
    assert found["call_over"]["pipelined"]["median"] == pytest.approx(1.8 / 0.8)
    assert found["least_call_over"] == pytest.approx(1.8 / 0.8)
    assert found["least_call_over_ahead"] == pytest.approx(1.8 / 0.3)
    assert found["added_s"]["ahead"] == pytest.approx(0.6)
    assert found["added_over_ahead"]["pipelined"]["median"] == pytest.approx(2.1 / 0.6)
    assert found["least_added_over"] == pytest.approx(2.1 / 1.1)
    assert found["iteration_over"]["plain"]["median"] == 2.0
    assert found["of_raw"]["ours"]["median"] == pytest.approx(0.9)
    assert found["of_raw"]["ours_bfloat16"]["median"] == pytest.approx(0.8)
    assert found["media_bytes_per_param"]["plain"]["total"] == 32.0
    assert found["float32_losses_apart"] == pytest.approx(0.001)
    ours = names[:3]
    alone = {name: taken[name] for name in (*ours, deepspeed_duel.RAW, deepspeed_duel.BARE)}
    assert "least_over" not in deepspeed_duel._metrics(alone, 1_000_000, ours)
