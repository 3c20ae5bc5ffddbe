"""Pictures of what the renderer draws: all classes, severities, laboratories and modalities."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering import multimodal, raabin
from leukofold.rendering.cell import draw_image
from leukofold.rendering.degradation import MAX_SEVERITY, degrade
from leukofold.rendering.lymphoid import draw_segmented_cell, sample_subject
from leukofold.rendering.morphology import CLASS_NAMES
from leukofold.rendering.plan import IMAGE_STREAM, PATIENT_STREAM
from leukofold.rendering.stain import sample_appearance

Picture = NDArray[np.uint8]

CNMC_NAMES = {"hem": "C-NMC: normal", "all": "C-NMC: leukaemic"}

MODALITY_NAMES = {
    "Fluorescent": "acridine orange", "Color1": "unstained, violet", "Color2": "unstained, green",
    "Color3": "unstained, red",
}  # fmt: skip

_WIDTH = 1400
_LABEL_WIDTH = 180
_GAP = 2


def contact_sheet(seed: int = 0, columns: int = 12) -> Picture:
    """Draws a row of cells for each of the 13 WBCBench classes and the two of C-NMC.

    Each column of WBCBench cells is one patient.

    Args:
        seed: seed of cells and patients.
        columns: cells per class.

    Returns:
        (H, 1400, 3) uint8 RGB, white between the cells.
    """
    side = (_WIDTH - _LABEL_WIDTH) // columns - _GAP
    appearances = [sample_appearance(np.random.default_rng([seed, PATIENT_STREAM, k])) for k in range(columns)]
    subjects = [sample_subject(np.random.default_rng([seed, PATIENT_STREAM, k])) for k in range(columns)]
    rows = []
    for row, (label, name) in enumerate((CLASS_NAMES | CNMC_NAMES).items()):
        cells = []
        for column in range(columns):
            rng = np.random.default_rng([seed, IMAGE_STREAM, row, column])
            if label in CLASS_NAMES:
                picture = draw_image(label, appearances[column], rng)[62:306, 62:306]
            else:
                picture = draw_segmented_cell(label, subjects[column], rng)[75:375, 75:375]
            cells.append(picture)
        rows.append(labelled_row(label, name, cells, side))
    return np.vstack(rows)


def severity_strip(seed: int = 0, labels: tuple[str, ...] = ("SNE", "MO", "LY")) -> Picture:
    """Draws a cell of each given class at the severities 0 to 4.

    Args:
        seed: seed of cells, patients and degradations.
        labels: WBCBench classes, one row each.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows = []
    for row, label in enumerate(labels):
        appearance = sample_appearance(np.random.default_rng([seed, PATIENT_STREAM, row]))
        pristine = draw_image(label, appearance, np.random.default_rng([seed, IMAGE_STREAM, row]))
        cells = []
        for severity in range(MAX_SEVERITY + 1):
            degraded = degrade(pristine, severity, np.random.default_rng([seed, row])).copy()
            cv2.putText(degraded, str(severity), (10, 34), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (30, 30, 30), 2, cv2.LINE_AA)
            cells.append(degraded)
        rows.append(labelled_row(label, CLASS_NAMES[label], cells, 240))
    return np.vstack(rows)


def laboratory_sheet(seed: int = 0, columns: int = 8) -> Picture:
    """Draws RaabinWBC's and LISC's five classes, a row for each class and laboratory.

    Whole images are shown, brought to one size as a network sees them. Each column is one smear of its laboratory.
    TestB's other three classes, which the data set lacks, are drawn too.

    Args:
        seed: seed of cells and smears.
        columns: cells per row.

    Returns:
        (H, W, 3) uint8 RGB, white between the cells.
    """
    rows = []
    for number, label in enumerate(raabin.COUNTS):
        for which, part in enumerate(("Train", *raabin.OTHER_SMEARS)):
            cells = []
            for column in range(columns):
                rng = np.random.default_rng([seed, IMAGE_STREAM, number, which, column])
                cells.append(raabin.draw_cell(part, label, raabin.smear_appearance(part, seed, column), rng))
            rows.append(labelled_row(part, label, cells, 150))
    return np.vstack(rows)


def modality_sheet(seed: int = 0, columns: int = 2) -> Picture:
    """Draws multimodal cells: a row for each modality, with the same cells of the five classes in every one.

    Args:
        seed: seed of cells and patients.
        columns: cells, each of another patient, per class.

    Returns:
        (H, W, 3) uint8 RGB, white between the cells and behind the classes' names.
    """
    scenes = []
    for number, label in enumerate(multimodal.COUNTS):
        for column in range(columns):
            look = multimodal.patient_look(seed, column)
            rng = np.random.default_rng([seed, IMAGE_STREAM, number, column])
            scenes.append((multimodal.draw_scene(label, look, rng), look))
    rows = []
    for row, (modality, name) in enumerate(MODALITY_NAMES.items()):
        rng = np.random.default_rng([seed, IMAGE_STREAM, row])
        cells = [multimodal.take_picture(modality, scene, look, rng) for scene, look in scenes]
        rows.append(labelled_row(modality, name, cells, 150))
    heading = np.full((32, rows[0].shape[1], 3), 255, np.uint8)
    for number, label in enumerate(multimodal.COUNTS):
        left = _LABEL_WIDTH + number * columns * (150 + _GAP)
        cv2.putText(heading, label, (left + 4, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2, cv2.LINE_AA)
    return np.vstack([heading, *rows])


def labelled_row(label: str, name: str, cells: list[Picture], side: int) -> Picture:
    """Puts cells side by side behind their abbreviation and name."""
    height = side + _GAP
    legend = np.full((height, _LABEL_WIDTH, 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(legend, label, (6, height // 2 - 4), font, 0.75, (0, 0, 0), 2, cv2.LINE_AA)
    cv2.putText(legend, name, (6, height // 2 + 20), font, 0.46, (60, 60, 60), 1, cv2.LINE_AA)
    row = [legend]
    for cell in cells:
        tile = np.full((height, side + _GAP, 3), 255, np.uint8)
        tile[:side, :side] = cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA)
        row.append(tile)
    return np.hstack(row)


def save_picture(path: Path, picture: Picture) -> None:
    """Writes a picture in the format that the file's suffix names.

    Args:
        path: ``.png`` or ``.jpg`` file; missing folders are created.
        picture: (H, W, 3) uint8 RGB.

    Raises:
        UserError: the suffix names no picture format.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{path}: give the picture's name the ending .png or .jpg")
    options = [cv2.IMWRITE_JPEG_QUALITY, 88]
    if path.suffix.lower() == ".png":
        options = [cv2.IMWRITE_PNG_COMPRESSION, 9]
        # 32 levels per channel hide in the cells' grain and halve the file
        picture = np.rint(np.rint(picture * (31 / 255)) * (255 / 31)).astype(np.uint8)
    encoded = cv2.imencode(path.suffix.lower(), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(encoded))
