from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from navis import Index
from navis.serve.metrics import Metrics


def samples(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_the_engine_counts_is_there(client: TestClient, index: Index, rows: Any) -> None:
    client.post("/v1/search", json={"vectors": rows[:5].tolist()})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    for name, value in index.counters().items():
        assert found[f"navis_engine_{name}_total"] == value
    for name, value in index.stats().items():
        if not isinstance(value, str):
            assert found[f"navis_index_{name}"] == value
    assert found["navis_engine_searches_total"] == 5
    assert found["process_resident_memory_bytes"] > 0
    assert 'navis_index_info{dim="16",' in answer.text


def test_two_servers_in_a_process_share_nothing(index: Index) -> None:
    first, second = Metrics(index, "sync"), Metrics(index, "sync")
    first.observe("/v1/search", 200, 0.001)
    assert b"/v1/search" in first.text()
    assert b"/v1/search" not in second.text()
    assert not [m.name for m in REGISTRY.collect() if m.name.startswith("navis")]


@pytest.mark.parametrize("seconds", [0.0004, 3.0, 1000.0])
def test_latencies_fall_into_buckets(index: Index, seconds: float) -> None:
    metrics = Metrics(index, "sync")
    metrics.observe("/v1/search", 200, seconds)
    found = samples(metrics.text().decode())
    assert found["navis_http_request_seconds_sum"] == seconds
