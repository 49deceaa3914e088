import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthaul import stats

TIMES = st.lists(st.floats(0.001, 1000), min_size=1, max_size=40)


@given(TIMES)
def test_interval_holds_the_median(values: list[float]) -> None:
    low, high = stats.median_interval(values)
    assert min(values) <= low <= stats.median(values) <= high <= max(values)


def test_interval_narrows_with_more_values() -> None:
    assert stats.median_interval([1, 2, 3]) == (1, 3)
    assert stats.median_interval(list(range(6))) == (0, 5)
    # The textbook's: for 20 values the 6th and the 15th bound the median with 95.9 %.
    assert stats.median_interval(list(range(1, 21))) == (6, 15)


@given(TIMES)
def test_a_system_against_itself_has_no_noise(values: list[float]) -> None:
    assert stats.noise(values, values)["spread"] == 0


def test_paired_ratio_ignores_drift_both_share() -> None:
    a, b = [2, 20, 200], [1, 10, 100]
    assert stats.paired_ratio(a, b) == {"median": 2, "low": 2, "high": 2}


def test_noise_is_the_farthest_from_one() -> None:
    assert stats.noise([1.0, 0.5, 1.0], [1.0, 1.0, 1.0])["spread"] == 0.5


@pytest.mark.parametrize(("a", "b"), [([1], [1, 2]), ([], []), ([1], [0])])
def test_pairs_that_are_none(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError):
        stats.paired_ratio(a, b)


def test_interleave_alternates_and_drops_the_warmup() -> None:
    calls: list[str] = []

    def runner(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = stats.interleave({"a": lambda: runner("a"), "b": lambda: runner("b")}, 2, warmup=1)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_interleave_wants_a_repetition() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        stats.interleave({}, 0)


def test_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        stats.median([])
