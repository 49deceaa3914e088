"""Building within a budget: what is planned, and that a set in clusters is searched as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shorthaul.errors import UserError

import navis
from navis import building
from navis.datasets.synthetic import clustered
from navis.formats import recall
from navis.groundtruth import exact


def test_a_set_that_fits_is_built_whole() -> None:
    assert building.plan(10_000, 128, 32, 32, None).largest == 0
    assert building.plan(10_000, 128, 32, 32, 64 << 20).largest == 0
    assert building.plan(60_000, 768, 32, 128, 64 << 20).largest > 1000


def test_a_budget_too_small_names_one_that_is_enough() -> None:
    with pytest.raises(UserError, match=r"give (\d+) MiB") as raised:
        building.plan(60_000, 768, 32, 128, 8 << 20)
    enough = int(str(raised.value).split("give ")[1].split()[0])
    assert building.plan(60_000, 768, 32, 128, enough << 20).largest >= 256


def test_rows_of_a_mapped_file_are_read_where_they_lie(tmp_path: Path) -> None:
    rows = np.arange(600, dtype=np.float32).reshape(100, 6)
    np.save(tmp_path / "x.npy", rows)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    part = mapped[10:90][5:]
    name, _ = building.place(part)
    assert name
    assert np.array_equal(building.gather(part, np.array([0, 3, 60])), part[[0, 3, 60]])
    assert building.place(rows) == ("", 0)
    assert building.place(mapped[::2]) == ("", 0)


def test_clusters_are_as_good_as_one_piece(tmp_path: Path) -> None:
    data = clustered(12_000, 96, clusters=60, queries=100)
    np.save(tmp_path / "x.npy", data.base())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    truth = exact(mapped, data.queries, 10)
    with navis.Index.build(tmp_path / "ix", mapped, memory_budget=9_000_000) as index:
        ids, _ = index.search(data.queries, 10, L=60)
        assert recall(ids.astype(np.int64), truth.ids, 10) >= 0.97
        assert index.verify()["faults"] == []
        assert np.array_equal(index.get(np.arange(50)), mapped[:50])


def test_labels_and_values_come_along_in_clusters(tmp_path: Path) -> None:
    base = clustered(8000, 96, clusters=40).base()
    budget = 7_000_000
    assert building.plan(8000, 96, 16, 24, budget).largest > 0
    labels, values = np.arange(8000) % 7, np.arange(8000) / 2
    with navis.Index.build(
        tmp_path / "ix",
        base,
        degree=16,
        build_list=24,
        code_bytes=24,
        labels=labels,
        values=values,
        memory_budget=budget,
    ) as index:
        found, numbers = index.attributes(np.arange(0, 8000, 13))
        assert [one.tolist() for one in found] == [[i % 7] for i in range(0, 8000, 13)]
        assert np.array_equal(numbers, values[::13])
