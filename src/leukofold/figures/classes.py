"""Precision, recall and F1 of every class, with intervals."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leukofold.figures.style import (
    BLUE,
    INK,
    MUTED,
    PAGE_WIDTH,
    PALE,
    SMALL,
    TEXT,
    calm,
    finished,
    name_rows,
    new_figure,
)

PANELS = {"precision": "precision", "recall": "recall (sensitivity)", "f1": "F1"}


def class_bars(table: pd.DataFrame, title: str) -> Figure:
    """Draws a point with its interval per class and measure, the class of most images first.

    Args:
        table: One row per class: ``class``, ``images``, and for each of precision, recall and f1 the value, ``_low``
            and ``_high``, in [0, 1]. Where the value is NaN (such as the precision of a class that was never
            predicted) nothing is drawn.
        title: Of the figure.
    """
    table = table.sort_values("images", ascending=False, kind="stable").reset_index(drop=True)
    figure = new_figure(PAGE_WIDTH, 0.95 + 0.235 * len(table), title)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (measure, label) in zip(panels, PANELS.items(), strict=True):
        calm(axes, "both")
        _draw_measure(axes, table, measure)
        axes.set_title(label, loc="left", fontsize=TEXT, color=INK)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(table) - 0.5, -0.5))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    name_rows(panels[0], table["class"].tolist(), table["images"].tolist())
    panels[0].tick_params(axis="y", labelsize=TEXT)
    return finished(figure)


def _draw_measure(axes: Axes, table: pd.DataFrame, measure: str) -> None:
    """Draws one measure: whiskers, points, and the values in a column at the right."""
    known = table[table[measure].notna()]
    axes.hlines(known.index, known[f"{measure}_low"], known[f"{measure}_high"], color=PALE, linewidth=3)
    axes.plot(known[measure], known.index, "o", color=BLUE, markersize=4.5)
    for y, value in zip(known.index, known[measure], strict=True):
        axes.text(1.05, y, f"{value:.2f}", va="center", fontsize=SMALL, color=MUTED)
