"""Pages for a haematologist: the most doubtful labels, pair of classes by pair, beside cells that nobody doubts."""

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from leukofold.figures.sheets import SheetCell, SheetRow, cell_sheet, name_lines
from leukofold.figures.style import BLUE
from leukofold.images.cellimages import tiled
from leukofold.images.reading import read_image
from leukofold.labels.analysis import LabelAnalysis

IN_A_ROW = 8
ROWS_OF_ISSUES = 3  # of a pair's page
PAIRS_AT_A_GLANCE = 8  # rows of the overview, which is to print on one page
PAGES_OF_PAIRS = 12
TOGETHER = 320  # side of several images of a cell together, pixels

CAPTION = (
    "Below each cell: its image, its number in label_issues.csv, and the quality of its label (the probability that "
    "the networks give it)"
)


def issue_sheets(analysis: LabelAnalysis) -> Iterator[tuple[str, Figure]]:
    """Draws the pages one after another.

    Args:
        analysis: With at least one issue.

    Yields:
        A name and a page: ``overview`` first, then ``given_<class>_suggested_<class>`` of the largest pairs.
    """
    issues = analysis.issues.assign(number=np.arange(1, len(analysis.issues) + 1))
    names = analysis.class_names
    of_pair = {pair: issues[(issues.given == pair[0]) & (issues.suggested == pair[1])] for pair in analysis.pairs}
    yield "overview", _overview(analysis, of_pair)
    for (given, suggested), rows in list(of_pair.items())[:PAGES_OF_PAIRS]:
        yield f"given_{names[given]}_suggested_{names[suggested]}", _pair_page(analysis, given, suggested, rows)


def sheet_count(analysis: LabelAnalysis) -> int:
    """Returns how many pages ``issue_sheets`` draws."""
    return 1 + min(PAGES_OF_PAIRS, len(analysis.pairs))


def _overview(analysis: LabelAnalysis, of_pair: dict[tuple[int, int], pd.DataFrame]) -> Figure:
    """Draws the worst cells of each of the largest pairs, a row per pair."""
    names, shown = analysis.class_names, list(of_pair.items())[:PAIRS_AT_A_GLANCE]
    rows = [
        SheetRow(
            f"given {names[given]}, rather {names[suggested]}?",
            f"{len(issues)} label issues",
            [_issue_cell(analysis, row) for row in issues.head(IN_A_ROW).to_dict("records")],
        )
        for (given, suggested), issues in shown
    ]
    which = f", the {len(shown)} largest of {len(of_pair)} pairs" if len(shown) < len(of_pair) else ""
    title = f"{analysis.title}: {_count(len(analysis.issues))}{which}"
    return cell_sheet(rows, title, _note(analysis))


def _pair_page(analysis: LabelAnalysis, given: int, suggested: int, issues: pd.DataFrame) -> Figure:
    """Draws the most doubtful labels of one pair below cells of either class that nobody doubts."""
    names = analysis.class_names
    references = [_reference_row(analysis, label) for label in (given, suggested)]
    rows = [row for row in references if row.cells]
    lacking = "".join(f" All labels {row.title} are doubted." for row in references if not row.cells)
    shown = issues.head(IN_A_ROW * ROWS_OF_ISSUES)
    for start in range(0, len(shown), IN_A_ROW):
        part = shown[start : start + IN_A_ROW]
        title = f"given {names[given]}, rather {names[suggested]}?" if start == 0 else ""
        subtitle = f"{start + 1} to {start + len(part)} of {len(issues)}"
        rows.append(SheetRow(title, subtitle, [_issue_cell(analysis, row) for row in part.to_dict("records")]))
    title = f"{analysis.title}: given {names[given]}, suggested {names[suggested]}, {_count(len(issues))}"
    return cell_sheet(rows, title, f"Framed in blue: cells whose label is doubted least.{lacking} {_note(analysis)}")


def _reference_row(analysis: LabelAnalysis, label: int) -> SheetRow:
    """Shows the cells of a class whose label is doubted least, each of another patient."""
    images = analysis.images
    own = images[(images.given == label) & ~images.is_issue]
    best = own.sort_values("label_quality", ascending=False, kind="stable").drop_duplicates("group")
    best = best.head(IN_A_ROW)
    cells = [
        SheetCell(_picture(analysis, path), name_lines(Path(image_id).stem), BLUE)
        for path, image_id in zip(best.path, best.image_id, strict=True)
    ]
    agreed = (best.suggested == label).any()
    return SheetRow(
        analysis.class_names[label], "for comparison" if agreed else "for comparison; none recognised", cells
    )


def _issue_cell(analysis: LabelAnalysis, row: Mapping[Hashable, Any]) -> SheetCell:
    """Shows one issue."""
    runs = len(analysis.runs)
    votes = f"\n{round(row['agreement'] * runs)} of {runs}" if runs > 1 else ""
    caption = f"{name_lines(Path(row['image_id']).stem)}\n#{row['number']}  {row['label_quality']:.2f}{votes}"
    return SheetCell(_picture(analysis, row["path"]), caption)


def _picture(analysis: LabelAnalysis, path: str) -> np.ndarray:
    """Reads a cell as the competition looks at it; several images of it are put together."""
    images = [_square(analysis.competition.preprocess(read_image(file))) for file in analysis.files[path]]
    return images[0] if len(images) == 1 else tiled(images, TOGETHER)


def _square(image: np.ndarray) -> np.ndarray:
    """Pads an image with white to a square."""
    high, wide = image.shape[:2]
    above, left = max(0, wide - high) // 2, max(0, high - wide) // 2
    below, right = max(0, wide - high) - above, max(0, high - wide) - left
    return np.pad(image, ((above, below), (left, right), (0, 0)), constant_values=255)


def _note(analysis: LabelAnalysis) -> str:
    """Explains the captions."""
    votes = " and how many of the runs suggest the other class" if len(analysis.runs) > 1 else ""
    return f"{CAPTION}{votes}."


def _count(issues: int) -> str:
    """Counts issues in words."""
    return "1 label issue" if issues == 1 else f"{issues} label issues"
