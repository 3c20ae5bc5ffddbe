"""Single cells cut out of whole microscopic fields along an expert's masks, as LISC comes.

LISC (Rezatofighi and Soltanian-Zadeh 2011, Computerized Medical Imaging and Graphics 35, 333-343) has fields of
720 x 576 pixels with one or more cells of one class, sorted into folders::

    .../Main Dataset/{Baso,eosi,lymp,mono,neut,mixt}/N.bmp
    .../Ground Truth Segmentation/{Baso,...}/areaforexpert1/N_expert.bmp

In ``mixt`` the cells of a field are of several classes and nothing tells which, so it is left out.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from leukofold.domains import images_below
from leukofold.errors import UserError
from leukofold.files import beside
from leukofold.images.reading import IMAGE_SUFFIXES, read_image

FOLDERS = {
    "baso": "Basophil",
    "eosi": "Eosinophil",
    "lymp": "Lymphocyte",
    "mono": "Monocyte",
    "neut": "Neutrophil",
}
"""LISC's folder, in lower case, -> its class."""

LIST = "cells.csv"

_MIXED = "mixt"
_MARK = "_expert"  # follows the field's name in its mask's
_CLEARLY = 0.25  # of the mask's brightest level: below it is background
_SMALLEST = 0.002  # of the field's area: what is smaller is a slip of the pen
_RIM = 8  # pixels: by so much in all LISC's masks are said to be lower and narrower than their fields


class Box(NamedTuple):
    """A rectangle in a field, in pixels from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


class Cell(NamedTuple):
    """A cell that was cut out.

    Attributes:
        box: The smallest rectangle around it in its field, without a margin.
        image: S x S x 3 uint8, RGB.
    """

    box: Box
    image: np.ndarray


@dataclass(frozen=True)
class Field:
    """A field and where its mask lies.

    Attributes:
        class_name: The class of all its cells.
        path: The image.
        mask: The expert's mask; None: there is none.
    """

    class_name: str
    path: Path
    mask: Path | None


@dataclass(frozen=True)
class CutReport:
    """What was cut out of a folder of fields.

    Attributes:
        counts: Class -> cells.
        fields: Fields that cells were cut from.
        without_mask: Fields that have no mask, as paths below the folder.
        without_cell: Fields whose mask shows no cell, in the same way.
        mixed: Number of fields of several classes, which were left out.
    """

    counts: Mapping[str, int]
    fields: int
    without_mask: list[str]
    without_cell: list[str]
    mixed: int


def cut_cells(field: np.ndarray, mask: np.ndarray, margin: float) -> list[Cell]:
    """Cuts every cell out of a field, as a square at the field's own resolution.

    A cell is a connected piece of what is clearly brighter than the mask's background, holes filled; cells that touch
    in the mask are one piece. The square is centred on the piece's bounding box; what of it lies outside the field is
    filled by reflection.

    Args:
        field: H x W x 3 uint8, RGB.
        mask: H x W uint8: the background dark, the cytoplasm grey, the nucleus white; or cells white.
        margin: Free space on each side of the bounding box, as a share of its longer side; at least 0.

    Returns:
        The cells from top to bottom, none where nothing in the mask is large enough.
    """
    cell = binary_fill_holes(mask > _CLEARLY * mask.max()).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(cell, connectivity=8)
    pieces = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= _SMALLEST * mask.size]  # 0 is the background
    boxes = sorted((Box(*map(int, piece[:4])) for piece in pieces), key=lambda box: (box.y, box.x))
    return [Cell(box, _square(field, box, margin)) for box in boxes]


def find_fields(root: Path) -> tuple[list[Field], int]:
    """Finds LISC's fields and their masks, however deep they lie.

    Args:
        root: Folder that holds them as downloaded.

    Returns:
        The fields, sorted by class and number, and how many fields of several classes there are besides.

    Raises:
        UserError: There are no fields, or two of one class and name.
    """
    fields: dict[tuple[str, str], Path] = {}
    masks: dict[tuple[str, str], list[Path]] = {}
    mixed = 0
    for path in images_below(root):
        folders = [folder.casefold() for folder in path.relative_to(root).parts[:-1]]
        name, is_mask, _ = path.stem.casefold().partition(_MARK)
        class_name = next((FOLDERS[folder] for folder in reversed(folders) if folder in FOLDERS), None)
        if class_name is None:
            mixed += folders[-1:] == [_MIXED] and not is_mask
        elif is_mask:
            masks.setdefault((class_name, name), []).append(path)
        elif folders[-1] in FOLDERS:
            if (class_name, name) in fields:
                raise UserError(f"{path} and {fields[class_name, name]} are the same field; keep one of them")
            fields[class_name, name] = path
    if not fields:
        raise UserError(
            f"{root}: no fields ({', '.join(IMAGE_SUFFIXES)}) in folders {', '.join(FOLDERS)}; see input/README.md"
        )
    found = [
        Field(class_name, path, min(masks.get((class_name, name), []), key=_expert, default=None))
        for (class_name, name), path in fields.items()
    ]
    return sorted(found, key=lambda field: (field.class_name, _number(field.path.stem))), mixed


def cut_fields(root: Path, out: Path, margin: float, progress: bool = True) -> CutReport:
    """Cuts all cells out of LISC's fields into a folder per class, in one step.

    ``out`` gets ``<Class>/<N>_<k>.png``, the cell k = 1, 2, ... of the class's field N, and a list of them all,
    ``cells.csv``: ``crop`` (below ``out``), ``field`` and ``mask`` (below ``root``), and the cell's bounding box in the
    field, ``x``, ``y``, ``width`` and ``height`` in pixels.

    Args:
        root: Folder that holds the fields and masks as downloaded.
        out: Folder to create.
        margin: As in ``cut_cells``.
        progress: Whether to show a progress bar.

    Returns:
        What was cut.

    Raises:
        UserError: ``out`` exists, as ``find_fields``, no field has a mask with a cell, or a field or mask cannot be
            decoded or has another size than the other.
    """
    if out.exists():
        raise UserError(f"{out}: exists; name another folder, or delete it first")
    fields, mixed = find_fields(root)
    if all(field.mask is None for field in fields):
        raise UserError(f"{root}: {len(fields)} fields, but none has a mask N{_MARK}; see input/README.md")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(out, "cutting")
    try:
        cells = _cut_all(root, temporary, fields, margin, progress)
        if cells.empty:
            raise UserError(f"{root}: no mask shows a cell; look at them, and download them again")
        cells.to_csv(temporary / LIST, index=False, lineterminator="\n")
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    cut = set(cells.field)
    counts = Counter(crop.partition("/")[0] for crop in cells.crop)
    return CutReport(
        counts={name: counts[name] for name in FOLDERS.values()},
        fields=len(cut),
        without_mask=[_below(root, field.path) for field in fields if field.mask is None],
        without_cell=[
            name for field in fields if field.mask is not None and (name := _below(root, field.path)) not in cut
        ],
        mixed=mixed,
    )


def _square(field: np.ndarray, box: Box, margin: float) -> np.ndarray:
    """Cuts a square around a box; its pixels outside the field are mirrored ones, the border's own not repeated."""
    side = round(max(box.width, box.height) * (1 + 2 * margin))
    left, top = box.x - (side - box.width) // 2, box.y - (side - box.height) // 2
    height, width = field.shape[:2]
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + side - height), max(0, left + side - width)
    larger = cv2.copyMakeBorder(field, above, below, before, behind, cv2.BORDER_REFLECT_101)
    return np.asarray(larger[top + above :, left + before :][:side, :side])


