"""Under load: nothing fails, and no stop loses what was acknowledged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from shorthaul.experiments import run

from navis import Index
from navis.experiments import serve_load
from navis.experiments._serving import serving, wrk

pytestmark = pytest.mark.system
needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed (Debian: wrk)")

SHORT = {"set": ["S128", 300, 200], "soak_s": 1, "batch": 1, "stops": 1}
LONG = {"set": ["S128", 20000, 5000], "soak_s": 10, "stops": 3}  # 30 s


@needs_wrk
@pytest.mark.parametrize("settings", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
def test_soak(tmp_path: Path, settings: dict[str, Any]) -> None:
    record = run(
        serve_load.EXPERIMENT, artifact="navis", scale="smoke", root=tmp_path, overrides=settings
    )
    found = record.summary()["metrics"]
    assert found["errors"] == found["lost"] == found["faults"] == 0
    assert found["acknowledged"] > 0
    assert min(found["qps"].values()) > 0


def test_a_loss_would_be_seen(tmp_path: Path, folder: Path, rows: Any) -> None:
    np.save(tmp_path / "rows.npy", rows)

    class Of:
        file = tmp_path / "rows.npy"

    held = np.arange(300, dtype="<u8")
    assert serve_load._lost(folder, Of, held) == (0, 0)  # type: ignore[arg-type]
    with Index.open(folder) as index:
        index.delete([3, 4])
        index.insert([5], rows[6])
    assert serve_load._lost(folder, Of, held) == (3, 0)  # type: ignore[arg-type]


@needs_wrk
def test_no_token_no_answer(folder: Path) -> None:
    """Under load as well: every answer is 401, and the engine is not asked."""
    body = json.dumps({"vector": [0.0] * 16, "k": 1}).encode()
    token, wrong = "correct-horse-battery", "another-long-enough-one"
    with serving(folder, NAVIS_TOKEN=token) as process:
        result = wrk(process.url + "/v1/search", [body], "application/json", 1, wrong)
        headers = {"authorization": f"Bearer {token}"}
        metrics = httpx2.get(f"{process.url}/metrics", headers=headers).text
    assert result["wrong"] == result["requests"] > 0
    assert result["broken"] == 0
    assert "navis_engine_searches_total 0.0" in metrics
    assert 'endpoint="/v1/search",status="200"' not in metrics
