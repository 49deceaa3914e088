"""The report in a real browser: complete, readable on a phone, and asking nobody for anything."""

import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shorthaul import report
from shorthaul.experiments import Context, Experiment, Figure, Series, Summary, Table, run

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
]  # fmt: skip

CLAIMS = """
[[claim]]
id = "decoupling-removes-the-fill"
says = "Decoupled updates remove the pipeline fill that a barrier costs on every step"
source = "Pipe-BD, section IV"
experiment = "virtual_devices"
metric = "period_ratio.tr_over_dpu"
expect = { min = 3.0 }
paper = "not reported alone"
kind = "time"
headline = true
reproduced = "virtual"
why = "two cores stand in for eight devices"

[[claim]]
id = "one-teacher-pass-per-step-whatever-the-schedule-and-the-number-of-devices"
says = "The teacher runs once per step"
source = "Pipe-BD, table I"
experiment = "speedup"
metric = "teacher_calls"
expect = { exact = 12 }
paper = "B calls per step"

[[claim]]
id = "speed-up"
says = "The best plan beats data-parallel blockwise distillation"
source = "Pipe-BD, figure 5"
experiment = "speedup"
metric = "best"
expect = { rel = 0.1, of = 7.38 }
paper = "7.38 (poster)"
"""


def virtual_devices(context: Context) -> Summary:
    devices: list[str | float] = [2, 4, 8, 16]
    tr: list[float | None] = [30.2, 50.4, 90.1, 170.6]
    dpu: list[float | None] = [20.1, 20.3, 20.4, 21.2]
    simulated: list[float | None] = [20.0, 20.0, 20.0, 20.0]
    series = [
        Series("tr", tr, "virtual"),
        Series("dpu", dpu, "virtual", [19.9, 20.0, 20.1, 20.8], [20.4, 20.6, 20.7, 21.9]),
        Series("dpu", simulated, "simulated"),
    ]
    figure = Figure(
        "period", "Decoupling removes the fill", "lines", devices, "devices", "period, ms", series,
        log_x=True,
    )  # fmt: skip
    return Summary(
        {"period_ratio": {"tr_over_dpu": 4.4}},
        figures=[figure],
        emulated="sleep in place of compute",
        noise={"median": 1.001, "low": 0.985, "high": 1.021, "spread": 0.021},
    )


def speedup(context: Context) -> Summary:
    models: list[str | float] = ["VGG-like", "MobileNet-like", "GPT-2 (12 blocks)", "Llama-style"]
    series = [
        Series("dp", [1.0, 1.0, 1.0, 1.0]),
        Series("ls", [1.3, 1.2, 1.4, 1.1]),
        Series("dpu", [1.9, 1.8, 3.1, None]),
        Series("ahd", [2.1, 1.9, 3.1, 2.3]),
        Series("ahd", [7.38, None, None, None], "paper"),
    ]
    bars = Figure(
        "speedup", "Speed-up over data-parallel blockwise distillation", "bars", models, "model",
        "speed-up", series, note="Two thirds of the paper's gain is GPU utilisation.",
    )  # fmt: skip
    parts = [
        Series("teacher", [3.0, 3.0]),
        Series("student", [6.0, 5.0]),
        Series("waiting", [0, 1]),
    ]
    stacked = Figure(
        "parts", "Where an epoch goes", "stacked", ["rank 0", "rank 1"], "", "s", parts
    )
    points = Figure("err", "Simulator against runs", "points", [1.0, 2.0], "s", "s",
                    [Series("planner", [1.1, 2.1], "predicted")])  # fmt: skip
    columns = ["schedule", "teacher calls", "rows", "bytes per step", "loader reads", "comment"]
    rows: list[list[Any]] = [
        ["dp", 78, 9984, 123_456_789, 12, "runs the teacher again for every block it trains"],
        ["ahd", 12, 1536, 4_194_304, 1, None],
    ]
    table = Table("counts", "Teacher calls and bytes per step", columns, rows)
    return Summary(
        {"teacher_calls": 12, "best": 2.3}, figures=[bars, stacked, points], tables=[table],
        notes=["Counters equal the formulas."],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "claims.toml").write_text(CLAIMS)
    for work in (virtual_devices, speedup):
        title = work.__name__.replace("_", " ").capitalize()
        experiment = Experiment(work.__name__, title, "ours", work, {"smoke": {}}, {})
        run(experiment, artifact="pipe_bd", scale="smoke", root=folder / "runs")
    found = report.collect(
        folder / "runs", "pipe_bd", folder / "claims.toml", "Pipe-BD: blockwise distillation",
        "The teacher runs once and nobody waits at a barrier.",
    )  # fmt: skip
    return report.write(folder / "report.html", [found])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Visit:
    """A page opened from disk, with everything it asked for and complained of."""

    def __init__(self, browser: Any, page: Path, width: int, height: int) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": height})
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.said: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("requestfailed", lambda request: self.failed.append(request.url))
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.goto(page.as_uri(), wait_until="load")


