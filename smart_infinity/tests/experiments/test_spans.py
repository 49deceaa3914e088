"""The arithmetic that overlap is judged by."""

from __future__ import annotations

import json
from pathlib import Path

from smart_infinity.experiments import _spans

# Two tiles: the second is read while the first is written.
OVERLAPPED = [
    ["read", 0, 0.0, 1.0], ["update", 0, 1.0, 1.5], ["hand_up", 0, 1.5, 1.5],
    ["write_parameters", 0, 1.5, 2.0], ["write_moments", 0, 1.5, 3.0],
    ["read", 1, 1.0, 2.5], ["update", 1, 2.5, 3.0], ["hand_up", 1, 3.0, 3.0],
    ["write_parameters", 1, 3.0, 3.5], ["write_moments", 1, 3.0, 4.0],
]  # fmt: skip
SERIAL = [
    ["read", 0, 0.0, 1.0], ["update", 0, 1.0, 1.5], ["write_moments", 0, 1.5, 2.0],
    ["read", 1, 2.0, 3.0], ["update", 1, 3.0, 3.5], ["write_moments", 1, 3.5, 4.0],
]  # fmt: skip


def test_a_second_counts_once() -> None:
    assert _spans.union([(2.0, 3.0), (0.0, 1.0), (0.5, 1.5)]) == [(0.0, 1.5), (2.0, 3.0)]
    assert _spans.length([(0.0, 2.0), (1.0, 3.0)]) == 3.0
    assert _spans.both([(0.0, 2.0)], [(1.0, 3.0), (1.5, 4.0)]) == 1.0


def test_reads_and_writes_together() -> None:
    found = _spans.together(OVERLAPPED)
    assert found == {"time": 1.0 / 4.0, "tiles": 0.5}  # 1.5 to 2.5, of 0 to 4
    assert _spans.together(SERIAL) == {"time": 0.0, "tiles": 0.0}
    assert _spans.together([]) == {"time": 0.0, "tiles": 0.0}


def test_a_tile_does_not_overlap_itself() -> None:
    assert _spans.together([["read", 0, 0.0, 2.0], ["write_moments", 0, 1.0, 3.0]])["tiles"] == 0


def test_who_had_parameters_before_their_moments_were_written() -> None:
    assert _spans.handed_up_first(OVERLAPPED, {0: 1.6, 1: 4.5}) == (2, 1, 2)
    assert _spans.handed_up_first(OVERLAPPED, {0: 3.1, 1: 4.5}) == (2, 0, 2)
    lazy = [["hand_up", 1, 4.0, 4.0] if one[:2] == ["hand_up", 1] else one for one in OVERLAPPED]
    assert _spans.handed_up_first(lazy, {0: 1.6, 1: 4.5}) == (1, 1, 2)


def test_what_is_in_flight() -> None:
    assert _spans.in_flight(OVERLAPPED, 1.75, "write_moments") == 1
    assert _spans.in_flight(OVERLAPPED, 3.0, "write_moments") == 1  # the end is no longer
    assert _spans.in_flight(OVERLAPPED, 4.0, "write_moments") == 0


def test_the_trace_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    _spans.write_trace(path, [OVERLAPPED, SERIAL], [("step", 0.0, 4.0)])
    events = json.loads(path.read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    assert len([event for event in events if event["ph"] == "X"]) == 1 + 10 + 6
    assert list(tmp_path.iterdir()) == [path]
