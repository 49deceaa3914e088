"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import smart_infinity
from smart_infinity import SmartOptimizer, _core

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
EXAMPLE = ROOT / "examples" / "trainer.py"


def test_the_quick_start_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in BLOCKS if block.startswith("import torch")]
    for steps in (10, 20):
        exec(compile(code, "README.md", "exec"), {})
        assert [_core.State(tmp_path / f"state-{d}").step for d in range(2)] == [steps, steps]


def test_the_trainer_example_is_the_file_and_short() -> None:
    text = EXAMPLE.read_text()
    assert text in BLOCKS
    assert len(text.splitlines()) <= 30


class Torchs(torch.optim.AdamW):
    """torch's own optimizer in the example's place for ours."""

    def __init__(self, params: Any, lr: float, devices: Any) -> None:
        super().__init__(params, lr=lr, fused=True)

    def __enter__(self) -> Torchs:
        return self

    def __exit__(self, *error: object) -> None: ...


def run_example(work: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["trainer.py", str(work), str(steps)])
    return runpy.run_path(str(EXAMPLE), run_name="__main__")


def checkpoint(work: Path, step: int) -> tuple[bytes, dict[str, Any]]:
    folder = work / "checkpoints" / f"checkpoint-{step}"
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return (folder / "model.safetensors").read_bytes(), state


def test_the_trainer_example_trains_checkpoints_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a step that no checkpoint has, it ends as torch's optimizer does at one go."""
    with monkeypatch.context() as patch:
        patch.setattr(smart_infinity, "SmartOptimizer", Torchs)
        run_example(tmp_path / "torch", 6, monkeypatch)
    expected, theirs = checkpoint(tmp_path / "torch", 6)
    ours = tmp_path / "ours"
    real = SmartOptimizer.step

    def stopped(self: SmartOptimizer, closure: Any = None) -> Any:
        if self.steps[0] == 5:
            raise KeyboardInterrupt
        return real(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(SmartOptimizer, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_example(ours, 6, monkeypatch)
    assert _core.State(ours / "state-0").step == 5
    assert [path.name for path in (ours / "checkpoints").iterdir()] == ["checkpoint-3"]
    run_example(ours, 6, monkeypatch)
    assert [_core.State(ours / f"state-{d}").step for d in range(2)] == [6, 6]
    found, mine = checkpoint(ours, 6)
    assert found == expected
    for i, one in theirs.items():
        for name, value in one.items():
            assert torch.equal(mine[i][name], value), (i, name)
