"""Traces: recorded as the engine follows lists, kept exactly, replayed as caches behave."""

from __future__ import annotations

import collections
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shorthaul.errors import EnvironmentLack, ShorthaulError, UserError

import navis
from navis import traces
from navis.errors import Corrupt


def trace_of(*paths: list[int], lists: int = 100) -> traces.Trace:
    ids = np.array([i for path in paths for i in path], np.uint64)
    return traces.Trace(ids, np.array([len(p) for p in paths], np.uint32), lists, 40)


def test_a_trace_is_what_the_engine_follows(tmp_path: Path, base: Any, queries: Any) -> None:
    first = 2**40  # ids are 64 bits wide
    with navis.Index.build(tmp_path / "ix", base[:800], np.arange(first, first + 800)) as index:
        for seek in (False, True):
            trace = traces.record(index, queries, 30, seek=seek)
            assert (len(trace.counts), trace.lists, trace.L, trace.seek) == (50, 800, 30, seek)
            paths = np.split(trace.ids, np.cumsum(trace.counts)[:-1])
            for path, wanted in zip(paths, index.trace(queries, 30, seek=seek), strict=True):
                assert np.array_equal(path, wanted)
            traces.write(tmp_path / "t", trace)
            again = traces.read(tmp_path / "t")
            assert np.array_equal(again.ids, trace.ids)
            assert np.array_equal(again.counts, trace.counts)
            assert (again.lists, again.L, again.seek) == (800, 30, seek)
        with navis.Index.open(index.path, readonly=True, cache="none") as plain:
            before = plain.counters()["search_expansions"]
            plain.search(queries, 10, L=30)
            expanded = plain.counters()["search_expansions"] - before
            searched = traces.record(plain, queries, 30)
        assert len(searched.ids) == expanded


def test_depth_counts_within_a_traversal() -> None:
    trace = trace_of([5, 6, 7], [], [5], [9, 5])
    assert trace.depths().tolist() == [0, 1, 2, 0, 0, 1]


def lru_hits(ids: list[int], room: int) -> list[bool]:
    kept: collections.OrderedDict[int, None] = collections.OrderedDict()
    hits = []
    for i in ids:
        hits.append(i in kept)
        kept[i] = None
        kept.move_to_end(i)
        if len(kept) > room:
            kept.popitem(last=False)
    return hits


def test_a_replay_of_lru_is_the_textbook_s() -> None:
    random = np.random.default_rng(0)
    paths = [(random.zipf(1.4, 20) % 60).tolist() for _ in range(200)]
    trace = trace_of(*paths)
    flat = [i for path in paths for i in path]
    rooms = [1, 7, 30]
    for room, found in zip(rooms, traces.replay(trace, rooms, ["lru", "none"]), strict=True):
        hits = lru_hits(flat, room)
        assert found.entries == room
        assert found.cold["lru"] == pytest.approx(np.mean(hits))
        assert found.hit_ratio["lru"] == pytest.approx(np.mean(hits[len(hits) // 2 :]))
        assert found.cold["none"] == found.hit_ratio["none"] == 0


def test_frequency_beats_recency_where_scans_are_mixed_in() -> None:
    random = np.random.default_rng(1)
    paths = [[*random.integers(0, 20, 10), *random.integers(100, 5000, 20)] for _ in range(300)]
    (found,) = traces.replay(trace_of(*paths), [25], ["lfu", "lru"])
    assert found.hit_ratio["lfu"] > 2 * found.hit_ratio["lru"] > 0


def test_a_cache_for_all_hits_all_but_the_first_time() -> None:
    trace = trace_of([1, 2, 3], [3, 2, 1], lists=3)
    for room in (3, 10**9):
        (found,) = traces.replay(trace, [room], ["lfu", "lru"])
        assert found.hit_ratio == {"lfu": 1.0, "lru": 1.0}
        assert found.cold == {"lfu": 0.5, "lru": 0.5}
    with pytest.raises(UserError, match="no access"):
        traces.replay(trace_of(), [1], ["lru"])


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    traces.write(path, trace_of([1, 2, 3], [4]))
    whole = path.read_bytes()
    assert len(whole) == 64 + 2 * 4 + 4 * 8
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(ShorthaulError, match=r"t\.trace"):
            traces.read(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises((Corrupt, UserError), match=r"t\.trace"):
            traces.read(path)
    newer = whole[:8] + struct.pack("<I", 2) + whole[12:60]
    path.write_bytes(newer + struct.pack("<I", zlib.crc32(newer)) + whole[64:])
    with pytest.raises(EnvironmentLack, match="newer navis"):
        traces.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        traces.read(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be written"):
        traces.write(path / "below-a-file", trace_of([1]))
