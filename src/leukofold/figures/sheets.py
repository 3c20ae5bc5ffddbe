"""Sheets of cell pictures to look through, and heat laid over a cell."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from leukofold.figures.style import FAINT, INK, MUTED, PAGE_WIDTH, TEXT, TINY, TITLE, finished, new_figure, shorten

MARGIN, GAP, LEGEND = 0.08, 0.07, 1.15  # inches; LEGEND is the column of the rows' titles
LARGEST = 1.2  # inches: side of a cell where there are few
LINE = 0.105  # inches: height of a caption's line
LETTERS = 13  # of a caption that fit below a cell where 8 stand in a row


@dataclass(frozen=True)
class SheetCell:
    """One cell on a sheet.

    Attributes:
        image: H x W x 3 uint8 RGB.
        caption: Two or three short lines below it; what is too long loses its middle.
        colour: Of the frame; None: no frame.
    """

    image: np.ndarray
    caption: str = ""
    colour: str | None = None


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet.

    Attributes:
        title: At its left.
        subtitle: Below the title, smaller.
        cells: From left to right; 8 are comfortable.
    """

    title: str
    subtitle: str
    cells: Sequence[SheetCell]


def cell_sheet(rows: Sequence[SheetRow], title: str, note: str = "") -> Figure:
    """Draws rows of cells with captions, as wide as a page; 10 rows of 8 fill one.

    Args:
        rows: From top to bottom.
        title: Of the figure.
        note: Below the rows, such as what the captions say.
    """
    columns = max(len(row.cells) for row in rows)
    side = min(LARGEST, (PAGE_WIDTH - 2 * MARGIN - LEGEND) / columns - GAP)
    lines = max(cell.caption.count("\n") + 1 if cell.caption else 0 for row in rows for cell in row.cells)
    step = max(side + LINE * lines, *(_legend_height(row) for row in rows)) + 0.07
    notes = textwrap.wrap(note, 125)
    titles = textwrap.wrap(title, 79)
    top = MARGIN + 0.17 * len(titles) + 0.08
    height = top + step * len(rows) + 0.14 * len(notes) + MARGIN
    figure = new_figure(PAGE_WIDTH, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, PAGE_WIDTH), ylim=(height, 0))  # in inches, downwards
    axes.set_axis_off()
    axes.text(MARGIN, MARGIN, "\n".join(titles), va="top", fontsize=TITLE, fontweight="bold", color=INK)
    for k, row in enumerate(rows):
        y = top + k * step
        _draw_legend(axes, row, y)
        for column, cell in enumerate(row.cells):
            _draw_cell(axes, cell, MARGIN + LEGEND + column * (side + GAP), y, side)
    axes.text(MARGIN, height - MARGIN, "\n".join(notes), va="bottom", fontsize=TINY + 0.5, color=MUTED)
    return finished(figure)


def name_lines(name: str) -> str:
    """Breaks the name of an image that is too long for a line of a caption, after a separator if both lines fit."""
    whole = shorten(name, 2 * LETTERS)
    if len(whole) <= LETTERS:
        return whole
    half = (len(whole) + 1) // 2
    separators = [k + 1 for k, letter in enumerate(whole) if letter in "_- "]
    fitting = [cut for cut in separators if len(whole) - LETTERS <= cut <= LETTERS]
    cut = min(fitting, key=lambda cut: abs(cut - half), default=half)
    return f"{whole[:cut]}\n{whole[cut:]}"


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays heat over a cell: where there is none the cell is as it was, where it is full it still shows through.

    Viridis is perceptually uniform and safe for colour-blind readers; its bright end, yellow, is no colour of a stain.

    Args:
        image: H x W x 3 uint8 RGB.
        heat: H x W in [0, 1], such as Grad-CAM's.

    Returns:
        H x W x 3 uint8 RGB.
    """
    share = 0.65 * heat[..., None]
    colour = 255 * colormaps["viridis"](heat)[..., :3]
    mixed: np.ndarray = np.rint((1 - share) * image + share * colour).astype(np.uint8)
    return mixed


def _legend_lines(row: SheetRow) -> tuple[list[str], list[str]]:
    """Breaks a row's title and subtitle into lines that fit the column at its left."""
    return textwrap.wrap(row.title, 14), textwrap.wrap(row.subtitle, 21)


def _legend_height(row: SheetRow) -> float:
    """Returns the inches that a row's title and subtitle take."""
    titles, subtitles = _legend_lines(row)
    return 0.145 * len(titles) + 0.02 + 0.115 * len(subtitles)


def _draw_legend(axes: Axes, row: SheetRow, y: float) -> None:
    """Writes a row's title and subtitle at its left, from ``y`` inches downwards."""
    titles, subtitles = _legend_lines(row)
    axes.text(MARGIN, y, "\n".join(titles), va="top", fontsize=TEXT, fontweight="bold", color=INK)
    below = y + 0.145 * len(titles) + 0.02
    axes.text(MARGIN, below, "\n".join(subtitles), va="top", fontsize=TINY + 0.5, color=MUTED)


def _draw_cell(axes: Axes, cell: SheetCell, x: float, y: float, side: float) -> None:
    """Draws one cell with its upper left corner at (x, y) inches, its frame and its caption."""
    axes.imshow(cell.image, extent=(x, x + side, y + side, y), aspect="auto")
    edge: dict[str, Any] = {"edgecolor": cell.colour or FAINT, "linewidth": 2.0 if cell.colour else 0.5}
    axes.add_patch(Rectangle((x, y), side, side, fill=False, **edge))
    most = int(side * 72 / (0.6 * TINY))
    caption = "\n".join(shorten(line, most) for line in cell.caption.split("\n"))
    axes.text(
        x + side / 2, y + side + 0.035, caption, ha="center", va="top", fontsize=TINY, color=INK, linespacing=1.15
    )
