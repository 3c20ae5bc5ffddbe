"""Reliability diagrams: whether a network is as often right as it is sure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leukofold.calibration import Reliability
from leukofold.figures.style import BLUE, INK, MUTED, ORANGE, PAGE_WIDTH, SMALL, TEXT, calm, finished, new_figure


def reliability_figure(before: Reliability, after: Reliability | None = None) -> Figure:
    """Draws accuracy over confidence, the gap to equality, and how many images are how sure.

    After Guo et al. 2017, Fig. 1 and 4.

    Args:
        before: Of the network as it was trained.
        after: With the temperature that was fitted; None: only ``before`` is drawn.
    """
    drawn = {"as trained": before} if after is None else {"as trained": before, "with temperature scaling": after}
    figure = new_figure(PAGE_WIDTH / 2 * len(drawn), 4.75)
    panels = figure.subplots(2, len(drawn), sharex=True, sharey="row", squeeze=False, height_ratios=(3.2, 1))
    for (upper, lower), (name, reliability) in zip(panels.T, drawn.items(), strict=True):
        upper.set_title(f"{name}: ECE {reliability.ece:.3f}", loc="left", fontsize=TEXT, color=INK, fontweight="bold")
        _draw_gaps(upper, reliability)
        calm(lower, "y")
        share = 100 * reliability.count / reliability.count.sum()
        lower.bar(
            reliability.edges[:-1], share, np.diff(reliability.edges), align="edge", color=BLUE, edgecolor="white"
        )
        lower.set_xlabel("confidence", fontsize=TEXT, color=INK)
    panels[0, 0].set_ylabel("accuracy", fontsize=TEXT, color=INK)
    panels[1, 0].set_ylabel("% of images", fontsize=TEXT, color=INK)
    return finished(figure)


def _draw_gaps(axes: Axes, reliability: Reliability) -> None:
    """Draws each bin that has images as a point, and its gap to the diagonal."""
    calm(axes, "both")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    filled = reliability.count > 0
    confidence, accuracy = reliability.confidence[filled], reliability.accuracy[filled]
    axes.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=3, alpha=0.45)
    axes.plot(
        confidence, accuracy, "o-", color=BLUE, linewidth=1.2, markersize=5, markeredgecolor="white", clip_on=False
    )
    axes.text(0.03, 0.97, "under-confident", va="top", fontsize=SMALL, color=MUTED)
    axes.text(0.97, 0.03, "over-confident", ha="right", fontsize=SMALL, color=MUTED)
    axes.set(xlim=(0, 1), ylim=(0, 1))
