"""The picture of `bench.collisions`: AUC of both arms as the stream goes on, and what they differ by, with bands over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.charts import fractions
from bench.collisions_arms import AIM, Comparison, Learned
from schemas.process import UserError

SUFFIXES = (".png", ".svg")
_INK, _MUTED, _GRID = "#1d2226", "#626b73", "#e3e1da"
_OWN, _HASHED, _DIFFERENCE = "#c2410c", "#2563a8", "#0f766e"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
}


def need_place(path: Path) -> None:
    """Make the folder that the picture will be in: before there is anything to draw, as that takes minutes.

    Raises:
        UserError: `path` ends in none of `SUFFIXES`, or its folder cannot be made.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot {path}: end it in {' or '.join(SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--plot {path}: its folder cannot be made ({error.strerror}): give another path") from error


def draw(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """Write the picture, a column for each comparison, as `path`'s suffix says.

    Raises:
        UserError: the file cannot be written.
    """
    with plt.rc_context(_STYLE):
        size = (0.6 + 4.4 * len(comparisons), 5.6)
        figure, axes = plt.subplots(
            2, len(comparisons), figsize=size, sharex=True, squeeze=False, height_ratios=(3, 2), layout="constrained"
        )
        try:
            for column, (name, comparison) in enumerate(comparisons.items()):
                above, below = axes[:, column]
                above.set_title(name, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=20)
                _caption(above, f"mean of {len(comparison.own)} seeds; band: lowest to highest")
                _levels(above, comparison, named=column == 0)
                _differences(below, comparison, named=column == 0)
                below.set_xlabel("share of the stream learned")
            figure.align_ylabels(axes)
            figure.savefig(path, dpi=160, facecolor="white")
        except OSError as error:
            raise UserError(f"--plot {path}: cannot be written ({error.strerror}): give another path") from error
        finally:
            plt.close(figure)


def _levels(axes: Axes, comparison: Comparison, named: bool) -> None:
    """AUC by window: means over the seeds, and from the lowest to the highest of them."""
    for name, runs, colour in (("collisionless", comparison.own, _OWN), ("hashed", comparison.hashed, _HASHED)):
        by_seed = np.array([run.windows for run in runs])
        at = _middles(runs)
        axes.fill_between(at, by_seed.min(axis=0), by_seed.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        axes.plot(at, by_seed.mean(axis=0), color=colour, linewidth=1.8, label=name, marker="o", markersize=3)
    fractions(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlim(0, 1)
    if named:
        axes.set_ylabel("AUC, predicted before learned")
    axes.legend(loc="lower right", frameon=False, labelcolor="linecolor", handlelength=1.2)


def _differences(axes: Axes, comparison: Comparison, named: bool) -> None:
    """What the same windows of the same seeds differ by: each seed, their mean, and three standard errors to either side."""
    by_seed = comparison.window_differences
    at = _middles(comparison.own)
    means, errors = by_seed.mean(axis=0), by_seed.std(axis=0, ddof=1) / np.sqrt(len(by_seed))
    axes.axhline(0, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.plot(at, by_seed.T, color=_DIFFERENCE, linewidth=0.6, alpha=0.35)
    axes.fill_between(at, means - AIM * errors, means + AIM * errors, color=_DIFFERENCE, alpha=0.14, linewidth=0)
    axes.plot(at, means, color=_DIFFERENCE, linewidth=1.8, marker="o", markersize=3)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4f}" if value else "0"))
    if named:
        axes.set_ylabel("collisionless − hashed")  # noqa: RUF001
    mean, error = comparison.differences.mean(), comparison.standard_error
    _caption(axes, f"whole stream {mean:+.5f}, s.e. {error:.5f}; band: ±{AIM} s.e.")


def _caption(axes: Axes, text: str) -> None:
    axes.annotate(text, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8.5, color=_MUTED)


def _middles(runs: list[Learned]) -> np.ndarray:
    windows = len(runs[0].windows)
    return (np.arange(windows) + 0.5) / windows
