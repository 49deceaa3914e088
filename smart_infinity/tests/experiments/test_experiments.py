"""Every experiment is whole; the quick ones run to their end and find what their claims name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shorthaul import claims
from shorthaul.experiments import registry, run

from smart_infinity.paths import resource

EXPERIMENTS = registry("smart_infinity.experiments")
CLAIMS = claims.load(resource("claims.toml"))

TINY: dict[str, dict[str, Any]] = {
    "exactness": {
        "cases": ["adamw"], "sizes": [7, 9, 1023], "steps": 3,
        "setups": [["avx2", 1, 1024], ["generic", 2, 2048]], "tool_devices": 1, "tool_steps": 4,
    },
    "link_bytes": {
        "params": (1 << 18) + 3, "devices": 1, "tile": 1 << 16, "steps": 1,
        "transports": ["shared memory"],
    },
    "overlap": {
        "params": 1 << 20, "tile": 1 << 16, "rounds": 1, "width": 256, "layers": 4, "forwards": 2,
    },
    "kernels": {"elements": 1 << 16, "repeats": 1, "rounds": 1, "tiles": 1, "media_mib": 64},
    "endurance": {"params": 1 << 20, "devices": 1, "steps": 1, "kinds": ["adagrad"]},
    "pretraining": {"train": {"steps": 4, "batch": 2, "lr": 1e-3}, "dense_steps": 2},
}  # fmt: skip

# Counts that hold at any size, of those above.
COUNTS = {
    "exactness": ["avx2-has-torchs-bits", "scalar-code-has-torchs-bits", "tools-have-torchs-bits"],
    "link_bytes": ["link-bytes-equal-the-formula", "media-bytes-equal-the-kernels-count"],
    "kernels": ["topk-is-exact"],
    "overlap": ["parameters-before-moments"],
    "pretraining": ["pretraining-dense-is-torchs"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_every_claim_names_an_experiment_that_has_its_scales() -> None:
    for claim in CLAIMS:
        if claim.reproduced == "impossible":
            continue
        gated = {scale for scale in claim.scales if scale != "paper"}
        assert gated <= set(EXPERIMENTS[claim.experiment].scales), claim.id


def test_every_experiment_has_claims_and_says_how_long_it_takes() -> None:
    claimed = {claim.experiment for claim in CLAIMS}
    for experiment in EXPERIMENTS.values():
        assert experiment.id in claimed, experiment.id
        assert {"smoke", "small"} <= set(experiment.scales), experiment.id
        assert set(experiment.scales) == set(experiment.minutes), experiment.id
        assert experiment.minutes["smoke"] <= 3, experiment.id


@pytest.mark.parametrize("id", sorted(TINY))
def test_it_runs_and_finds_what_its_claims_name(id: str, root: Path) -> None:
    record = run(
        EXPERIMENTS[id], artifact="smart_infinity", scale="smoke", root=root, overrides=TINY[id]
    )
    summary = record.summary()
    mine = [claim for claim in CLAIMS if claim.experiment == id]
    for claim in mine:
        claims.find(summary["metrics"], claim.metric)
    assert list((record.path / "tables").glob("*.csv"))
    if summary["figures"]:
        assert list((record.path / "figures").glob("*.svg"))
    assert not (record.path / "work").exists()
    verdicts = claims.check([c for c in mine if c.id in COUNTS.get(id, [])], root, "smart_infinity")
    assert {v.claim.id: v.status for v in verdicts} == dict.fromkeys(COUNTS.get(id, []), "passed")


# What these two rest on has tests of its own, here and in tests/system.
@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("id", ["crash", "memory"])
def test_the_long_ones_run_too(id: str, root: Path) -> None:
    record = run(EXPERIMENTS[id], artifact="smart_infinity", scale="smoke", root=root)
    for claim in (claim for claim in CLAIMS if claim.experiment == id):
        claims.find(record.summary()["metrics"], claim.metric)
