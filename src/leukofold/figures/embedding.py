"""Maps of what a network sees: images as points, coloured by class or source, or by class and laboratory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy.spatial import KDTree

from leukofold.figures.style import (
    FAINT,
    INK,
    MUTED,
    PAGE_WIDTH,
    SMALL,
    TEXT,
    class_colours,
    class_markers,
    finished,
    legend_below,
    new_figure,
    shorten,
)

DOMAIN_MARKERS = ("^", "o", "s", "D", "v", "P", "X")


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


def domain_figure(
    panels: Mapping[str, np.ndarray],
    classes: Sequence[str],
    domains: Sequence[str],
    order: Sequence[str],
    title: str,
    note: str = "",
) -> Figure:
    """Draws the same images as several networks see them: colours are classes, marks are laboratories.

    After Tsutsui et al. 2023, Fig. 3: where a network has learnt the laboratory, marks lie apart within a colour.

    Args:
        panels: Network -> n x 2 embedding, such as t-SNE's; the axes mean nothing and are left out.
        classes: n classes.
        domains: n laboratories, the first one's marks are hollow.
        order: Classes in the order of the legend, which fixes their colours.
        title: Of the figure.
        note: Below the panels.
    """
    of_class, of_domain = np.asarray(classes), np.asarray(domains)
    colours, names = class_colours(order), list(dict.fromkeys(domains))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(PAGE_WIDTH, rows * (PAGE_WIDTH / columns + 0.1) + 0.75 + 0.2 * bool(note), title)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, points) in zip(grid, panels.items(), strict=False):
        (left, low), (right, high) = points.min(axis=0), points.max(axis=0)
        reach = 0.53 * max(right - left, high - low)  # a little more than half of the longer side
        x, y = (left + right) / 2, (low + high) / 2
        axes.set(xticks=[], yticks=[], xlim=(x - reach, x + reach), ylim=(y - reach, y + reach), aspect="equal")
        axes.spines[:].set_color(FAINT)
        axes.set_title(shorten(name, int(66 / columns)), loc="left", fontsize=TEXT, fontweight="bold", color=INK)
        for number, domain in enumerate(names):
            for label in order:
                x, y = points[(of_class == label) & (of_domain == domain)].T
                axes.scatter(x, y, 13, **_mark(colours[label], number))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    present = [name for name in order if name in set(classes)]
    handles = [Line2D([], [], linestyle="", marker="s", markersize=5, color=colours[k], label=k) for k in present]
    marks = [_mark(MUTED, number) for number in range(len(names))]
    handles += [
        Line2D([], [], linestyle="", marker=mark["marker"], markersize=5, markerfacecolor=mark["facecolors"],
               markeredgecolor=MUTED, label=name)
        for name, mark in zip(names, marks, strict=True)
    ]  # fmt: skip
    legend_below(figure, handles, 7, note)
    return finished(figure)


def _mark(colour: str, domain: int) -> dict[str, Any]:
    """Returns how an image of a laboratory is drawn."""
    return {
        "marker": DOMAIN_MARKERS[domain % len(DOMAIN_MARKERS)],
        "facecolors": "none" if domain == 0 else colour,
        "edgecolors": colour,
        "linewidths": 0.9,
        "rasterized": True,
    }


def _densest(points: np.ndarray) -> np.ndarray:
    """Returns the point that has the nearest quarter of all points about it: 2 coordinates."""
    neighbours = min(len(points), max(2, round(len(points) / 4)))  # itself is the first
    distances, _ = KDTree(points).query(points, [neighbours])
    densest: np.ndarray = points[distances.argmin()]
    return densest
