"""Figures as SVG and CSV: one colour per system throughout, and nothing mistaken for measured.

Values that were not measured are hatched (bars), dashed (lines) or hollow (points), and their
legend entry says what they are.
"""

import csv as csv_module
import html
import io
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shorthaul.experiments import Figure, Series, Table

COLOURS = {"sequential": "#8c8c8c", "dp": "#4477aa", "ls": "#66ccee", "joint": "#aa3377"}
COLOURS |= {"tr": "#ccaa22", "dpu": "#228833", "ahd": "#ee6677"}
_FALLBACK = "#0072b2 #d55e00 #009e73 #cc79a7 #b8860b #56a0d3 #7a5fb0 #9a6b4f".split()
_HATCH = {"virtual": "///", "simulated": "...", "predicted": "xx", "paper": "\\\\\\"}
_DASH = {"virtual": "--", "simulated": ":", "predicted": "-.", "paper": (0, (6, 2))}
_MARKER = {"measured": "o", "virtual": "s", "simulated": "^", "predicted": "v", "paper": "D"}
# Matplotlib has no notion of the page's text colour, so this one is drawn and then replaced by
# `currentColor`: the figure follows light and dark pages.
_INK = "#010203"


def colour(name: str) -> str:
    """Give a system's colour; an unknown one gets a fixed fallback that depends on its name."""
    key = name.lower().split(" ")[0]
    return COLOURS.get(key) or _FALLBACK[zlib.crc32(name.lower().encode()) % len(_FALLBACK)]


def _palette(figure: "Figure") -> dict[str, str]:
    """Give each name of a figure its colour, moving fallbacks that two names would share."""
    palette: dict[str, str] = {}
    for series in figure.series:
        chosen = colour(series.name)
        if series.name not in palette and chosen in palette.values():
            chosen = next((c for c in _FALLBACK if c not in palette.values()), chosen)
        palette.setdefault(series.name, chosen)
    return palette


def csv(figure: "Figure") -> str:
    """Give a figure's values as CSV, one row per point; an absent value is empty."""
    rows: list[list[Any]] = [["series", "kind", "x", "y", "low", "high"]]
    for series in figure.series:
        none: list[float | None] = [None] * len(figure.x)
        points = zip(figure.x, series.y, series.low or none, series.high or none, strict=True)
        rows += [[series.name, series.kind, *point] for point in points]
    return _csv(rows)


def table_csv(table: "Table") -> str:
    """Give a table as CSV, its columns in the first row."""
    return _csv([table.columns, *table.rows])


def _csv(rows: "Iterable[Sequence[Any]]") -> str:
    out = io.StringIO()
    csv_module.writer(out, lineterminator="\n").writerows(rows)  # None becomes an empty cell
    return out.getvalue()