def _cut_all(root: Path, folder: Path, fields: Sequence[Field], margin: float, progress: bool) -> pd.DataFrame:
    """Writes the cells of all fields below a folder; returns their list."""
    rows = []
    for field in tqdm(fields, desc="cutting fields", unit="field", leave=False, disable=not progress):
        if field.mask is None:
            continue
        pixels = read_image(field.path)
        for k, cell in enumerate(cut_cells(pixels, _read_mask(field.mask, pixels.shape[:2]), margin), start=1):
            crop = f"{field.class_name}/{field.path.stem}_{k}.png"
            (folder / field.class_name).mkdir(parents=True, exist_ok=True)
            (folder / crop).write_bytes(bytes(cv2.imencode(".png", cell.image[:, :, ::-1])[1]))
            rows.append((crop, _below(root, field.path), _below(root, field.mask), *cell.box))
    return pd.DataFrame(rows, columns=["crop", "field", "mask", *Box._fields])


def _read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a mask, H x W uint8 for a field of shape H x W; a slightly smaller one is put into the field's middle."""
    mask = read_image(path).max(axis=2)
    lacking = [whole - part for whole, part in zip(shape, mask.shape, strict=True)]
    if not all(0 <= pixels <= _RIM for pixels in lacking):
        sizes = [f"{width} x {height}" for height, width in (mask.shape, shape)]
        raise UserError(f"{path}: the mask has {sizes[0]} pixels, its field {sizes[1]}; download both again")
    return np.pad(mask, [(pixels // 2, pixels - pixels // 2) for pixels in lacking])


def _expert(mask: Path) -> tuple[str, Path]:
    """Sorts a field's masks by their folders, so that the first expert's comes first."""
    return mask.parent.name.casefold(), mask


def _number(stem: str) -> tuple[int, str]:
    """Sorts the names of fields by number, and other names after them."""
    return (int(stem), "") if stem.isdecimal() else (10**9, stem)


def _below(root: Path, path: Path) -> str:
    """Returns a path below a folder, with forward slashes."""
    return path.relative_to(root).as_posix()
