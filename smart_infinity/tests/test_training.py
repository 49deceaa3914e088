"""Training: torch's numbers at every step, the same whether it goes on or went through."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shorthaul.errors import UserError
from smart_testing import differing_bits, words

from smart_infinity import _core, corpora, models, training
from smart_infinity.cli import main
from smart_infinity.compress import TopK
from smart_infinity.training import Config, StateConfig, TrainConfig

MODEL = models.ModelConfig(layers=1, width=16, heads=2, context=16, dropout=0.1)
TRAIN = TrainConfig(steps=6, batch=2, accumulate=2, lr=1e-2, warmup=2, max_norm=0.5, evaluate=3)
CONFIG = Config(MODEL, TRAIN, StateConfig(tile=1024))
PRESET = """
tokens = "{tokens}"
[model]
layers = 1
width = {width}
heads = {heads}
context = 16
dropout = 0.1
[train]
steps = 6
batch = 2
accumulate = 2
lr = 1e-2
warmup = 2
max_norm = 0.5
evaluate = 3
[state]
tile = 1024
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text"
    file.write_text(words(1500))
    return file


Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tmp_path: Path, text: Path) -> Train:
    """Run `smart-infinity train`; what it put into its JSON, or the exit code."""

    def run(
        *flags: Any, storage: str = "state", code: int = 0, tokens: str = "bytes",
        width: int = 16, heads: int = 2, devices: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        preset, out = tmp_path / "preset.toml", tmp_path / "out.json"
        preset.write_text(PRESET.format(tokens=tokens, width=width, heads=heads))
        folders = [tmp_path / f"{storage}-{d}" for d in range(devices)]
        given = ["--config", preset, "--data", text, "--json", out, *flags, "--storage", *folders]
        assert main(["train", *map(str, given)]) == code
        return dict(json.loads(out.read_text())) if code == 0 else {}

    return run


# ---------------------------------------------------------------------- the loop


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_loss_is_torchs_to_the_bit(optimizer: str, text: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, state=replace(CONFIG.state, optimizer=optimizer))
    data = training.data(config, str(text), 0)
    found = []
    for ours in (True, False):
        model = models.build(MODEL, data.vocabulary, 0)
        if ours:
            with training.optimizer_for(model, config, [tmp_path / "a"]) as made:
                result = training.train(model, made, config, data)
        else:
            result = training.train(model, training.reference_for(model, config), config, data)
        found.append((result, list(model.parameters())))
    (mine, my_params), (theirs, their_params) = found
    assert mine["losses"] == theirs["losses"]
    assert mine["held_out"] == theirs["held_out"]
    assert list(mine["held_out"]) == [3, 6]
    assert differing_bits(my_params, their_params) == 0
    assert mine["losses"][-1] < mine["losses"][0]


def test_the_learning_rate_rises_and_falls() -> None:
    plan = TrainConfig(steps=100, warmup=10, lr=1.0)
    assert [plan.rate(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert plan.rate(10) == 1.0
    assert plan.rate(55) == pytest.approx(0.55)
    assert plan.rate(100) == plan.rate(500) == pytest.approx(0.1)
    assert all(plan.rate(s + 1) <= plan.rate(s) for s in range(10, 100))
    stopped = replace(plan, steps=40, decay=100)
    assert [stopped.rate(s) for s in range(40)] == [plan.rate(s) for s in range(40)]


def test_configurations_that_cannot_be_are_named(text: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"steps": 0}, "train.steps = 0: use 1 or more"),
        ({"accumulate": 0}, "train.accumulate = 0"),
        ({"lr": -1.0}, "train.lr = -1.0: use 0 or more"),
        ({"max_norm": float("nan")}, "train.max_norm = nan"),
    ):
        with pytest.raises(UserError, match=said):
            TrainConfig(**options)
    long = replace(CONFIG, model=replace(MODEL, context=40_000))
    with pytest.raises(UserError, match=r"model.context = 40000 needs 80,004 or more"):
        training.data(long, str(text), 0)
    model = models.build(MODEL, 256, 0)
    for compress in ("topk:x", "top:1", "topk"):
        bad = replace(CONFIG, state=replace(CONFIG.state, compress=compress))
        with pytest.raises(UserError, match=r"state\.compress"):
            training.optimizer_for(model, bad, [tmp_path / "a"])


def test_what_the_preset_says_of_compression_is_done(text: Path, tmp_path: Path) -> None:
    state = StateConfig(
        tile=1024, compress="topk:0.1", values="bfloat16", error_feedback=False, dense_steps=3
    )
    config = replace(CONFIG, state=state)
    model = models.build(MODEL, 256, 0)
    with training.optimizer_for(model, config, [tmp_path / "a"]) as optimizer:
        assert optimizer.compress == TopK(0.1, "bfloat16", False, 3)
        training.train(model, optimizer, config, training.data(config, str(text), 0))
        sent = optimizer.array.counts()[0]["link"]["sent"]["gradient"]
        tiles = [tile.elements for tile in optimizer.layout.tiles]
    whole = 4 * sum(tiles)
    assert sent["payload_bytes"] == 3 * whole + 3 * sum(map(optimizer.compress.bytes, tiles))


# ---------------------------------------------------------------------- going on


def exported(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(train: Train, tmp_path: Path) -> None:
    once = train("--export", tmp_path / "once", storage="once", devices=2)
    first = train("--steps", 4, devices=2)
    assert [_core.State(tmp_path / f"state-{d}").step for d in range(2)] == [4, 4]
    second = train("--export", tmp_path / "twice", devices=2)
    assert (second["start"], second["steps"]) == (4, 6)
    assert first["losses"] + second["losses"] == once["losses"]
    assert second["held_out"]["6"] == once["held_out"]["6"]
    assert exported(tmp_path / "twice") == exported(tmp_path / "once")
    assert once["config"]["train"]["lr"] == 1e-2
    assert once["text_sha256"] == corpora.digest(words(1500))
    assert len(once["devices"]) == 2


def test_ctrl_c_ends_it_between_two_steps(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    once = train(storage="once")
    real, batches = models.loss, iter(range(1000))

    def loss(*given: Any) -> torch.Tensor:
        if next(batches) == 2:  # in the middle of step 2, each of two batches
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(models, "loss", loss)
        train("--export", tmp_path / "model", code=130)
    assert capsys.readouterr().err.splitlines()[-1] == "smart-infinity: error: interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "model").exists()
    assert _core.State(tmp_path / "state-0").step == 2
    second = train()
    assert second["start"] == 2
    assert second["losses"] == once["losses"][2:]


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with training.interruptible() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_state_of_another_run_is_named(
    train: Train, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--steps", 2, tokens="bpe:300")
    capsys.readouterr()

    def refused(said: str, *flags: Any, **options: Any) -> None:
        train(*flags, code=2, **options)
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert line.startswith("smart-infinity: error: ")

    refused("is at step 2 already: give more --steps", "--steps", 2, tokens="bpe:300")
    refused("its parameter", tokens="bpe:300", width=32)
    # Models of the same shapes and other tokens, or other settings.
    text.write_text(words(1500)[::-1])
    refused("was trained on other tokens", tokens="bpe:300")
    text.write_text(words(1500))
    refused("is of another model: model.heads = 2, not 1", tokens="bpe:300", heads=1)
    # With another seed it may go on, but not unheard.
    train("--seed", 1, "--steps", 3, tokens="bpe:300")
    assert "not as it began: seed 0 → 1" in capsys.readouterr().err


# ---------------------------------------------------------------------- what is left


@pytest.mark.parametrize("tokens", ["bytes", "bpe:300"])
def test_an_exported_model_is_the_trained_one(train: Train, tmp_path: Path, tokens: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    found = train("--export", folder, tokens=tokens)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = replace(CONFIG, tokens=tokens)
    data = training.data(config, str(tmp_path / "text"), 0)
    assert tokenizer.encode("12 144 13", add_special_tokens=False) == list(
        data.tokenizer.encode("12 144 13")
    )
    loss = training.evaluate(model, config, data.held_out)
    assert loss == found["held_out"]["6"]


def test_tensorboard_shows_every_step_once(train: Train, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    once = train("--tensorboard", tmp_path / "board", "--steps", 4)
    second = train("--tensorboard", tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    said = torch.tensor([event.value for event in losses])
    assert torch.equal(said, torch.tensor(once["losses"] + second["losses"]))
    assert [event.step for event in events.Scalars("held_out")] == [3, 4, 6]
