"""Every experiment runs to its end, tiny, and finds what its claims name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul import claims
from shorthaul.experiments import registry, run

from navis.datasets.synthetic import clustered
from navis.datasets.wordnet import WordNet
from navis.experiments import _store
from navis.paths import resource

EXPERIMENTS = registry("navis.experiments")
CLAIMS = claims.load(resource("claims.toml"))

# The sets are those the claims name, so that every path is there; their sizes are not.
TINY: dict[str, dict[str, Any]] = {
    "io_formula": {"dims": [128, 768], "rows": [400, 300], "inserts": 24, "queries": 10},
    "insert_throughput": {
        "sets": {"S768": [300, 60], "S1536": [260, 60]}, "queries": 20, "budget": 20.0,
        "beams": [4, 8], "tuning": 2, "inserts": 20, "inserts_beside": 20, "seconds": 0.1,
    },
    "wordnet_inserts": {
        "sets": {"W768": [300, 40]}, "queries": 20, "budget": 20.0, "inserts": 16,
        "inserts_beside": 16, "seconds": 0.1,
    },
    "rerank": {
        "sets": {"S128": [300, 0], "S768": [300, 40], "W384": [300, 0]},
        "queries": {"S128": 20, "S768": 20, "W384": 20}, "margins": [0.8, 1.0],
    },
    "page_sharing": {"sets": {"S768": [300, 60], "S128": [300, 60]}, "queries": 10},
    "recall_over_time": {
        "set": ["S128", 400, 120], "queries": 20, "batch": 60, "fresh_every": 120, "sample": 20,
    },
    "drift": {"far": [500, 40], "queries": 20, "words": [0, 20]},
    "cache_policies": {
        "set": ["S128", 400, 40], "queries": 200, "burst": 20, "live_inserts": 20,
    },
    "serve_load": {"set": ["S128", 300, 200], "soak_s": 1, "batch": 1},
    "memory_budget": {
        "set": ["S768", 300, 40], "queries": 20, "inserts": 32, "budgets_mib": [4, 24],
        "claimed_mib": 24,
    },
    "ablation": {
        "sets": {"S128": [400, 40], "S768": [300, 40]}, "queries": 20, "inserts": 24,
        "budgets": {"S128": 60.0, "S768": 30.0},
    },
    "crash": {"set": ["S128", 400, 1200], "queries": 20, "rounds": 2, "steps": 20},
    "delete": {"set": ["S128", 400], "queries": 20},
    "filters": {"set": ["S128", 400], "queries": 20, "longest": 80},
    "threads": {"set": ["S128", 400, 160], "queries": 20, "inserts": 128, "budget": 60.0},
    "peers": {
        "sets": {"S128": 400, "W384": 300}, "queries": 20, "L": [10, 20],
        "code_bytes": {"S128": 32, "W384": 48}, "budgets": {"S128": 60.0, "W384": 30.0},
        "systems": ["navis", "diskannpy-rust", "faiss"], "against": "faiss",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for embedded glosses: what is real about them is tested where they are made."""

    def stub(folder: Path, *, layers: int = 1, limit: int | None = None) -> WordNet:
        rows = limit or 420
        vectors = clustered(rows, 384 * layers, clusters=20, queries=0).base()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ends = [0, *(rows * part // 100 for part in (70, 82, 97)), rows]
        parts = dict(zip(("noun", "verb", "adj", "adv"), pairwise(ends), strict=True))
        return WordNet(vectors, ("",) * rows, parts, folder)

    monkeypatch.setattr(_store, "wordnet", stub)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_every_claim_names_an_experiment_that_has_its_scales() -> None:
    for claim in CLAIMS:
        if claim.reproduced == "impossible":
            continue
        gated = {scale for scale in claim.scales if scale != "paper"}
        assert gated <= set(EXPERIMENTS[claim.experiment].scales), claim.id


def test_every_experiment_says_how_long_it_takes_and_is_tried_here() -> None:
    assert set(TINY) == set(EXPERIMENTS)
    for experiment in EXPERIMENTS.values():
        assert {"smoke", "small"} <= set(experiment.scales), experiment.id
        assert set(experiment.scales) == set(experiment.minutes), experiment.id


def test_the_demo_is_short() -> None:
    demo = {claim.experiment for claim in CLAIMS if claim.demo}
    assert 1 <= len(demo) <= 3
    assert sum(EXPERIMENTS[id].minutes["small"] for id in demo) <= 8


# Those that take ten seconds and more even so; what they rest on has tests of its own.
_SLOW = {"crash", "insert_throughput", "peers", "serve_load"}


@pytest.mark.parametrize(
    "id",
    [pytest.param(id, marks=pytest.mark.slow) if id in _SLOW else id for id in sorted(TINY)],
)
def test_it_runs_and_finds_what_its_claims_name(id: str, root: Path) -> None:
    record = run(EXPERIMENTS[id], artifact="navis", scale="smoke", root=root, overrides=TINY[id])
    summary = record.summary()
    mine = [claim for claim in CLAIMS if claim.experiment == id]
    assert mine or id in ("wordnet_inserts",), "an experiment without a claim"
    for claim in mine:
        claims.find(summary["metrics"], claim.metric)
    assert list((record.path / "tables").glob("*.csv"))
    assert list((record.path / "figures").glob("*.svg"))
    assert not (record.path / "work").exists()


def test_counts_that_hold_at_any_size(root: Path) -> None:
    for id in ("io_formula", "recall_over_time", "drift"):
        run(EXPERIMENTS[id], artifact="navis", scale="smoke", root=root, stamp="again",
            overrides=TINY[id])  # fmt: skip
    wanted = {"read-counters-equal-the-kernel", "search-requests-follow-the-formula",
              "no-wrong-answers", "entrance-reads-nothing"}  # fmt: skip
    verdicts = claims.check([c for c in CLAIMS if c.id in wanted], root, "navis")
    assert {v.claim.id: v.status for v in verdicts} == dict.fromkeys(wanted, "passed")
