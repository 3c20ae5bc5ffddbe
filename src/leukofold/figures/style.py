"""What all figures share: size, type and colours, literal text, and bytes that depend on the data alone.

``Figure`` is used directly: pyplot would keep every figure alive and look for a display.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import TextPath

from leukofold.files import replacing

PAGE_WIDTH = 7.2  # inches: the text of an A4 page; at 900 pixels on a screen, 8 points are 14 pixels
PAGE_HEIGHT = 10.2  # inches: what is higher does not print on one A4 page
DPI = 160

TITLE, TEXT, SMALL, TINY = 10.0, 8.0, 7.0, 6.0  # points
INK, MUTED, FAINT = "#1f2933", "#66727f", "#dde2e7"
BLUE, PALE, ORANGE = "#2f6fab", "#a9c8e6", "#d06a00"  # a value, its interval, what is wrong

COLOURS = (  # Petroff 2021 (arXiv:2107.02270), 10 colours; then black, dark green and violet to make 13
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
    "#000000", "#00603c", "#4a0058",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def class_colours(names: Sequence[str]) -> dict[str, str]:
    """Gives every class a colour that colour-blind readers tell apart.

    Of the 13 colours no two are nearer than 15 (CIEDE2000), or 10 under simulated protanopia, deuteranopia and
    tritanopia (Machado et al. 2009). The 14th class begins again; see ``class_markers``.

    Args:
        names: K classes.

    Returns:
        Class -> "#rrggbb".
    """
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def class_markers(names: Sequence[str]) -> dict[str, str]:
    """Gives every class a matplotlib marker; 7 of them beside 13 colours make 91 different pairs."""
    return {name: MARKERS[k % len(MARKERS)] for k, name in enumerate(names)}


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Returns an empty white figure whose axes are laid out without overlap.

    Args:
        width: Inches; ``PAGE_WIDTH`` is a full page's.
        height: Inches, with a title of one line; further lines are added.
        title: Above everything, flush left; long ones are broken into lines.
    """
    lines = textwrap.wrap(title, int(width * 11), break_on_hyphens=False)
    size = (width, height + 0.17 * max(0, len(lines) - 1))
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout=layout)
    if lines:
        figure.suptitle("\n".join(lines), x=0.06 / width, ha="left", fontsize=TITLE, fontweight="bold", color=INK)
    return figure


def calm(axes: Axes, grid: str = "") -> None:
    """Leaves of an axes what is needed to read it.

    Args:
        axes: The axes.
        grid: "x", "y" or "both": where faint lines lead the eye; "" for none.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)
    axes.tick_params(labelsize=SMALL, labelcolor=INK, color=MUTED, width=0.6, length=2.5)
    axes.set_axisbelow(True)
    if grid == "x" or grid == "both":
        axes.xaxis.grid(True, color=FAINT, linewidth=0.6)
    if grid == "y" or grid == "both":
        axes.yaxis.grid(True, color=FAINT, linewidth=0.6)


def legend_above(axes: Axes, handles: Sequence[Line2D]) -> None:
    """Puts a legend between an axes and the title: nothing of the data is ever below it."""
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, ncols=6, frameon=False,
        fontsize=SMALL, labelcolor=INK,
    )  # fmt: skip


def legend_below(figure: Figure, handles: Sequence[Line2D], columns: int, note: str = "") -> None:
    """Puts a legend below all panels, and a note above it."""
    legend = figure.legend(
        handles=list(handles), loc="outside lower left", ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK,
        title=note, alignment="left",
    )  # fmt: skip
    legend.get_title().set(fontsize=SMALL, color=MUTED)


def name_rows(axes: Axes, names: Sequence[str], counts: Sequence[int] | None = None) -> None:
    """Names the rows 0, 1, ... of an axes at its left, with the number of images in a column of its own.

    Args:
        axes: The axes; row k is at y = k.
        names: One per row.
        counts: Images per row, written as n=; None: without.
    """
    axes.set_yticks(range(len(names)), list(names))
    if counts is None:
        return
    texts = [f"n={count:,}" for count in counts]
    for y, text in enumerate(texts):
        axes.annotate(
            text, (0, y), (-5, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            va="center_baseline", fontsize=SMALL - 0.5, color=MUTED, annotation_clip=False,
        )  # fmt: skip
    axes.tick_params(axis="y", pad=11 + 4.0 * max(map(len, texts)))


def shorten(text: str, most: int) -> str:
    """Takes the middle out of a long name, whose ends tell it from others.

    Args:
        text: The name.
        most: Length that it may have.
    """
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}\u2026{text[len(text) - tail :]}"


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Returns the inches that a line of text takes in the figures' type.

    Args:
        text: The line.
        size: Points.
        weight: As matplotlib has it.
    """
    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text.replace("$", "S"), size, FontProperties(weight=weight)).get_extents().width) / 72


def finished(figure: Figure) -> Figure:
    """Makes every text literal and settles the layout, so that each save gives the same bytes.

    A class or an id with two dollar signs would be set as a formula. The layout converges over the draws: one that is
    left to the saving differs between a first and a second save.
    """
    for artist in figure.findobj():
        if isinstance(artist, Text):
            artist.set_parse_math(False)
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Returns a figure as a PNG of 160 pixels per inch, without dates or versions: same figure, same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(path: Path, figure: Figure) -> None:
    """Writes ``png_bytes`` to a file in one step; missing folders are created."""
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(figure))
