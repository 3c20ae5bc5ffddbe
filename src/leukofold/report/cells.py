"""Pages of cells for a report: what was taken for something else, and what the networks looked at."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import softmax

from leukofold.blending.combining import Blend
from leukofold.cells import modalities, of_modality
from leukofold.figures.sheets import SheetCell, SheetRow, cell_sheet, name_lines, overlay
from leukofold.figures.style import BLUE, ORANGE, shorten
from leukofold.gradcam import grad_cam
from leukofold.images.cellimages import tiled
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image
from leukofold.reopening import ReopenedRun
from leukofold.report.numbers import Numbers
from leukofold.training.launch import make_inference_accelerator

IN_A_ROW = 8
HARDEST = 5  # classes
SIDE = 192  # of a cell's picture, pixels


class Cells:
    """The cells of a report, with what the mean of all runs says of them.

    Args:
        blend: The mean of the runs.
        first: The first run with its data, whose rows are the mean's.
    """

    def __init__(self, blend: Blend, first: ReopenedRun) -> None:
        assert blend.oof.label is not None
        self.names = blend.oof.class_names
        self.image_id = blend.oof.image_id
        self.given = blend.oof.label
        probabilities = softmax(blend.oof.logits.astype(np.float64), axis=1)
        self.predicted = blend.oof.logits.argmax(axis=1)
        self.probability = probabilities.max(axis=1)
        surest = np.argsort(-self.probability, kind="stable")
        self.surest = surest[~blend.oof.is_external[surest]]  # rows of the competition's images
        self._splits, self._seen = first.cells.split.tolist(), first.seen
        several = {name: of_modality(first.cells, name) for name in modalities(first.cells)} or {"": first.cells}
        self._files = {name: part.path.tolist() for name, part in several.items()}
        shown = first.config.image.model_copy(update={"size": SIDE, "denoise": None})
        self._prepare = Preparation(shown, first.competition.preprocess)

    @property
    def right(self) -> np.ndarray:
        """Rows that are predicted as given, the surest first."""
        return np.asarray(self.surest[self.predicted[self.surest] == self.given[self.surest]])

    @property
    def wrong(self) -> np.ndarray:
        """Rows that are predicted otherwise than given, the surest first."""
        return np.asarray(self.surest[self.predicted[self.surest] != self.given[self.surest]])

    def parts(self, row: int, seen: Sequence[str]) -> list[np.ndarray]:
        """Shows what networks see of each image of a cell, SIDE x SIDE x 3, at a size for people."""
        return [self._prepare(read_image(self._files[name][row]), self._splits[row]) for name in seen or ("",)]

    def picture(self, row: int) -> np.ndarray:
        """Shows what the first run's networks see of a cell, SIDE x SIDE x 3; several images side by side."""
        return tiled(self.parts(row, self._seen), SIDE)

    def sheet_cell(self, row: int) -> SheetCell:
        """Shows a cell with its name and what it was taken for."""
        given, predicted = self.names[self.given[row]], self.names[self.predicted[row]]
        verdict = predicted if given == predicted else f"{given}\u2192{predicted}"
        name = name_lines(Path(self.image_id[row]).stem)
        return SheetCell(self.picture(row), f"{name}\n{verdict} {self.probability[row]:.2f}")


def draw_errors(cells: Cells, numbers: Numbers) -> Iterator[tuple[str, Figure]]:
    """Draws the errors that the runs are surest of, and those of the classes that they recognise least.

    Args:
        cells: The cells.
        numbers: The numbers.

    Yields:
        A name and a figure; nothing where everything is right.
    """
    wrong = cells.wrong
    if not len(wrong):
        return
    starts = range(0, min(len(wrong), 2 * IN_A_ROW), IN_A_ROW)
    rows = [
        SheetRow("surest errors" if start == 0 else "", f"of {len(wrong):,}" if start == 0 else "", [
            cells.sheet_cell(row) for row in wrong[start : start + IN_A_ROW]
        ])
        for start in starts
    ]  # fmt: skip
    yield "surest_errors", cell_sheet(rows, "")
    order = numbers.classes.sort_values(["recall", "images"], ascending=[True, False], kind="stable")
    hardest = order[order.recall < 1].head(HARDEST)
    yield "hardest_classes", cell_sheet([_class_row(cells, k, hardest.recall[k]) for k in hardest.index], "")