@pytest.fixture(params=[(1280, 900), (375, 800)], ids=["desktop", "phone"])
def visit(request: pytest.FixtureRequest, browser: Any, page: Path) -> Iterator[Visit]:
    visit = Visit(browser, page, *request.param)
    yield visit
    visit.tab.screenshot(path=page.parent / f"{request.param[0]}.png", full_page=True)
    visit.tab.close()


def test_nothing_is_asked_of_anybody(visit: Visit, page: Path) -> None:
    assert visit.failed == []
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith("data:")] == [page.as_uri()]


def test_every_claim_stands_with_verdict_ours_and_paper(visit: Visit) -> None:
    for name, verdict, ours, paper in (
        ("decoupling-removes-the-fill", "PASS", "4.4", "not reported alone"),
        (
            "one-teacher-pass-per-step-whatever-the-schedule-and-the-number-of-devices",
            "PASS", "12", "B calls per step",
        ),
        ("speed-up", "FAIL", "2.3", "7.38 (poster)"),
    ):  # fmt: skip
        row = visit.tab.locator(f"#claim-pipe_bd-{name}")
        assert row.is_visible()
        said = row.inner_text()
        for words in (name, verdict, ours, paper):
            assert words in said


def test_machine_and_noise_are_said(visit: Visit) -> None:
    machine = visit.tab.locator("#machine").inner_text()
    for words in ("Processor", "Memory", "Kernel", "Python", "Commit", "matplotlib"):
        assert words in machine
    assert "0.985 to 1.021" in visit.tab.locator("#noise").inner_text()
    assert (
        "A/A ± 2.1" in visit.tab.locator("#claim-pipe_bd-decoupling-removes-the-fill").inner_text()
    )
    assert "emulated: sleep" in visit.tab.locator("#pipe_bd-virtual_devices").inner_text()


def test_plots_are_visible_and_legible(visit: Visit) -> None:
    plots = visit.tab.locator("figure svg")
    assert plots.count() == 4
    for index in range(4):
        plots.nth(index).scroll_into_view_if_needed()
        box = plots.nth(index).bounding_box()
        assert box["width"] >= 300
        assert math.isclose(box["width"] / box["height"], 5.4 / 3.5, rel_tol=0.02)
        drawn = plots.nth(index).locator("path").count()
        assert drawn > 5
    sizes = visit.tab.eval_on_selector_all(
        "figure svg text",
        """all => all.map(text => {
            const m = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(m.a, m.b);
        })""",
    )
    assert min(sizes) >= 7.5  # pixels


def test_nothing_is_wider_than_the_screen(visit: Visit) -> None:
    width = visit.tab.viewport_size["width"]
    assert visit.tab.evaluate("document.documentElement.scrollWidth") <= width
    # A table of many columns scrolls in its own box; text is nowhere cut off.
    beyond = visit.tab.evaluate(
        """() => [...document.querySelectorAll('main *')]
            .filter(e => !e.closest('svg') && !e.closest('.scroll') && e.getClientRects().length)
            .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
            .map(e => e.tagName + '.' + e.className)"""
    )
    assert beyond == []


def test_csv_downloads_hold_the_values(visit: Visit) -> None:
    link = visit.tab.locator("#pipe_bd-virtual_devices-period a[download]")
    with visit.tab.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "period.csv"
    text = Path(download.value.path()).read_text()
    assert text.splitlines()[1] == "tr,virtual,2,30.2,,"


def test_headings_and_tables_make_sense_without_eyes(visit: Visit) -> None:
    levels = visit.tab.eval_on_selector_all(
        "h1, h2, h3, h4", "all => all.map(e => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert visit.tab.locator("nav a").count() >= 4
    for link in visit.tab.locator("nav a").all():
        assert visit.tab.locator(link.get_attribute("href").replace(".", "\\.")).count() == 1
    assert visit.tab.locator("table:not(:has(th))").count() == 0
    assert visit.tab.locator("figure svg:not([aria-label])").count() == 0


def test_dark_pages_keep_contrast(browser: Any, page: Path) -> None:
    tab = browser.new_page(color_scheme="dark")
    tab.goto(page.as_uri())
    ink, paper = tab.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor] }"
    )
    assert luminance(ink) > 0.6
    assert luminance(paper) < 0.05
    label = tab.locator("figure svg text").first
    assert label.evaluate("e => getComputedStyle(e).fill") == ink
    tab.close()


def luminance(colour: str) -> float:
    red, green, blue = (
        int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")
    )
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
