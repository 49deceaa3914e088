from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthaul import claims
from shorthaul.claims import Claim, Expect, Verdict
from shorthaul.errors import UserError
from shorthaul.experiments import Experiment, Summary
from shorthaul.records import Run

NUMBERS = st.floats(-1e6, 1e6)


@given(of=NUMBERS, rel=st.floats(0, 1), value=NUMBERS)
def test_rel_is_symmetric_about_its_value(of: float, rel: float, value: float) -> None:
    expect = Expect(rel=rel, of=of)
    assert expect.holds(of)
    assert expect.holds(value) == (abs(value - of) <= rel * abs(of))
    assert Expect(rel=rel, of=-of).holds(-value) == expect.holds(value)


@given(value=NUMBERS, low=NUMBERS, high=NUMBERS)
def test_min_and_max_bound(value: float, low: float, high: float) -> None:
    assert Expect(min=low, max=high).holds(value) == (
        Expect(min=low).holds(value) and Expect(max=high).holds(value)
    )
    assert Expect(min=low).holds(low)
    assert Expect(max=high).holds([high, high])


@given(st.lists(st.integers(), min_size=2, unique=True))
def test_monotone_is_strict(values: list[int]) -> None:
    up, down = Expect(monotone="increasing"), Expect(monotone="decreasing")
    assert up.holds(sorted(values))
    assert down.holds(sorted(values, reverse=True))
    assert up.holds(values) == (values == sorted(values))
    assert not up.holds([*sorted(values), max(values)])


@pytest.mark.parametrize(
    ("expect", "value", "holds"),
    [
        (Expect(exact=12), 12, True),
        (Expect(exact=12), 12.0, True),
        (Expect(exact=12), 13, False),
        (Expect(exact=True), True, True),
        (Expect(exact=True), 1, False),
        (Expect(exact=1), True, False),
        (Expect(exact=[1, 2]), [1, 2], True),
        (Expect(exact=[1, 2]), [1], False),
        (Expect(exact="ahd"), "ahd", True),
        (Expect(min=3), [3, 2], False),
        (Expect(min=3), None, False),
        (Expect(min=0), True, False),
        (Expect(min=0), "4", False),
        (Expect(min=0), [], False),
        (Expect(monotone="increasing"), [1], False),
        (Expect(monotone="increasing"), 3, False),
    ],
)
def test_what_holds(expect: Expect, value: Any, holds: bool) -> None:
    assert expect.holds(value) is holds


@pytest.mark.parametrize(
    "given", [{}, {"rel": 0.1}, {"of": 1.0}, {"exact": 1, "min": 1}, {"min": 1.0, "rel": 0.1}]
)
def test_forms_that_are_none(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expect has"):
        Expect(**given)


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        (Expect(exact=1234567), "= 1\u202f234\u202f567"),
        (Expect(rel=0.1, of=4.0), "4 ± 10 %"),
        (Expect(min=3.0), "≥ 3"),
        (Expect(max=1.15), "≤ 1.15"),
        (Expect(min=1.0, max=2.0), "1 to 2"),
        (Expect(monotone="decreasing"), "decreasing"),
    ],
)
def test_bands_in_words(expect: Expect, words: str) -> None:
    assert str(expect) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (True, "yes"),
        (3.14159, "3.142"),
        (4194304.5, "4\u202f194\u202f304"),
        (1e-7, "1e-07"),
        ([1, 2], "1, 2"),
        (list(range(9)), "0, 1, 2, 3, 4, 5, … (9)"),
        ("1+1+2", "1+1+2"),
    ],
)
def test_values_in_words(value: Any, words: str) -> None:
    assert claims.show(value) == words


CLAIM = """
[[claim]]
id = "fill"
says = "Decoupled updates remove the fill"
source = "section IV"
experiment = "virtual_devices"
metric = "ratio.tr_over_dpu"
expect = { min = 3 }
paper = "not reported alone"
"""


def load(tmp_path: Path, text: str) -> list[Claim]:
    (tmp_path / "claims.toml").write_text(text)
    return claims.load(tmp_path / "claims.toml")


def test_load_with_defaults(tmp_path: Path) -> None:
    (claim,) = load(tmp_path, CLAIM)
    assert claim.expect == Expect(min=3.0)
    assert (claim.kind, claim.headline, claim.demo, claim.reproduced) == (
        "count",
        False,
        False,
        "real",
    )
    assert claim.scales == ("smoke", "small", "paper")


