"""Runbooks as the big-ann benchmarks write them, and what is wrong with others."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul.errors import EnvironmentLack, UserError

from navis.formats._ranges import Ranges
from navis.formats.runbook import Delete, Insert, Replace, Runbook, Search, load_runbook

GOOD = """
some-30M-clustered:
  max_pts: 100
  # comments are common
  1:
    operation: "insert"
    start: 0
    end: 60
  2: {operation: search}
  3:
    end: 90
    operation: insert
    start: 60
  4: {operation: delete, start: 10, end: 30}
  5: {operation: replace, tags_start: 40, tags_end: 50, ids_start: 200, ids_end: 210}
  6: {operation: insert, start: 10, end: 20}
  7: {operation: 'search'}
  gt_url: "https://example.org/truth"
other:
  max_pts: 5
  0: {operation: insert, start: 0, end: 5}
"""


def load(folder: Path, text: str, dataset: str | None = None) -> Runbook:
    path = folder / "runbook.yaml"
    path.write_text(text)
    return load_runbook(path, dataset)


def test_steps_come_typed_and_in_order(tmp_path: Path) -> None:
    book = load(tmp_path, GOOD, "some-30M-clustered")
    assert [step.number for step in book.steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [step.does for step in book.steps] == [
        Insert(0, 60),
        Search(),
        Insert(60, 90),
        Delete(10, 30),
        Replace(40, 50, 200, 210),
        Insert(10, 20),
        Search(),
    ]
    assert [step.does.operation for step in book.steps][3:5] == ["delete", "replace"]
    assert book.steps[1].truth_name() == "step2.gt100"
    assert (book.dataset, book.max_pts) == ("some-30M-clustered", 100)
    assert (book.rows, book.peak) == (210, 90)
    assert book.gt_url == "https://example.org/truth"


def test_steps_may_start_at_zero_and_the_only_data_set_needs_no_name(tmp_path: Path) -> None:
    book = load(tmp_path, GOOD.partition("\nother:")[2].join(["other:", ""]))
    assert book.steps[0].number == 0
    assert book.gt_url == ""
    with pytest.raises(
        UserError, match="several data sets; name one of: some-30M-clustered, other"
    ):
        load(tmp_path, GOOD)
    with pytest.raises(UserError, match="no data set 'third'"):
        load(tmp_path, GOOD, "third")


def one(**entries: Any) -> str:
    steps = {(int(key[1:]) if key[0] == "s" else key): value for key, value in entries.items()}
    return yaml.safe_dump({"set": {"max_pts": 50, **steps}}, sort_keys=False)


INSERT = {"operation": "insert", "start": 0, "end": 20}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("a: [1, 2", "not YAML"),
        ("- 1", "not a runbook"),
        ("set: 3", "holds no steps"),
        ("set: {1: {operation: search}}", "max_pts is None"),
        ("set: {max_pts: many}", "max_pts is 'many'"),
        ("set: {max_pts: true}", "max_pts is True"),
        (one(), "first step is missing"),
        (one(s2=INSERT), "first step is 2"),
        (one(s1=INSERT, s3={"operation": "search"}), "step 2 is missing"),
        (one(s1=INSERT, extra=[]), "unknown key 'extra'"),
        (one(s1=INSERT) + "  1: {operation: search}\n", "1 is there twice"),
        (one(s1=7), "step 1: no operation"),
        (one(s1={"start": 0}), "step 1: no operation"),
        (one(s1={"operation": "upsert"}), "step 1: unknown operation 'upsert'; use insert, delete"),
        (one(s1={**INSERT, "size": 3}), "step 1: insert has an unknown key 'size'"),
        (one(s1={"operation": "search", "k": 3}), "it takes nothing"),
        (one(s1={"operation": "insert", "start": 0}), "step 1: insert has end None"),
        (one(s1={**INSERT, "start": -1}), "step 1: insert has start -1"),
        (one(s1={**INSERT, "start": 1.5}), "step 1: insert has start 1.5"),
        (one(s1={**INSERT, "end": True}), "step 1: insert has end True"),
        (one(s1={**INSERT, "start": 20}), "step 1: insert has start 20 and end 20"),
        (one(s1={**INSERT, "end": 51}), "step 1: 51 vectors are there, max_pts is 50"),
        (
            one(s1=INSERT, s2={"operation": "insert", "start": 15, "end": 30}),
            "step 2: inserts 15 to 19, which are there already",
        ),
        (
            one(s1=INSERT, s2={"operation": "delete", "start": 15, "end": 21}),
            "step 2: tag 20 is not there",
        ),
        (one(s1={"operation": "delete", "start": 3, "end": 4}), "step 1: tag 3 is not there"),
        (
            one(
                s1=INSERT,
                s2={
                    "operation": "replace",
                    "tags_start": 0,
                    "tags_end": 5,
                    "ids_start": 0,
                    "ids_end": 4,
                },
            ),
            "step 2: replaces 5 tags by 4 ids",
        ),
        (
            one(
                s1=INSERT,
                s2={
                    "operation": "replace",
                    "tags_start": 18,
                    "tags_end": 22,
                    "ids_start": 0,
                    "ids_end": 4,
                },
            ),
            "step 2: tag 20 is not there",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_step(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "runbook.yaml") in str(error.value)


def test_a_missing_file_and_one_that_runs_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_runbook(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="not YAML"):
        load(tmp_path, "!!python/object/apply:os.system ['true']")


def test_without_pyyaml_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(EnvironmentLack, match="pip install PyYAML"):
        load(tmp_path, GOOD)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 30), st.integers(1, 9)),
        max_size=30,
    )
)
def test_ranges_are_a_set_of_numbers(steps: list[tuple[str, int, int]]) -> None:
    ranges, wanted = Ranges(), set[int]()
    for what, start, length in steps:
        numbers = set(range(start, start + length))
        fits = not (numbers & wanted) if what == "add" else numbers <= wanted
        if fits:
            getattr(ranges, what)(start, start + length, "step")
            wanted = wanted | numbers if what == "add" else wanted - numbers
        else:
            with pytest.raises(UserError, match="step: "):
                getattr(ranges, what)(start, start + length, "step")
        held = [range(a, b) for a, b in zip(ranges.starts, ranges.ends, strict=True)]
        assert {n for r in held for n in r} == wanted
        assert all(a.stop < b.start for a, b in pairwise(held))
