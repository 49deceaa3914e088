"""The shaped link by a clock of its own: rates are kept, pauses save nothing up."""

from __future__ import annotations

import threading

import pytest

from smart_infinity import shaper
from smart_infinity.shaper import Bucket, Shaper


class Clock:
    """A time that passes in `sleep` alone, `late` seconds more than asked."""

    def __init__(self) -> None:
        self.now, self.late, self.slept = 100.0, 0.0, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += 1
        self.now += seconds + self.late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(shaper, "time", made)
    return made


def test_bytes_pass_at_the_rate(clock: Clock) -> None:
    bucket = Bucket(1000.0)
    for _ in range(50):
        bucket.take(100)
    # Two milliseconds are given to whoever comes first.
    assert clock.now == pytest.approx(100.0 + 5.0 - 0.002)


def test_a_pause_saves_up_two_milliseconds(clock: Clock) -> None:
    bucket = Bucket(1000.0)
    bucket.take(1000)
    clock.now += 60.0
    begin = clock.now
    bucket.take(1000)
    assert clock.now - begin == pytest.approx(1.0 - 0.002)


def test_sleep_that_overruns_is_made_good(clock: Clock) -> None:
    """An operating system wakes late; the rate is kept all the same."""
    bucket = Bucket(1000.0)
    clock.late = 0.05
    for _ in range(20):
        bucket.take(100)
    # Only the last sleep's overrun is left.
    assert clock.now == pytest.approx(100.0 + 2.0 - 0.002 + 0.05)


def test_no_rate_is_no_wait(clock: Clock) -> None:
    Bucket(0.0).take(1 << 40)
    assert (clock.now, clock.slept) == (100.0, 0)


def test_both_ways_of_a_link_are_apart(clock: Clock) -> None:
    link = Shaper(down=1000.0, up=500.0)
    link.down.take(1000)
    begin = clock.now
    link.up.take(1000)
    assert clock.now - begin == pytest.approx(2.0 - 0.002)
    assert link.active
    assert Shaper(up=1.0).active
    assert not Shaper().active


def test_callers_wait_behind_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that come at one moment are let through one after another."""
    waits: list[float] = []
    lock = threading.Lock()

    class Still:
        def monotonic(self) -> float:
            return 0.0

        def sleep(self, seconds: float) -> None:
            with lock:
                waits.append(seconds)

    monkeypatch.setattr(shaper, "time", Still())
    bucket = Bucket(1000.0)
    callers = [threading.Thread(target=bucket.take, args=(1000,)) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(waits) == 8
    gaps = [b - a for a, b in zip(sorted(waits), sorted(waits)[1:], strict=False)]
    assert min(gaps) == pytest.approx(1.0, abs=0.003)
    assert max(waits) == pytest.approx(8.0, abs=0.02)