def test_load_with_everything(tmp_path: Path) -> None:
    more = 'kind = "time"\nheadline = true\ndemo = true\nscales = ["small"]\n'
    more += 'reproduced = "virtual"\nwhy = "w"'
    (claim,) = load(tmp_path, CLAIM + more)
    assert (claim.kind, claim.headline, claim.demo, claim.scales) == (
        "time",
        True,
        True,
        ("small",),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CLAIM + 'pape = "x"', "claim fill: unknown key 'pape'; did you mean 'paper'?"),
        (CLAIM.replace("min", "mim"), "unknown key 'expect.mim'; did you mean 'min'?"),
        (CLAIM.replace("3", '"3"'), "expect.min = '3' is not"),
        (CLAIM.replace("{ min = 3 }", "{ }"), "expect has nothing"),
        (CLAIM.replace("{ min = 3 }", "3"), "expect"),
        (CLAIM.replace('source = "section IV"', ""), "source is missing"),
        (CLAIM.replace('experiment = "virtual_devices"', ""), "experiment, metric and expect"),
        (CLAIM + CLAIM, "two claims are called 'fill'"),
        (CLAIM + 'kind = "speed"', "kind = 'speed'"),
        (CLAIM + 'scales = ["tiny"]', "'tiny'"),
        (CLAIM + 'reproduced = "impossible"', "impossible: wants why"),
        ("[[claims]]", "unknown key 'claims'"),
        ("[[claim]", "not TOML"),
        (CLAIM.replace("[[claim]]", "[claim]"), "written [[claim]]"),
        ("claim = [1]", "written [[claim]]"),
    ],
)
def test_load_mistakes(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert words in str(error.value)
    assert "claims.toml" in str(error.value)


def record(root: Path, metrics: dict[str, Any], scale: str = "small", **more: Any) -> Path:
    with Run.create("pipe_bd", "virtual_devices", config={}, seed=0, scale=scale, root=root) as run:
        run.write_summary({"metrics": metrics, **more})
    return run.path


def check(tmp_path: Path, text: str = CLAIM, scale: str | None = None) -> Verdict:
    (verdict,) = claims.check(load(tmp_path, text), tmp_path / "runs", "pipe_bd", scale)
    return verdict


def test_passed_and_failed_carry_where_they_come_from(tmp_path: Path) -> None:
    path = record(tmp_path / "runs", {"ratio": {"tr_over_dpu": 3.5}}, noise={"spread": 0.01})
    verdict = check(tmp_path)
    assert (verdict.status, verdict.value, verdict.run, verdict.scale) == (
        "passed", 3.5, path, "small",
    )  # fmt: skip
    assert verdict.noise == {"spread": 0.01}
    record(tmp_path / "runs", {"ratio": {"tr_over_dpu": 2.5}})
    verdict = check(tmp_path)
    assert (verdict.status, verdict.detail) == ("failed", "2.5 is not ≥ 3")


def test_a_metric_that_is_absent_fails(tmp_path: Path) -> None:
    record(tmp_path / "runs", {"ratio": {}})
    verdict = check(tmp_path)
    assert verdict.status == "failed"
    assert "ratio.tr_over_dpu" in verdict.detail


def test_not_run(tmp_path: Path) -> None:
    verdict = check(tmp_path, scale="small")
    assert (verdict.status, verdict.value) == ("not run", None)
    assert "virtual_devices has no finished run at scale small" in verdict.detail


def test_not_gated_at_this_scale_still_shows_the_value(tmp_path: Path) -> None:
    record(tmp_path / "runs", {"ratio": {"tr_over_dpu": 1.0}}, scale="smoke")
    verdict = check(tmp_path, CLAIM + 'scales = ["small"]')
    assert (verdict.status, verdict.value) == ("not gated", 1.0)
    assert check(tmp_path, scale="small").status == "not run"


IMPOSSIBLE = """
[[claim]]
id = "a6000"
says = "7.38 times on four A6000"
source = "figure 5"
paper = "7.38"
reproduced = "impossible"
why = "needs four GPUs"
"""


def test_impossible_needs_no_run(tmp_path: Path) -> None:
    verdict = check(tmp_path, IMPOSSIBLE)
    assert (verdict.status, verdict.detail) == ("not possible", "needs four GPUs")


def test_find_follows_mappings_and_lists() -> None:
    metrics = {"a": [{"b": 1}, {"b": 2}], "c": None}
    assert claims.find(metrics, "a.1.b") == 2
    assert claims.find(metrics, "c") is None
    for path in ("a.2.b", "a.x", "d", "c.e"):
        with pytest.raises(KeyError):
            claims.find(metrics, path)


def test_table_is_aligned_with_headlines_first(tmp_path: Path) -> None:
    record(tmp_path / "runs", {"ratio": {"tr_over_dpu": 3.5}})
    text = CLAIM.replace("fill", "later") + CLAIM + "headline = true" + IMPOSSIBLE
    verdicts = claims.check(load(tmp_path, text), tmp_path / "runs", "pipe_bd")
    lines = claims.table(verdicts).splitlines()
    assert lines[2].split()[:3] == ["PASS", "fill", "3.5"]
    assert lines[3].split()[:3] == ["PASS", "later", "3.5"]
    assert len({line.index("≥") for line in lines[2:4]}) == 1
    assert lines[-1] == "2 passed, 1 not possible"
    assert claims.tally(verdicts) == {"passed": 2, "not possible": 1}
    assert claims.table([]).endswith("no claims")


def test_markdown(tmp_path: Path) -> None:
    record(tmp_path / "runs", {"ratio": {"tr_over_dpu": 1.5}})
    text = CLAIM.replace("section IV", "a").replace("not reported alone", "3 | 4")
    lines = claims.markdown([check(tmp_path, text)]).splitlines()
    assert lines[1] == "|---|---|---|---|---|---|"
    assert "| **failed** | 1.5 | ≥ 3 | 3 \\| 4 | small |" in lines[2]


def test_artifact_md_says_command_cost_and_how(tmp_path: Path) -> None:
    loaded = load(tmp_path, CLAIM + 'reproduced = "virtual"\nwhy = "two cores"' + IMPOSSIBLE)
    experiment = Experiment(
        "virtual_devices",
        "T",
        "ours",
        lambda context: Summary({}),
        {},
        {"smoke": 0.1, "small": 2},
        {"small": 1.5},
    )
    lines = claims.artifact_md(
        loaded, {"virtual_devices": experiment}, "pipe-bd reproduce"
    ).splitlines()
    assert "`pipe-bd reproduce virtual_devices --scale smoke`" in lines[2]
    assert "smoke: 0.1 min, < 1 GB; small: 2 min, 1.5 GB" in lines[2]
    assert "virtual: two cores" in lines[2]
    assert "not possible here: needs four GPUs" in lines[3]
    with pytest.raises(UserError, match="no experiment 'virtual_devices'"):
        claims.artifact_md(loaded, {}, "x")
