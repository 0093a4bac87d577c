"""The report's charts, drawn from a metrics file and, where there was a demo, its guest's visit."""

from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.charts import COLOURS, HALF, Chart, dates, fractions, name_ends, note, over_time
from bench.story import UPDATED, Visit

_DAY_MS = 86_400_000
_MOST_DAYS = 40  # beyond it, lines at each sync would be a wash
_SMOOTH = 3  # windows
_STRETCH_S = 1.0

Metrics = Mapping[str, Any]


def arms_of(metrics: Metrics) -> list[str]:
    """The arms that were scored, freshest first."""
    return [arm for arm in UPDATED if arm in metrics["arms"]]


def auc_over_time(metrics: Metrics, live_from_ms: int | None = None) -> Chart | None:
    """AUC by window and arm; None before a window has closed."""
    windows = [window for window in metrics["windows"] if window["auc"]["continuous"] is not None]
    if not windows:
        return None

    def draw(axes: Axes, narrow: bool) -> None:
        when = dates([window["end_ms"] for window in windows])
        ends = []
        for arm in reversed(arms_of(metrics)):
            values = np.array([window["auc"][arm] if window["auc"][arm] is not None else np.nan for window in windows])
            smooth = _smoothed(values)
            lead = arm == "continuous"
            axes.plot(when, values, color=COLOURS[arm], linewidth=0.7, alpha=0.35)
            axes.plot(when, smooth, color=COLOURS[arm], linewidth=2.4 if lead else 1.7, marker="o" if len(when) == 1 else "")
            ends.append((arm, float(smooth[-1]), COLOURS[arm]))
        _syncs(axes, metrics)
        _live(axes, live_from_ms, narrow)
        axes.margins(x=0.01)
        over_time(axes, 5 if narrow else 9)
        fractions(axes)
        name_ends(axes, ends)

    return Chart("auc", "AUC of each arm over event time", draw)


