"""Box plots of repeated trainings: how much a score depends on the seed.

After Tsutsui et al. 2023, Fig. 2 and 4: a single training of the same network tells little.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leukofold.figures.style import (
    BLUE,
    INK,
    ORANGE,
    PAGE_WIDTH,
    PALE,
    SMALL,
    TEXT,
    calm,
    finished,
    legend_below,
    new_figure,
    shorten,
)

ROW_HEIGHT = 0.26  # inches


def box_figure(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    published: Mapping[str, Mapping[str, float]],
    title: str,
    quantity: str,
    note: str = "",
) -> Figure:
    """Draws a panel per part of the data and a row per setting: a box, and a point for every training.

    A box reaches from the lower to the upper quartile with the median in it, its whiskers to the lowest and the highest
    training.

    Args:
        panels: Part -> setting -> values, in [0, 1]; rows in the order of the first panel's settings.
        published: Part -> setting -> value of a publication; those that there are.
        title: Of the figure.
        quantity: What the values are.
        note: Below the panels.
    """
    rows = list(next(iter(panels.values())))
    figure = new_figure(PAGE_WIDTH, 0.95 + ROW_HEIGHT * len(rows) + 0.2 * bool(note), title)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (part, settings) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, rows, settings, published.get(part, {}))
        axes.set_title(part, loc="left", fontsize=TEXT, fontweight="bold", color=INK)
        axes.set_xlabel(quantity, fontsize=SMALL, color=INK)
    grid[0].set_yticks(range(len(rows)), [shorten(name, 34) for name in rows])
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [Line2D([], [], linestyle="", marker="o", markersize=3, color=INK, label="one training")]
    if any(published.values()):
        handles.append(Line2D([], [], linestyle="", marker="D", markersize=4, color=ORANGE, label="published mean"))
    legend_below(figure, handles, 2, note)
    return finished(figure)


def _draw_panel(
    axes: Axes, rows: Sequence[str], settings: Mapping[str, Sequence[float]], published: Mapping[str, float]
) -> None:
    """Draws the boxes of one part."""
    calm(axes, "x")
    line: dict[str, Any] = {"color": BLUE, "linewidth": 0.8}
    known = [(y, settings[name]) for y, name in enumerate(rows) if settings.get(name)]
    axes.boxplot(
        [values for _, values in known],
        positions=[y for y, _ in known],
        orientation="horizontal",
        widths=0.55,
        whis=(0, 100),
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": PALE, "edgecolor": BLUE, "linewidth": 0.8},
        medianprops={**line, "linewidth": 1.4},
        whiskerprops=line,
        capprops=line,
    )
    for y, values in known:
        axes.plot(values, [y] * len(values), "o", color=INK, markersize=2.2, zorder=3)
    marks = [(published[name], y) for y, name in enumerate(rows) if name in published]
    for value, y in marks:
        axes.plot(value, y, "D", color=ORANGE, markersize=4, zorder=4)
    axes.margins(x=0.06)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=TEXT)