def _class_row(cells: Cells, label: int, recall: float) -> SheetRow:
    """Shows what a class is taken for."""
    wrong = cells.wrong[cells.given[cells.wrong] == label]
    taken_for = np.bincount(cells.predicted[wrong], minlength=len(cells.names))
    images = int((cells.given[cells.surest] == label).sum())
    subtitle = f"recall {recall:.2f} of {images:,}, most often taken for {cells.names[taken_for.argmax()]}"
    return SheetRow(cells.names[label], subtitle, [cells.sheet_cell(row) for row in wrong[:IN_A_ROW]])


def draw_heat(cells: Cells, reopened: Sequence[ReopenedRun]) -> Iterator[tuple[str, Figure]]:
    """Draws Grad-CAM of some cells, for the first run of every kind: of every backbone and what it sees of a cell.

    Args:
        cells: The cells.
        reopened: The runs with their data.

    Yields:
        A name and a figure: cells that are predicted right, and the errors that the runs are surest of.

    Raises:
        UnknownBackboneError: Grad-CAM does not know a backbone.
    """
    kinds = {_kind(each): each for each in reversed(reopened)}
    networks = [each for each in reopened if kinds[_kind(each)] is each]
    right, wrong = _one_of_each(cells), cells.wrong[:IN_A_ROW]
    if len(right):
        rows = [_heat_row(cells, each, right, cells.given[right], "for its class", BLUE) for each in networks]
        yield "heat_right", cell_sheet([_plain_row(cells, right, BLUE), *rows], "")
    if len(wrong):
        rows = [_plain_row(cells, wrong, ORANGE)]
        for each in networks:
            rows.append(_heat_row(cells, each, wrong, cells.predicted[wrong], "for what it was taken for", ORANGE))
            rows.append(_heat_row(cells, each, wrong, cells.given[wrong], "for the given label", BLUE))
        yield "heat_wrong", cell_sheet(rows, "")


def _kind(reopened: ReopenedRun) -> tuple[object, ...]:
    """Tells apart networks that look at cells in different ways."""
    model = reopened.config.model
    return model.backbone, model.fusion, reopened.seen


def _one_of_each(cells: Cells) -> np.ndarray:
    """Chooses the surest right cell of each of the most frequent classes, then the second of each, and so on."""
    right = cells.right
    labels = pd.Series(cells.given[right])
    turn, images = labels.groupby(labels).cumcount(), labels.map(np.bincount(cells.given).tolist().__getitem__)
    return np.asarray(right[np.lexsort((labels, -images, turn))][:IN_A_ROW])


def _plain_row(cells: Cells, rows: np.ndarray, colour: str) -> SheetRow:
    """Shows the cells as they are."""
    shown = [cells.sheet_cell(row) for row in rows]
    return SheetRow("the cells", "", [SheetCell(cell.image, cell.caption, colour) for cell in shown])


def _heat_row(
    cells: Cells, reopened: ReopenedRun, rows: np.ndarray, targets: np.ndarray, what: str, colour: str
) -> SheetRow:
    """Lays over each cell the heat of a class, by the run's network that has not seen it."""
    own = pd.Index(reopened.run.oof.image_id).get_indexer(pd.Index(cells.image_id[rows]))
    images = reopened.images()
    pixels = images.channels(images.rows(cells.image_id[rows].tolist()))
    folds, device = reopened.run.folds[own], make_inference_accelerator(None).device
    found = np.empty(pixels.shape[:3], dtype=np.float32)
    for fold in np.unique(folds):
        at = folds == fold
        found[at] = grad_cam(reopened.network(int(fold), device), pixels[at], targets[at])
    heat = [cv2.resize(own_heat, (SIDE, SIDE)).clip(0, 1) for own_heat in found]
    probabilities = softmax(reopened.run.oof.logits[own].astype(np.float64), axis=1)
    shown = [
        SheetCell(
            tiled([overlay(part, heat[place]) for part in cells.parts(row, reopened.seen)], SIDE),
            f"{cells.names[targets[place]]} {probabilities[place, targets[place]]:.2f}",
            colour,
        )
        for place, row in enumerate(rows)
    ]
    backbone = reopened.config.model_title.split(".")[0]
    if len(reopened.seen) == 1:
        backbone += f", {reopened.seen[0]}"
    if reopened.config.inference.batch_statistics == "domain":
        what = f"{what}, by the training's batch statistics"
    name = reopened.run.name.rpartition("/")[2]  # a whole path has no place to be broken at
    return SheetRow(backbone, f"{what}; {shorten(name, 30)}", shown)
