"""Charts as SVG that takes its colours and fonts from the page: legible in light and dark, on wide screens and narrow."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

#: Colours of the charts: placeholders, which the page's CSS variables of that name stand for in the SVG.
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "continuous": "#040404",
    "hourly": "#050505",
    "daily": "#060606",
    "frozen": "#070707",
    "accent": "#080808",
    "wash": "#090909",
    "card": "#0a0a0a",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
#: Inches; text keeps its size, so a narrow screen gets a figure of its own rather than a shrunken one.
WIDE, HALF, NARROW = (8.2, 3.3), (4.3, 3.3), (4.3, 3.3)
_DAYS = (2, 60)  # within them, labels of the x axis are days


@dataclass(frozen=True)
class Chart:
    """A chart and what it is called.

    Attributes:
        name: unique on the page, for ids.
        label: said to those who cannot see it.
        draw: onto axes; told whether they are narrow.
        size: inches on a wide screen.
    """

    name: str
    label: str
    draw: Callable[[Axes, bool], None]
    size: tuple[float, float] = WIDE

    def html(self) -> str:
        """Both figures; the page shows the one that fits."""
        return f'<div class="wide">{self._svg(self.size, False)}</div>' + f'<div class="narrow">{self._svg(NARROW, True)}</div>'

    def _svg(self, size: tuple[float, float], narrow: bool) -> str:
        with plt.rc_context({**_STYLE, "svg.hashsalt": self.name}):
            figure, axes = plt.subplots(figsize=size)
            try:
                self.draw(axes, narrow)
                text = io.StringIO()
                figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            finally:
                plt.close(figure)
        return _embedded(text.getvalue(), f"{self.name}{'-n' if narrow else ''}", self.label)


def over_time(axes: Axes, most: int) -> None:
    """The x axis is event time in UTC, with `most` labels."""
    low, high = axes.get_xlim()  # in days
    if _DAYS[0] <= high - low <= _DAYS[1]:
        step = next(days for days in (1, 2, 5, 10, 20) if (high - low) / days <= most)
        axes.set_xticks(np.arange(np.ceil(low / step) * step, high, step))
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%-d %b"))
    else:
        locator = mdates.AutoDateLocator(minticks=3, maxticks=most)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator, show_offset=False))


def fractions(axes: Axes) -> None:
    """The y axis is a small number: round steps, as many decimals as they need."""
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ticks = axes.get_yticks()
    decimals = 2 if ticks[1] - ticks[0] > 0.0099 else 3
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{decimals}f}"))


def dates(times_ms: list[int]) -> Any:
    """Event times in ms as matplotlib has them."""
    return mdates.date2num([datetime.fromtimestamp(ms / 1000, UTC) for ms in times_ms])


def name_ends(axes: Axes, ends: list[tuple[str, float, str]]) -> None:
    """Names lines at their right ends, apart from each other: (name, y of the end, colour)."""
    ends = sorted(ends, key=lambda end: end[1])
    low, high = axes.get_ylim()
    x_low, x_high = axes.get_xlim()
    for (name, _, colour), y in zip(ends, _apart([y for _, y, _ in ends], (high - low) * 0.07), strict=True):
        x = x_high + (x_high - x_low) * 0.012
        axes.text(x, y, name, color=colour, va="center", ha="left", fontweight="bold")
    axes.set_xlim(x_low, x_high)


def note(axes: Axes, x: float, y: float, text: str) -> None:
    """Bold words above a point, to its left, on a ground of their own."""
    ground = {"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.5}
    axes.text(x, y, text, ha="right", va="bottom", fontweight="bold", bbox=ground)


def _apart(values: list[float], room: float) -> list[float]:
    """Ascending values moved as little as it takes to be `room` apart: those too close spread about their mean."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _lowest(groups[-1], room) - _highest(groups[-2], room) < room:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_lowest(group, room) + room * place for group in groups for place in range(len(group))]


def _lowest(group: list[float], room: float) -> float:
    return fmean(group) - room * (len(group) - 1) / 2


def _highest(group: list[float], room: float) -> float:
    return fmean(group) + room * (len(group) - 1) / 2


def _embedded(svg: str, name: str, label: str) -> str:
    """The `svg` element alone: ids unique on the page, colours by CSS variables, as wide as its place."""
    svg = svg[svg.index("<svg") :]
    # A style element within would hold for the whole page.
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
