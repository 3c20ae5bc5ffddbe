"""How sure the heads of MM-MIMO are, each of which answers for one image of a cell.

After Yang et al. 2022, Fig. 4: heads fed all images, then one image in the place of all.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leukofold.figures.style import (
    COLOURS,
    INK,
    PAGE_WIDTH,
    SMALL,
    TEXT,
    calm,
    finished,
    legend_below,
    new_figure,
)

STEPS = 20  # of a histogram
IN_A_ROW = 3
ROW_HEIGHT = 1.75  # inches


def confidence_figure(
    panels: Mapping[str, np.ndarray], heads: Sequence[str], classes: int, title: str, note: str
) -> Figure:
    """Draws a panel for each input and a line for each head: the share of cells by the head's confidence.

    Args:
        panels: What is fed -> n x M, each head's highest probability of each cell.
        heads: The M images that the heads answer for.
        classes: K; no confidence is below 1 / K.
        title: Of the figure.
        note: Below the panels.
    """
    rows = -(-len(panels) // IN_A_ROW)
    figure = new_figure(PAGE_WIDTH, 0.95 + ROW_HEIGHT * rows, title)
    grid = figure.subplots(rows, IN_A_ROW, sharex=True, sharey=True, squeeze=False)
    edges = np.linspace(1 / classes, 1, STEPS + 1)
    colours = dict(zip(heads, COLOURS, strict=False))
    for axes, (name, confidences) in zip(grid.ravel(), panels.items(), strict=False):
        calm(axes, "y")
        for head, values in zip(heads, confidences.T, strict=True):
            share = np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, color=colours[head], linewidth=1.2)
            axes.plot(values.mean(), 0, "^", color=colours[head], markersize=5, clip_on=False, zorder=3)
        axes.set_title(name, loc="left", fontsize=TEXT, fontweight="bold", color=INK)
    grid[0, 0].set_ylim(bottom=0)  # of all, and only once each is drawn: the limits would be the first one's
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for axes in grid.ravel()[max(0, len(panels) - IN_A_ROW) : len(panels)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("confidence", fontsize=SMALL, color=INK)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of cells", fontsize=SMALL, color=INK)
    handles = [Line2D([], [], color=colours[head], label=f"head of {head}") for head in heads]
    legend_below(figure, handles, 4, note)
    return finished(figure)
