"""Scores of runs: how far the folds lie apart, and how sure the score on all images is."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leukofold.figures.style import BLUE, INK, PAGE_WIDTH, PALE, SMALL, TEXT, calm, finished, legend_above, new_figure


def fold_spread_figure(
    scores: pd.DataFrame, whole: Mapping[str, tuple[float, float, float]], metric_title: str
) -> Figure:
    """Draws a row per run: a ring per fold, and the score on all images with its interval.

    Args:
        scores: Columns ``run``, ``fold`` and ``value``.
        whole: Run -> value, low and high on all images, in the order of the rows; low and high may be NaN.
        metric_title: The metric's name for people.
    """
    figure = new_figure(PAGE_WIDTH, 0.75 + 0.4 * len(whole))
    axes = figure.add_subplot()
    calm(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    for y, (run, (value, low, high)) in enumerate(whole.items()):
        folds = scores.loc[scores["run"] == run, "value"]
        axes.hlines(y, low, high, color=PALE, linewidth=3.5)
        axes.plot(value, y, "D", color=BLUE, markersize=5)
        axes.plot(folds, [y] * len(folds), "o", color=INK, markersize=6.5, markerfacecolor="none", markeredgewidth=0.9)
        # the name above its row and not beside it: names of studies' runs are as long as the page is wide
        above: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "color": INK}
        axes.annotate(run, (0, y), (0, 6), fontsize=SMALL, **above)
        interval = f" ({low:.3f} to {high:.3f})" if low <= high else ""
        axes.annotate(f"{value:.4f}{interval}", (1, y), (0, 6), fontsize=SMALL, ha="right", **above)
    axes.set_ylim(len(whole) - 0.5, -0.75)
    axes.margins(x=0.03)
    axes.set_xlabel(metric_title, fontsize=TEXT, color=INK)
    handles = [
        Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor="none", markersize=6.5, label="one fold"),
        Line2D([], [], linestyle="", marker="D", color=BLUE, markersize=5, label="all folds"),
        Line2D([], [], color=PALE, linewidth=3.5, label="its 95% interval"),
    ]
    legend_above(axes, handles)
    return finished(figure)
