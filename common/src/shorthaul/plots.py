"""Figures as SVG and CSV: one colour per system throughout, and nothing mistaken for measured.

Values that were not measured are hatched (bars), dashed (lines) or hollow (points), and their
legend entry says what they are.
"""

import csv as csv_module
import html
import io
import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shorthaul.experiments import Figure, Series, Table

COLOURS = {
    "sequential": "#8c8c8c",
    "dp": "#4477aa",
    "ls": "#66ccee",
    "joint": "#aa3377",
    "tr": "#ccaa22",
    "dpu": "#228833",
    "ahd": "#ee6677",
}
_FALLBACK = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#b8860b",
    "#56a0d3",
    "#7a5fb0",
    "#9a6b4f",
)
_HATCH = {"virtual": "///", "simulated": "...", "predicted": "xx", "paper": "\\\\\\"}
_DASH = {"virtual": "--", "simulated": ":", "predicted": "-.", "paper": (0, (6, 2))}
_MARKER = {"measured": "o", "virtual": "s", "simulated": "^", "predicted": "v", "paper": "D"}

# Matplotlib has no notion of the page's text colour, so this one is drawn and then replaced by
# `currentColor`: the figure follows light and dark pages.
_INK = "#010203"
_WIDTH, _HEIGHT = 5.4, 3.5


def colour(name: str) -> str:
    """Give a system's colour; an unknown one gets a fixed fallback that depends on its name."""
    key = name.lower().split(" ")[0].strip(",;:")
    return COLOURS.get(key) or _FALLBACK[zlib.crc32(name.lower().encode()) % len(_FALLBACK)]


def _palette(figure: "Figure") -> dict[str, str]:
    """Give each name of a figure its colour, moving fallbacks that two names would share."""
    palette: dict[str, str] = {}
    for series in figure.series:
        if series.name in palette:
            continue
        chosen = colour(series.name)
        if chosen in _FALLBACK and chosen in palette.values():
            free = [c for c in _FALLBACK if c not in palette.values()]
            chosen = free[0] if free else chosen
        palette[series.name] = chosen
    return palette


def label(series: "Series") -> str:
    """Give the legend's words: the name, and the kind unless measured."""
    return series.name if series.kind == "measured" else f"{series.name} ({series.kind})"


def csv(figure: "Figure") -> str:
    """Give a figure's values, one row per point.

    Returns:
        CSV with the columns `series`, `kind`, `x`, `y`, `low`, `high`; an absent value is empty.
    """
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(["series", "kind", "x", "y", "low", "high"])
    for series in figure.series:
        none: list[float | None] = [None] * len(figure.x)
        for row in zip(figure.x, series.y, series.low or none, series.high or none, strict=True):
            writer.writerow([series.name, series.kind, *("" if v is None else v for v in row)])
    return out.getvalue()


def table_csv(table: "Table") -> str:
    """Give a table as CSV, its columns in the first row."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([["" if cell is None else cell for cell in row] for row in table.rows])
    return out.getvalue()


def svg(figure: "Figure", prefix: str = "") -> str:
    """Draw a figure.

    Args:
        figure: What to draw.
        prefix: Put before every id, so that several figures fit on one page.

    Returns:
        An `<svg>` element without prolog that may stand in HTML or alone: its width follows its
        container, its ink the text colour, its background is transparent.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{prefix}{figure.id}",
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "axes.titlesize": 9.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.frameon": False,
        "hatch.linewidth": 0.8,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "axes.formatter.useoffset": False,
    }
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        _draw(axes, figure)
        axes.set_xlabel(figure.x_label)
        axes.set_ylabel(figure.y_label)
        axes.grid(axis="y", color=_INK, alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)
        _legend(canvas, axes, figure)
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue(), figure, prefix)


