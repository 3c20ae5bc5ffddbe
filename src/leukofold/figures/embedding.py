"""Maps of what a network sees: images as points, coloured by class or source."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy.spatial import KDTree

from leukofold.figures.style import (
    FAINT,
    INK,
    PAGE_WIDTH,
    SMALL,
    TEXT,
    class_colours,
    class_markers,
    finished,
    new_figure,
    shorten,
)


def scatter_figure(points: np.ndarray, values: Sequence[str], title: str, order: Sequence[str]) -> Figure:
    """Draws a two-dimensional embedding, such as t-SNE's; its axes mean nothing and are left out.

    Rare values lie on top. Each value's name stands where its points are densest.

    Args:
        points: n x 2.
        values: n classes or sources.
        title: Of the figure.
        order: Values in the order of the legend, which fixes their colours and marks; those without a point are
            left out of the legend.
    """
    of_value = np.asarray(values)
    shown = {name: points[of_value == name] for name in order if (of_value == name).any()}
    colours, markers = class_colours(order), class_markers(order)
    figure = new_figure(PAGE_WIDTH, 5.4, title)
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color(FAINT)
    size = float(np.clip(24_000 / len(points), 3, 22))
    style: dict[str, Any] = {"alpha": 0.75, "linewidths": 0, "rasterized": True}
    for layer, name in enumerate(sorted(shown, key=lambda name: -len(shown[name]))):
        x, y = shown[name].T
        axes.scatter(x, y, size, c=colours[name], marker=markers[name], zorder=2 + layer / 1000, **style)
    for name, own in shown.items():
        axes.annotate(
            shorten(name, 24), tuple(_densest(own)), (0, 4), textcoords="offset points", ha="center", fontsize=SMALL,
            fontweight="bold", color=INK, path_effects=[withStroke(linewidth=2.2, foreground="white")], zorder=4,
        )  # fmt: skip
    handles = [
        Line2D([], [], linestyle="", color=colours[name], marker=markers[name], markersize=5.5,
               label=f"{shorten(name, 24)}  {len(own):,}")
        for name, own in shown.items()
    ]  # fmt: skip
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=TEXT,
        labelcolor=INK,
    )  # fmt: skip
    return finished(figure)


def _densest(points: np.ndarray) -> np.ndarray:
    """Returns the point that has the nearest quarter of all points about it: 2 coordinates."""
    neighbours = min(len(points), max(2, round(len(points) / 4)))  # itself is the first
    distances, _ = KDTree(points).query(points, [neighbours])
    densest: np.ndarray = points[distances.argmin()]
    return densest
