import threading
from pathlib import Path

import pytest
from shorthaul import atomic, trace
from shorthaul.errors import UserError


def test_events_as_viewers_want_them(tmp_path: Path) -> None:
    tracer = trace.Tracer(2, "rank 2")
    tracer.span("forward", "compute", 1.0, 1.5, block=3)
    tracer.instant("loaded", "data", 2.0)
    tracer.counter("queue", 2.5, depth=4)
    tracer.write(tmp_path / "trace.json")
    events = atomic.read_json(tmp_path / "trace.json")["traceEvents"]
    meta = {(e["name"], e["args"]["name"]) for e in events if e["ph"] == "M"}
    assert meta == {
        ("process_name", "rank 2"),
        ("thread_name", "compute"),
        ("thread_name", "data"),
    }
    span = next(e for e in events if e["ph"] == "X")
    assert (span["ts"], span["dur"], span["args"]) == (1e6, 0.5e6, {"block": 3})
    instant = next(e for e in events if e["ph"] == "i")
    assert instant["tid"] != span["tid"]
    counter = next(e for e in events if e["ph"] == "C")
    assert (counter["args"], counter["pid"]) == ({"depth": 4}, 2)


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    tracer = trace.Tracer(0, "rank 0", enabled=False)
    tracer.span("a", 0, 0, 1)
    tracer.instant("a", 0, 0)
    tracer.counter("a", 0, x=1)
    tracer.write(tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()


def test_streams_named_by_threads_at_once_are_distinct() -> None:
    tracer = trace.Tracer(0, "rank 0")
    threads = [
        threading.Thread(target=tracer.span, args=("s", f"stream-{n}", 0, 1)) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tids = [event["tid"] for event in tracer.events() if event["name"] == "thread_name"]
    assert len(set(tids)) == 20


def test_merge_joins_ranks_and_may_write_over_one(tmp_path: Path) -> None:
    paths = []
    for rank in range(3):
        tracer = trace.Tracer(rank, f"rank {rank}")
        tracer.span("s", 0, 0, 1)
        tracer.write(tmp_path / f"{rank}.json")
        paths.append(tmp_path / f"{rank}.json")
    trace.merge(paths, paths[0])
    events = atomic.read_json(paths[0])["traceEvents"]
    assert sorted(e["pid"] for e in events if e["ph"] == "X") == [0, 1, 2]


def test_merge_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json"):
        trace.merge([tmp_path / "none.json"], tmp_path / "out.json")