def _draw(axes: Any, figure: "Figure") -> None:
    palette = _palette(figure)
    numbers = [v for v in figure.x if isinstance(v, int | float)]
    numeric = len(numbers) == len(figure.x) and figure.style in ("lines", "points")
    at = numbers if numeric else [float(index) for index in range(len(figure.x))]
    if figure.log_y:
        axes.set_yscale("log")
    if figure.log_x and numeric:
        axes.set_xscale("log", base=2)
    if figure.style in ("bars", "stacked"):
        _bars(axes, figure, at, palette)
    else:
        for series in figure.series:
            _curve(axes, figure, series, at, palette[series.name])
    if not figure.log_y and all((v or 0) >= 0 for s in figure.series for v in s.y):
        axes.set_ylim(bottom=0)
    if numeric:
        if len(at) <= 12:
            axes.set_xticks(at, [f"{v:g}" for v in at])
            axes.minorticks_off()
        return
    words = [str(v) for v in figure.x]
    crowded = sum(map(len, words)) > 60 or max(map(len, words), default=0) > 14
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(at, words, **turned)


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
        ink = palette[series.name]
        axes.bar(
            [at[i] + shift for i in shown],
            heights,
            width * (1.0 if stacked else 0.92),
            bottom=[base[i] for i in shown] if stacked else None,
            label=label(series),
            # matplotlib draws a hatch in the edge's colour, so an outlined pale bar carries it.
            facecolor=ink if measured else f"{ink}2e",
            edgecolor=ink,
            hatch=None if measured else _HATCH[series.kind],
            linewidth=0.8,
            yerr=None if stacked else _whiskers(series, shown),
            error_kw={"ecolor": _INK, "elinewidth": 0.9, "capsize": 2},
        )
        for i, height in zip(shown, heights, strict=True):
            base[i] += height


def _curve(axes: Any, figure: "Figure", series: "Series", at: list[float], ink: str) -> None:
    measured = series.kind == "measured"
    line = figure.style == "lines"
    axes.errorbar(
        at,
        [float("nan") if value is None else value for value in series.y],
        yerr=_whiskers(series, list(range(len(at)))),
        label=label(series),
        color=ink,
        linestyle=("-" if measured else _DASH[series.kind]) if line else "none",
        marker=_MARKER[series.kind],
        markerfacecolor=ink if measured else "none",
        elinewidth=0.9,
        capsize=2,
    )


def _whiskers(series: "Series", shown: list[int]) -> list[list[float]] | None:
    """Turn low and high ends into matplotlib's distances from the value, never negative."""
    if series.low is None and series.high is None:
        return None
    ends: list[list[float]] = [[], []]
    for side, values, sign in ((0, series.low, -1.0), (1, series.high, 1.0)):
        for i in shown:
            value, end = series.y[i], values[i] if values is not None else None
            distance = 0.0 if value is None or end is None else sign * (end - value)
            ends[side].append(max(0.0, distance))
    return ends


def _legend(canvas: Any, axes: Any, figure: "Figure") -> None:
    if len(figure.series) < 2 and all(s.kind == "measured" for s in figure.series):
        return
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=1)
    columns = max(1, min(len(labels), 62 // (longest + 5)))
    canvas.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def _inline(document: str, figure: "Figure", prefix: str) -> str:
    """Make matplotlib's document fit for a page: no prolog, own ids, own width, page's ink."""
    body = document[document.index("<svg") :]
    # The style would hold for the whole page that the figure is put into.
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    mark = re.sub(r"[^A-Za-z0-9_-]", "-", f"{prefix}{figure.id}-")
    body = re.sub(r'\bid="', f'id="{mark}', body)
    body = re.sub(r"url\(#", f"url(#{mark}", body)
    body = re.sub(r'href="#', f'href="#{mark}', body)
    body = body.replace(_INK, "currentColor")
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, system-ui, sans-serif")
    size = re.search(r'viewBox="([^"]+)"', body)
    box = size.group(1) if size else f"0 0 {_WIDTH * 72:g} {_HEIGHT * 72:g}"
    title = html.escape(figure.title)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="100%" style="stroke-linejoin:round" role="img" '
        f'aria-label="{title}"><title>{title}</title>'
    )
    return head + body[body.index(">") + 1 :].strip() + "\n"
