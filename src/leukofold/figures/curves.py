"""Learning curves: loss and score of every fold, one row of panels per run."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from leukofold.figures.style import (
    INK,
    MUTED,
    PAGE_HEIGHT,
    PAGE_WIDTH,
    SMALL,
    TEXT,
    calm,
    class_colours,
    finished,
    new_figure,
)


def learning_curves(histories: Mapping[str, Mapping[int, pd.DataFrame]], metric: str, metric_title: str) -> Figure:
    """Draws the training loss and the validation score over the epochs, the best epoch marked in both.

    Scores share one scale over all runs; losses do not, since losses of different kinds do not compare.

    Args:
        histories: Run -> fold -> one row per epoch: ``epoch``, ``loss`` and ``metric`` (a fold's history.csv).
        metric: Column of the score; its highest value marks the best epoch.
        metric_title: The metric's name for people.
    """
    folds = sorted({fold for history in histories.values() for fold in history})
    colours = class_colours([f"fold {fold}" for fold in folds])
    rows = len(histories)
    figure = new_figure(PAGE_WIDTH, min(rows * 1.9 + 0.4, max(PAGE_HEIGHT, rows * 0.95)))
    panels = figure.subplots(rows, 2, squeeze=False)
    for axes in panels[1:, 1]:
        axes.sharey(panels[0, 1])
    for (run, history), (left, right) in zip(histories.items(), panels, strict=True):
        left.set_title(run, loc="left", fontsize=TEXT, fontweight="bold", color=INK)
        for axes, column, label in ((left, "loss", "training loss"), (right, metric, metric_title)):
            calm(axes, "y")
            axes.margins(x=0.02)
            axes.set_ylabel(label, fontsize=SMALL, color=INK)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
            for fold, table in sorted(history.items()):
                _draw_fold(axes, table, column, metric, colours[f"fold {fold}"])
    for axes in panels[-1]:
        axes.set_xlabel("epoch", fontsize=SMALL, color=INK)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    handles.append(Line2D([], [], color=MUTED, linestyle="", marker="o", markersize=4.5, label="best epoch"))
    figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=SMALL, labelcolor=INK)
    return finished(figure)


def _draw_fold(axes: Axes, table: pd.DataFrame, column: str, metric: str, colour: str) -> None:
    """Draws one fold's curve of ``column`` and its point at the epoch with the best ``metric``."""
    axes.plot(table["epoch"], table[column], color=colour, linewidth=1.1)
    best = table.iloc[int(table[metric].argmax())]
    axes.plot(
        best["epoch"],
        best[column],
        color=colour,
        marker="o",
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.8,
    )