def reliability(metrics: Metrics) -> Chart | None:
    """Mean prediction against what happened, by tenths of the prediction; None before anything was evaluated."""
    arms = [arm for arm in ("frozen", "continuous") if metrics["arms"].get(arm, {}).get("reliability")]
    if not arms:
        return None

    def draw(axes: Axes, narrow: bool) -> None:
        most = max(max(part[:2]) for arm in arms for part in metrics["arms"][arm]["reliability"]) * 1.06
        axes.plot([0, most], [0, most], color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        for arm in arms:
            predicted, happened, _ = zip(*metrics["arms"][arm]["reliability"], strict=True)
            axes.plot(predicted, happened, color=COLOURS[arm], linewidth=1.4, marker="o", markersize=5, label=arm)
        axes.set_xlim(0, most)
        axes.set_ylim(0, most)
        _percent(axes)
        axes.set_xlabel("predicted")
        axes.set_title("happened", loc="left", fontsize=9, color=COLOURS["muted"])
        axes.grid(visible=True, axis="both")
        axes.legend(loc="upper left", frameon=False, labelcolor="linecolor", handlelength=1.2)

    return Chart("reliability", "Share that happened, by predicted probability", draw, HALF)


def calibration_over_time(metrics: Metrics, live_from_ms: int | None = None) -> Chart | None:
    """Mean prediction over mean outcome, by window and arm; None before a window has closed."""
    windows = metrics["windows"]
    if not windows:
        return None

    def draw(axes: Axes, narrow: bool) -> None:
        when = dates([window["end_ms"] for window in windows])
        axes.axhline(1.0, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        ends = []
        for arm in reversed([arm for arm in arms_of(metrics) if arm != "hourly"]):
            values = [window["calibration"][arm] for window in windows]
            smooth = _smoothed(np.array([np.nan if value is None else value for value in values]))
            width = 2.2 if arm == "continuous" else 1.5
            axes.plot(when, smooth, color=COLOURS[arm], linewidth=width, marker="o" if len(when) == 1 else "")
            ends.append((arm, float(smooth[-1]), COLOURS[arm]))
        _live(axes, live_from_ms, narrow, named=False)
        over_time(axes, 5)
        fractions(axes)
        axes.set_title("predicted / happened", loc="left", fontsize=9, color=COLOURS["muted"])
        name_ends(axes, ends)

    return Chart("calibration", "Mean prediction over mean outcome, over event time", draw, HALF)


def table_growth(metrics: Metrics, live_from_ms: int | None = None) -> Chart | None:
    """Rows of the embedding table over event time; None before the first point."""
    points = metrics["growth"]
    if not points:
        return None

    def draw(axes: Axes, narrow: bool) -> None:
        when = dates([point["event_ms"] for point in points])
        rows = [point["table_rows"] for point in points]
        axes.fill_between(when, rows, color=COLOURS["accent"], alpha=0.14, linewidth=0)
        axes.plot(when, rows, color=COLOURS["accent"], linewidth=2)
        axes.plot(when[-1], rows[-1], color=COLOURS["accent"], marker="o", markersize=5)
        axes.set_ylim(0, max(rows) * 1.14)
        _live(axes, live_from_ms, narrow, named=False)
        note(axes, when[-1], max(rows) * 1.04, f"{rows[-1]:,} rows")
        over_time(axes, 5)
        _thousands(axes)

    return Chart("growth", "Rows of the embedding table over event time", draw, HALF)


def throughput(metrics: Metrics, live_from_ms: int | None = None) -> Chart | None:
    """Examples learned a second by wall clock; None where this was not seen."""
    seen = paces(metrics)
    if not seen:
        return None

    def draw(axes: Axes, narrow: bool) -> None:
        lengths = [count / pace for _, count, pace in seen]
        ends = np.cumsum(lengths)
        pace = [pace for _, _, pace in seen]
        edges = np.concatenate([[0.0], ends])
        axes.stairs(pace, edges, color=COLOURS["accent"], linewidth=1.6, fill=False)
        axes.stairs(pace, edges, color=COLOURS["accent"], alpha=0.14, fill=True)
        before = [rate for event_ms, _, rate in seen if live_from_ms is None or event_ms < live_from_ms]
        typical = median(before or pace)
        axes.axhline(typical, color=COLOURS["ink"], linewidth=0.9, linestyle=(0, (4, 3)))
        note(axes, edges[-1], max(pace) * 1.02, f"median {typical:,.0f}/s")
        axes.set_ylim(0, max(pace) * 1.14)
        axes.set_xlim(0, edges[-1])
        axes.set_xlabel("seconds since the first step, by the wall clock")
        _thousands(axes)

    return Chart("throughput", "Examples learned a second, over wall time", draw, HALF)


def guests_top(visit: Visit) -> Chart:
    """How many videos of the guest's top 10 have the tag, as likes come in and versions go out."""

    def draw(axes: Axes, narrow: bool) -> None:
        at = [moment.at_s for moment in visit.moments]
        counts = [moment.with_tag for moment in visit.moments]
        top = len(visit.before.videos)
        axes.step([*at, at[-1] * 1.04], [*counts, counts[-1]], where="post", color=COLOURS["continuous"], linewidth=2.4)
        axes.fill_between([*at, at[-1] * 1.04], [*counts, counts[-1]], step="post", color=COLOURS["continuous"], alpha=0.12)
        likes = [(after.at_s, after.likes - before.likes) for before, after in _pairs(visit) if after.likes > before.likes]
        for second, given in likes:
            axes.text(second, -0.09 * top, "♥" * given, color=COLOURS["accent"], ha="center", va="center", fontsize=7)
        for before, after in _pairs(visit):
            if after.version != before.version:
                axes.axvline(after.at_s, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
                axes.text(after.at_s, top * 1.06, f"version {after.version} ", ha="right", va="bottom", color=COLOURS["muted"])
        axes.axvspan(visit.last_like_s, at[-1], color=COLOURS["wash"], linewidth=0, zorder=0)
        axes.set_ylim(-0.17 * top, top * 1.2)
        axes.set_yticks(range(0, top + 1, 2))
        axes.set_xlim(0, at[-1] * 1.04)
        axes.set_xlabel("seconds since the guest came")

    return Chart("visit", "Videos with the tag in the guest's top 10, over seconds", draw)


def paces(metrics: Metrics) -> list[tuple[int, int, float]]:
    """(newest event time, examples, examples a second) of stretches of a second or more that the process saw; of all of it
    where that was shorter."""
    points = metrics["growth"]
    counts = np.diff([0, *(point["examples"] for point in points)]).tolist()
    stretches, examples, seconds = [], 0, 0.0
    for point, count in zip(points, counts, strict=True):
        if point["examples_per_s"]:
            examples, seconds = examples + count, seconds + count / point["examples_per_s"]
        if seconds >= _STRETCH_S:
            stretches.append((point["event_ms"], examples, examples / seconds))
            examples, seconds = 0, 0.0
    if seconds and not stretches:
        stretches.append((points[-1]["event_ms"], examples, examples / seconds))
    return stretches


def _pairs(visit: Visit) -> list[tuple[Any, Any]]:
    return list(zip(visit.moments[:-1], visit.moments[1:], strict=True))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a window and its neighbours; fewer at the ends."""
    half = _SMOOTH // 2
    parts = (values[max(0, at - half) : at + half + 1] for at in range(len(values)))
    return np.array([fmean(part[~np.isnan(part)]) if (~np.isnan(part)).any() else np.nan for part in parts])


def daily_syncs(metrics: Metrics) -> list[int]:
    """Event times at which the daily arm is synced within the windows, in ms; none where the lines would be a wash."""
    start, windows = metrics["evaluated_from_ms"], metrics["windows"]
    if "daily" not in metrics["arms"] or start <= 0 or not windows or windows[-1]["end_ms"] - start > _MOST_DAYS * _DAY_MS:
        return []
    return [*range(start + _DAY_MS, windows[-1]["end_ms"] + 1, _DAY_MS)]


def _syncs(axes: Axes, metrics: Metrics) -> None:
    """Faint lines where the daily arm is synced."""
    for moment in dates(daily_syncs(metrics)):
        axes.axvline(moment, color=COLOURS["daily"], linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)


def _live(axes: Axes, live_from_ms: int | None, narrow: bool, named: bool = True) -> None:
    """Where the guest came."""
    if live_from_ms is None:
        return
    moment = dates([live_from_ms])[0]
    axes.axvline(moment, color=COLOURS["ink"], linewidth=0.9)
    if named and not narrow:
        axes.annotate(
            "a guest comes ", (moment, 1.0), xycoords=("data", "axes fraction"), ha="right", va="top", color=COLOURS["muted"]
        )  # fmt: skip


def _percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axis.set_major_locator(MaxNLocator(5))


def _thousands(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
