"""Accuracy patient by patient: a good average may hide patients who are mostly wrong."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from leukofold.figures.style import (
    INK,
    MUTED,
    PAGE_WIDTH,
    SMALL,
    TEXT,
    TINY,
    calm,
    class_colours,
    class_markers,
    finished,
    legend_above,
    new_figure,
    shorten,
)

NAMED = 60  # as many groups can be named side by side on a page
WORST = 6  # are listed where there are more
SMALLEST, LARGEST = 8.0, 110.0  # areas of points, in square points


def group_accuracy_figure(table: pd.DataFrame, title: str) -> Figure:
    """Draws one point per group, the worst first; the larger the point, the more images.

    Args:
        table: One row per group: ``group``, ``images``, ``accuracy`` in [0, 1] and, if groups have one, ``label``,
            which colours the points.
        title: Of the figure.
    """
    table = table.sort_values(["accuracy", "images"], ascending=[True, False], kind="stable").reset_index(drop=True)
    figure = new_figure(PAGE_WIDTH, 3.7, title)
    axes = figure.add_subplot()
    calm(axes, "y")
    overall = float(np.average(table["accuracy"], weights=table["images"]))
    dashes: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (4, 3))}
    axes.axhline(overall, **dashes, zorder=1)
    handles = [Line2D([], [], **dashes, label=f"all images: {overall:.3f}"), *_draw_points(axes, table)]
    legend_above(axes, handles)
    axes.set_xlim(-0.015 * len(table) - 0.5, 1.015 * len(table) - 0.5)
    lowest = min(0.9, table["accuracy"].min() - 0.06)
    axes.set_ylim(lowest, 1.03)
    axes.set_yticks([tick for tick in axes.get_yticks() if lowest <= tick <= 1.001])  # nothing is above 1
    axes.set_ylabel("accuracy", fontsize=TEXT, color=INK)
    _name_groups(axes, table)
    return finished(figure)


def _draw_points(axes: Axes, table: pd.DataFrame) -> list[Line2D]:
    """Draws the points; returns what the legend shows: the labels, and the sizes of two numbers of images."""
    largest = int(table["images"].max())

    def area(images: Any) -> Any:
        return SMALLEST + (LARGEST - SMALLEST) * images / largest

    labels = table["label"].astype(str) if "label" in table else pd.Series("", index=table.index)
    names = sorted(labels.unique())
    colours, markers = class_colours(names), class_markers(names)
    for name, rows in table.groupby(labels):
        style: dict[str, Any] = {"alpha": 0.7, "edgecolors": "white", "linewidths": 0.3, "zorder": 2, "clip_on": False}
        axes.scatter(rows.index, rows["accuracy"], area(rows["images"]), c=colours[name], marker=markers[name], **style)
    legend = [
        Line2D([], [], linestyle="", color=colours[name], marker=markers[name], markersize=6, label=shorten(name, 24))
        for name in names
        if name
    ]
    for images in (10 ** int(np.log10(largest)) // 10, 10 ** int(np.log10(largest))):
        if images:
            size = float(np.sqrt(area(images)))
            legend.append(Line2D([], [], linestyle="", color=MUTED, marker="o", markersize=size, label=f"n={images:,}"))
    return legend


def _name_groups(axes: Axes, table: pd.DataFrame) -> None:
    """Names every group below its point or, where they are too many, lists the worst in the empty corner."""
    if len(table) <= NAMED:
        names = [shorten(name, 16) for name in table["group"].astype(str)]
        size = float(np.clip(360 / len(table), TINY, SMALL))
        axes.set_xticks(range(len(table)), names, rotation=90, fontsize=size)
        axes.tick_params(axis="x", length=0)
        return
    axes.set_xlabel(f"{len(table):,} groups, lowest accuracy first", fontsize=TEXT, color=INK)
    worst = [
        f"{shorten(str(row.group), 24)}: {row.accuracy:.2f} (n={row.images:,})"
        for row in table.head(WORST).itertuples()
    ]
    axes.text(
        0.99, 0.04, "\n".join(["the lowest:", *worst]), transform=axes.transAxes, ha="right", fontsize=TINY + 0.5,
        color=MUTED, linespacing=1.4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
    )  # fmt: skip