def svg(figure: "Figure", prefix: str = "") -> str:
    """Draw a figure as an `<svg>` element without prolog, to stand in HTML or alone.

    Its width follows its container, its ink the text colour, its background is transparent.
    `prefix` is put before every id, so that several figures fit on one page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    salt: Any = {"svg.hashsalt": figure.id}  # without it every drawing of one figure differs
    with mpl.rc_context(salt, fname=Path(__file__).parent / "templates" / "figure.mplstyle"):
        canvas = Canvas()
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        _draw(axes, figure)
        axes.set_xlabel(figure.x_label)
        axes.set_ylabel(figure.y_label)
        axes.grid(axis="y")
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1 or any(series.kind != "measured" for series in figure.series):
            columns = max(1, min(len(labels), 62 // (max(map(len, labels)) + 5)))
            canvas.legend(handles, labels, loc="outside upper left", ncols=columns)
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue(), figure.title, f"{prefix}{figure.id}-")


def _draw(axes: Any, figure: "Figure") -> None:
    palette = _palette(figure)
    bars = figure.style in ("bars", "stacked")
    numeric = not bars and all(isinstance(v, int | float) for v in figure.x)
    at: list[Any] = list(figure.x) if numeric else list(range(len(figure.x)))
    if figure.log_y:
        axes.set_yscale("log")
    if figure.log_x and numeric:
        axes.set_xscale("log", base=2)
    if bars:
        _bars(axes, figure, at, palette)
    for series in [] if bars else figure.series:
        line = "-" if series.kind == "measured" else _DASH[series.kind]
        axes.errorbar(
            at,
            [float("nan") if value is None else value for value in series.y],
            yerr=_whiskers(series, range(len(at))),
            label=_label(series),
            color=palette[series.name],
            linestyle=line if figure.style == "lines" else "none",
            marker=_MARKER[series.kind],
            markerfacecolor=None if series.kind == "measured" else "none",
        )
    axes.use_sticky_edges = False  # or a stack of equal height would touch the frame
    if not figure.log_y and all((v or 0) >= 0 for s in figure.series for v in s.y):
        axes.set_ylim(bottom=0)
    words = [f"{v:g}" if isinstance(v, int | float) else v for v in figure.x]
    if numeric and len(at) > 12:
        return
    crowded = sum(map(len, words)) > 60 or max(map(len, words), default=0) > 14
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(at, words, **turned)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def _label(series: "Series") -> str:
    return series.name if series.kind == "measured" else f"{series.name} ({series.kind})"


def _bars(axes: Any, figure: "Figure", at: list[float], palette: dict[str, str]) -> None:
    stacked = figure.style == "stacked"
    count = 1 if stacked else max(1, len(figure.series))
    width = (0.6 if stacked else 0.82) / count
    base = [0.0] * len(at)
    for index, series in enumerate(figure.series):
        shift = 0.0 if stacked else (index - (count - 1) / 2) * width
        shown = [i for i, value in enumerate(series.y) if value is not None]
        heights = [series.y[i] or 0.0 for i in shown]
        measured = series.kind == "measured"
        axes.bar(
            [at[i] + shift for i in shown],
            heights,
            width * (1.0 if stacked else 0.92),
            bottom=[base[i] for i in shown] if stacked else None,
            label=_label(series),
            # In SVG a hatch takes the opacity of the face, so the face must be none, not pale.
            facecolor=palette[series.name] if measured else "none",
            edgecolor=palette[series.name],
            hatch=None if measured else _HATCH[series.kind],
            linewidth=0.8,
            yerr=None if stacked else _whiskers(series, shown),
            error_kw={"ecolor": _INK, "elinewidth": 0.9},
        )
        for i, height in zip(shown, heights, strict=True):
            base[i] += height


def _whiskers(series: "Series", shown: "Iterable[int]") -> list[list[float]] | None:
    """Turn low and high ends into matplotlib's distances from the value, never negative."""
    if series.low is None and series.high is None:
        return None
    distances: list[list[float]] = [[], []]
    for i in shown:
        for side, ends, sign in ((0, series.low, -1), (1, series.high, 1)):
            value, end = series.y[i], ends[i] if ends is not None else None
            if value is None or end is None:
                end = value = 0.0
            distances[side].append(max(0.0, sign * (end - value)))
    return distances


def _inline(document: str, title: str, mark: str) -> str:
    """Make matplotlib's document fit for a page: no prolog, own ids, own width, page's ink."""
    body = document[document.index("<svg") :]
    found = re.search(r'viewBox="[^"]+"', body)
    box = found.group() if found else ""
    # The style would hold for the whole page that the figure is put into.
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body[body.index(">") + 1 :], flags=re.DOTALL)
    mark = re.sub(r"[^A-Za-z0-9_-]", "-", mark)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}", body).replace(_INK, "currentColor")
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, system-ui, sans-serif")
    title = html.escape(title)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box} width="100%" style="stroke-linejoin:round" role="img" aria-label="{title}">'
        f"<title>{title}</title>{body.strip()}\n"
    )
