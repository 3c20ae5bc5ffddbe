"""Learning curves of repeated trainings: a mean with a band of one standard deviation for each of several settings.

After Prellberg and Kramer 2019, Fig. 4.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from leukofold.figures.style import (
    COLOURS,
    INK,
    MUTED,
    PAGE_WIDTH,
    SMALL,
    TEXT,
    TITLE,
    calm,
    finished,
    new_figure,
    text_width,
)

PANEL_HEIGHT = 2.0  # inches
FEW_EPOCHS = 12  # so many can be marked one by one
DASHES = (0, (3.5, 2))


@dataclass(frozen=True)
class Band:
    """One line of a panel.

    Attributes:
        name: In the legend; lines of one name in several panels look the same.
        values: Epochs x repetitions, the epoch as index; NaN where a repetition has stopped.
        colour: Number of its colour, 0 upwards; different for at most 13.
        dashed: Whether the line is.
    """

    name: str
    values: pd.DataFrame
    colour: int
    dashed: bool = False


def band_figure(panels: Mapping[str, Sequence[Band]], title: str, note: str = "", alike: Sequence[str] = ()) -> Figure:
    """Draws a panel per quantity, over the epochs; 8 lines are readable.

    A line is the mean over the repetitions, its band one standard deviation (n - 1) to either side. It ends where fewer
    than half of the repetitions go on: the mean of a few that are left would be of other trainings.

    Args:
        panels: Title -> lines.
        title: Of the figure.
        note: Below the panels, such as what the repetitions are.
        alike: Titles of panels that share one scale; all others show shares, which no band leaves 0 to 1 for.
    """
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    names = {band.name: band for bands in panels.values() for band in bands}
    across = max(1, int((PAGE_WIDTH - 0.1) / (0.45 + max(text_width(name, SMALL) for name in names))))
    lines = -(-len(names) // across)
    titles = textwrap.wrap(title, int(PAGE_WIDTH * 11), break_on_hyphens=False)
    above = 0.2 + 0.17 * len(titles) + 0.16 * lines
    figure = new_figure(PAGE_WIDTH, rows * PANEL_HEIGHT + above + 0.25 * bool(note))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    first: Axes | None = None
    for axes, (name, bands) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, name, bands)
        if name in alike:
            if first is not None:
                axes.sharey(first)
            first = first or axes
        else:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], label=name, **_style(band)) for name, band in names.items()]
    legend = figure.legend(  # which holds the title: the layout keeps no distance between the two
        handles=handles, loc="outside upper left", ncols=across, frameon=False, fontsize=SMALL, labelcolor=INK,
        title="\n".join(titles), alignment="left",
    )  # fmt: skip
    legend.get_title().set(fontsize=TITLE, fontweight="bold", color=INK)
    if note:
        figure.supxlabel(note, x=0.06 / PAGE_WIDTH, ha="left", fontsize=SMALL, color=MUTED)
    return finished(figure)


def _style(band: Band) -> dict[str, Any]:
    """Returns how a band's line is drawn."""
    return {
        "color": COLOURS[band.colour % len(COLOURS)],
        "linewidth": 1.2,
        "linestyle": DASHES if band.dashed else "-",
    }


def _draw_panel(axes: Axes, name: str, bands: Sequence[Band]) -> None:
    """Draws the lines of one quantity."""
    calm(axes, "y")
    axes.set_title(name, loc="left", fontsize=TEXT, fontweight="bold", color=INK)
    for band in bands:
        values = band.values[2 * band.values.notna().sum(axis=1) >= band.values.shape[1]]
        mean, deviation = values.mean(axis=1), values.std(axis=1)  # of n - 1; NaN of a single repetition
        marker: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(values) <= FEW_EPOCHS else {}
        axes.plot(mean.index, mean, **_style(band), **marker)
        style: dict[str, Any] = {"color": _style(band)["color"], "linewidth": 0}
        axes.fill_between(mean.index, mean - deviation, mean + deviation, alpha=0.15, **style)
    axes.margins(x=0.03)
    axes.set_xlabel("epoch", fontsize=SMALL, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
