"""Confusion matrices with their classes in the order of cell lineages, a box round each lineage.

After Srivastava et al. 2026, Fig. 4: confusion inside a lineage is confusion of neighbouring stages of maturation, and
stands in the box; confusion between lineages is outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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
    name_rows,
    new_figure,
    text_width,
)

RIGHT = LinearSegmentedColormap.from_list("right", ["#ffffff", PALE, BLUE, "#1d4a77"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#fbd3a6", ORANGE, "#8a3f00"])
BOXES = ("#6a1b9a", "#00796b", "#ad1457", "#37474f", "#795548")


@dataclass(frozen=True)
class Block:
    """The rows and columns that a lineage takes in an ordered confusion matrix.

    Attributes:
        lineage: Its name.
        first: Position of its first class.
        last: Position of its last class.
    """

    lineage: str
    first: int
    last: int


def class_order(class_names: Sequence[str], lineages: Mapping[str, Sequence[str]]) -> list[int]:
    """Orders classes by lineage and, within one, by stage; classes of no lineage come last, as they are.

    Args:
        class_names: K classes of the data.
        lineages: Lineage -> classes in order of maturation; classes that the data do not have are passed over.

    Returns:
        K indices into ``class_names``.
    """
    staged = [name for name in dict.fromkeys(chain.from_iterable(lineages.values())) if name in class_names]
    first = [list(class_names).index(name) for name in staged]
    return [*first, *(k for k in range(len(class_names)) if k not in first)]


def lineage_blocks(class_names: Sequence[str], lineages: Mapping[str, Sequence[str]]) -> list[Block]:
    """Finds where each lineage that the data have stands after ``class_order``.

    A class that several lineages name belongs to the first of them.
    """
    lineage_of = {name: lineage for lineage, names in reversed(list(lineages.items())) for name in names}
    placed = [lineage_of.get(class_names[k]) for k in class_order(class_names, lineages)]
    return [
        Block(lineage, placed.index(lineage), placed.index(lineage) + placed.count(lineage) - 1)
        for lineage in lineages
        if lineage in placed
    ]


def confusion_figure(
    counts: np.ndarray,
    class_names: Sequence[str],
    lineages: Mapping[str, Sequence[str]],
    title: str,
    normalised: bool = False,
    rows: str = "given label",
    columns: str = "predicted",
) -> Figure:
    """Draws a confusion matrix: agreement in blue, confusion in orange, nothing where nothing was counted.

    Shade follows the cube root of the count, or the square root of the share, so that rare confusion is seen
    beside classes of thousands. A matrix of confusion alone, with a diagonal of zeros, may be given as well.

    Args:
        counts: K x K images; rows are given labels, columns predictions.
        class_names: K classes in the order of ``counts``.
        lineages: See ``class_order``; may be empty.
        title: Of the figure.
        normalised: Write the percentage of each row instead of counts, and the row's images beside its name.
        rows: What the rows are.
        columns: What the columns are.
    """
    order = class_order(class_names, lineages)
    counts = counts[np.ix_(order, order)]
    names = [class_names[k] for k in order]
    blocks = lineage_blocks(class_names, lineages)
    totals = counts.sum(axis=1)
    shares = np.divide(counts, totals[:, None], out=np.zeros(counts.shape), where=totals[:, None] > 0)
    shade = np.sqrt(shares) if normalised else np.cbrt(counts / max(1, counts.max()))
    texts = [
        [
            (_percent(shares[i, j]) if normalised else f"{counts[i, j]:,}") if counts[i, j] else ""
            for j in range(len(names))
        ]
        for i in range(len(names))
    ]

    longest = max(text_width(name, TEXT) for name in names)
    beside = 0.5 + longest + 0.7 * normalised
    right = 0.25 + max((text_width(block.lineage, SMALL, "bold") for block in blocks), default=0)
    side = min(0.75, (PAGE_WIDTH - beside - right) / len(names))
    width = max(3.4, beside + right + side * len(names))
    upright = longest > side
    figure = new_figure(width, side * len(names) + 0.95 + longest * upright, title)
    axes = figure.add_subplot()
    _draw_cells(axes, shade, texts, side)
    name_rows(axes, names, totals.tolist() if normalised else None)
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    axes.set_ylabel(rows, fontsize=TEXT, color=INK)
    axes.set_xlabel(f"{columns}, % of each row" if normalised else columns, fontsize=TEXT, color=INK)
    _draw_blocks(axes, blocks, len(names))
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    return finished(figure)


def _percent(share: float) -> str:
    """Writes a share so that only what is exactly all of a row reads 100."""
    if share == 1:
        return "100"
    return "<0.1" if share < 0.0005 else f"{min(100 * share, 99.9):.1f}"


def _draw_cells(axes: Axes, shade: np.ndarray, texts: list[list[str]], side: float) -> None:
    """Fills the cells by ``shade``, K x K in [0, 1], and writes into them."""
    diagonal = np.eye(len(shade), dtype=bool)
    colours = np.where(diagonal[..., None], RIGHT(shade), WRONG(shade))[..., :3]
    axes.imshow(colours, interpolation="nearest")
    luminance = colours @ (0.2126, 0.7152, 0.0722)
    longest = max(3, *(len(text) for row in texts for text in row))
    size = min(TEXT + 1, (side * 72 - 4) / (0.62 * longest))  # a digit is 0.62 of the size wide
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            if text:
                colour = "white" if luminance[i, j] < 0.53 else INK
                axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
    calm(axes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=TEXT)
    edges = np.arange(len(shade) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="#eceff2", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def _draw_blocks(axes: Axes, blocks: Sequence[Block], classes: int) -> None:
    """Boxes the square of each lineage and names it at the right, in the box's colour."""
    for k, block in enumerate(blocks):
        colour, length = BOXES[k % len(BOXES)], block.last - block.first + 1
        corner = block.first - 0.5
        box = Rectangle(
            (corner, corner), length, length, fill=False, edgecolor=colour, linewidth=1.8, clip_on=False, zorder=3
        )
        axes.add_patch(box)
        bar = [block.first - 0.4, block.last + 0.4]
        axes.plot([classes - 0.32] * 2, bar, color=colour, linewidth=2.2, clip_on=False, solid_capstyle="butt")
        middle = (block.first + block.last) / 2
        axes.text(classes - 0.15, middle, block.lineage, va="center", fontsize=SMALL, color=colour, fontweight="bold")
