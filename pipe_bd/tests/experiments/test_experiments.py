"""The experiments as a whole: every claim finds its own, and the cheapest runs to the end."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from shorthaul import claims
from shorthaul.experiments import registry, run

from pipe_bd.paths import resource

EXPERIMENTS = registry("pipe_bd.experiments")


def test_every_claim_names_an_experiment_that_has_its_scales() -> None:
    with Path(str(resource("claims.toml"))).open("rb") as f:
        assert tomllib.load(f)["claim"]
    for claim in claims.load(Path(str(resource("claims.toml")))):
        if claim.reproduced == "impossible":
            continue
        experiment = EXPERIMENTS[claim.experiment]
        gated = [s for s in claim.scales if s != "paper"]
        assert set(gated) <= set(experiment.scales), claim.id


def test_every_experiment_says_how_long_it_takes() -> None:
    for experiment in EXPERIMENTS.values():
        assert {"smoke", "small"} <= set(experiment.scales), experiment.id
        assert set(experiment.scales) == set(experiment.minutes), experiment.id


def test_the_planners_experiment_meets_its_claims(tmp_path: Path) -> None:
    record = run(EXPERIMENTS["planner_exact"], artifact="pipe_bd", scale="smoke", root=tmp_path)
    assert (record.path / "figures" / "planner_time.csv").exists()
    found = claims.load(Path(str(resource("claims.toml"))))
    mine = [c for c in found if c.experiment == "planner_exact" and c.kind == "count"]
    verdicts = claims.check(mine, tmp_path, "pipe_bd")
    assert [v.status for v in verdicts] == ["passed"] * len(mine)


@pytest.mark.parametrize("id", ["exactness", "block_library"])
def test_small_real_runs_meet_their_counts(id: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[id]
    metrics = run(experiment, artifact="pipe_bd", scale="smoke", root=tmp_path).summary()["metrics"]
    if id == "exactness":
        assert metrics["not_bitwise"] == 0
        assert metrics["miscounted"] == 0
    else:
        assert metrics["toy-library"]["bitwise_equal_to_alone"]
        assert metrics["toy-library"]["teacher_calls_separate_over_shared"] == 4
