import csv
import io
import re
import xml.etree.ElementTree as ET
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthaul import plots
from shorthaul.experiments import Figure, Series, Table

KINDS = ("measured", "virtual", "simulated", "predicted", "paper")
STYLES = get_args(get_type_hints(Figure)["style"])
VALUES = st.none() | st.floats(-1e9, 1e9)


def figure(style: Any = "bars", **more: Any) -> Figure:
    given: dict[str, Any] = {
        "x": ["VGG", "GPT <2>"],
        "series": [
            Series("dp", [1.0, 2.0], low=[0.9, None], high=[1.2, 2.5]),
            Series("dpu", [3.0, None], "virtual"),
        ],
    }
    return Figure("speed-up", "A < B & C", style, x_label="model", y_label="s", **{**given, **more})


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in parse(svg).iter("{http://www.w3.org/2000/svg}text")]


@given(
    y=st.lists(VALUES, min_size=1, max_size=5),
    name=st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])),
)
def test_csv_round_trip(y: list[float | None], name: str) -> None:
    x: list[str | float] = [float(n) for n in range(len(y))]
    drawn = Figure("f", "t", "lines", x, "x", "y", [Series(name, y, "paper")])
    head, *rows = csv.reader(io.StringIO(plots.csv(drawn)))
    assert head == ["series", "kind", "x", "y", "low", "high"]
    assert [row[0] for row in rows] == [name] * len(y)
    assert [float(row[2]) for row in rows] == x
    assert [float(row[3]) if row[3] else None for row in rows] == y


def test_csv_keeps_error_bars() -> None:
    rows = list(csv.reader(io.StringIO(plots.csv(figure()))))
    assert rows[1] == ["dp", "measured", "VGG", "1.0", "0.9", "1.2"]
    assert rows[2] == ["dp", "measured", "GPT <2>", "2.0", "", "2.5"]


def test_table_csv_quotes_what_needs_it() -> None:
    table = Table("t", "t", ["a", "b"], [["x, y", None]])
    assert plots.table_csv(table) == 'a,b\n"x, y",\n'


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_style_and_kind_draws_and_says_its_kind(style: str, kind: Any) -> None:
    drawn = plots.svg(figure(style, series=[Series("tr", [1.0, 2.0], kind)]))
    said = texts(drawn)
    assert (f"tr ({kind})" in said) == (kind != "measured")
    hatched = "<pattern" in drawn
    assert hatched == (kind != "measured" and style in ("bars", "stacked"))


def test_svg_stands_in_a_page() -> None:
    drawn = plots.svg(figure(), prefix="pipe bd-")
    root = parse(drawn)
    assert drawn.startswith("<svg")
    assert root.get("width") == "100%"
    assert root.get("height") is None
    assert root.get("viewBox") == "0 0 388.8 252"
    assert root.get("aria-label") == "A < B & C"
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(i).startswith("pipe-bd-speed-up-") for i in ids)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', drawn))
    assert used <= set(ids)
    assert "currentColor" in drawn
    assert "#010203" not in drawn
    assert "<style" not in drawn
    assert "metadata" not in drawn


def test_the_same_figure_draws_the_same() -> None:
    assert plots.svg(figure()) == plots.svg(figure())


def test_names_keep_their_colours() -> None:
    assert plots.colour("dpu") == plots.colour("DPU (ours)") == plots.COLOURS["dpu"]
    assert plots.colour("something else") == plots.colour("something else")
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    drawn = plots.svg(figure())
    assert plots.COLOURS["dp"] in drawn
    assert plots.COLOURS["dpu"] in drawn


@given(st.lists(st.text(st.characters(codec="ascii"), min_size=1), max_size=8, unique=True))
@settings(max_examples=30)
def test_systems_of_one_figure_differ_in_colour(names: list[str]) -> None:
    drawn = figure(x=["a"], series=[Series(name, [1.0]) for name in names])
    palette = plots._palette(drawn)
    assert len(set(palette.values())) == len(names)


def test_one_name_has_one_colour_whatever_its_kind() -> None:
    series = [Series("mine", [1.0, 1.0]), Series("mine", [1.0, 1.0], "simulated")]
    assert len(plots._palette(figure(series=series))) == 1


def test_numbers_on_x_are_placed_to_scale() -> None:
    drawn = figure("lines", x=[2, 4, 16], series=[Series("tr", [1.0, None, 3.0])], log_x=True)
    assert {"2", "4", "16"} <= set(texts(plots.svg(drawn)))


def test_many_numbers_get_fewer_ticks() -> None:
    x: list[str | float] = [float(n) for n in range(100)]
    drawn = figure("lines", x=x, series=[Series("tr", [float(n) for n in range(100)])])
    assert len(texts(plots.svg(drawn))) < 30


def test_log_y_negative_and_empty_values_draw() -> None:
    plots.svg(figure(log_y=True))
    plots.svg(figure(series=[Series("a", [-1.0, 2.0])]))
    plots.svg(figure(series=[Series("a", [None, None])]))
    plots.svg(figure(x=[], series=[]))
    long = ["a rather long category", "another long category"]
    assert "rotate(-30" in plots.svg(figure(x=long))
