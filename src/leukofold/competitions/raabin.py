"""RaabinWBC and its target domains: five white blood cells, trained in one laboratory and scored in others.

Sources: Kouzehkanan et al. 2022 (Scientific Reports 12, 1123) for RaabinWBC, whose TestA was taken with the training
images' microscope and TestB with another; Rezatofighi and Soltanian-Zadeh 2011 for LISC; BCCD as labelled and cropped
for the benchmark of Tsutsui, Su and Wen 2023 (arXiv 2303.01777). Packagings nest the folders differently, so these are
searched for; case, hyphens and underscores do not count, and all but Train may be absent::

    .../{Train,TestA,TestB}/<Class>/*.jpg     .../LISCCropped/<Class>/*     .../BCCDCropped/<Class>/*

RaabinWBC names no patients. The group of one of its images is its file's name up to the first underscore, which is
inferred to be the smear (``95-5-11-1_22_1.jpg``) or, of a telephone's pictures, the day (``20190526_163446_1.jpg``).
The published counts show Train and TestA to be a random split of 70 to 30 within each class, so they share smears:
TestA measures no more than how well a smear's other cells are known. In a sample of 350 training images all basophils
came from 4 days, and two thirds of the eosinophils from one smear: smears tell much of the class.

Groups of LISC and BCCD are the fields that cells were cut from: the name without a last ``_k`` that follows a number.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from leukofold.cells import CellTable
from leukofold.competitions.base import Competition, Scan
from leukofold.containment import need_walkable
from leukofold.domains import class_images, visible
from leukofold.errors import UserError

CLASS_NAMES = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")

# A folder's name in lower case without hyphens and underscores -> its split, in the table's order
SPLITS = {"train": "Train", "testa": "TestA", "testb": "TestB", "lisccropped": "LISC", "bccdcropped": "BCCD"}

_COUNTS = {  # published, in the order of CLASS_NAMES
    "Train": (212, 744, 2427, 561, 6231),
    "TestA": (89, 322, 1034, 234, 2660),
    "TestB": (0, 0, 148, 0, 1971),
    "LISC": (55, 39, 59, 48, 56),
    "BCCD": (3, 88, 33, 20, 207),
}


class RaabinData(Competition):
    """The files and the classes of RaabinWBC, LISC and BCCD."""

    name = "raabin"
    title = "RaabinWBC"
    class_names = CLASS_NAMES
    metric = "accuracy"
    targets = ("TestB", "LISC", "BCCD")
    by_hand = (
        "download Train.rar, TestA.rar and TestB.zip of the double-labelled cropped cells from "
        "https://raabindata.com/free-data/ and unpack them there"
    )
    published_counts: ClassVar[Mapping[str, Mapping[str, int]]] = {
        split: dict(zip(CLASS_NAMES, counts, strict=True)) for split, counts in _COUNTS.items()
    }

    def scan(self, root: Path) -> Scan:
        """Finds the folders of the splits and the images in them; see the base class."""
        folders = _split_folders(root)
        if "Train" not in folders:
            raise UserError(
                f"{root}: no folder Train with a folder per class below it; {self.by_hand}, as input/README.md shows"
            )
        found = [
            (split, image)
            for split in SPLITS.values()
            if split in folders
            for image in class_images(
                folders[split], CLASS_NAMES, {}, f"take it out of {folders[split].name}, or rename it"
            )
        ]
        splits = [split for split, _ in found]
        if "Train" not in splits:
            raise UserError(f"{folders['Train']}: no images in its folders; {self.by_hand}, as input/README.md shows")
        paths = [image.path for _, image in found]
        labels = [image.label for _, image in found]
        classes = [CLASS_NAMES[label] for label in labels]
        table = CellTable.from_columns(
            CLASS_NAMES,
            image_id=[f"{split}/{name}/{path.name}" for split, name, path in zip(splits, classes, paths, strict=True)],
            path=[path.as_posix() for path in paths],
            bytes=[path.stat().st_size for path in paths],
            label=labels,
            group=[_group(split, name, path.stem) for split, name, path in zip(splits, classes, paths, strict=True)],
            source=[split.lower() if split in ("LISC", "BCCD") else self.name for split in splits],
            is_external=[False] * len(found),
            split=splits,
        )
        return Scan(table)


def _split_folders(root: Path) -> dict[str, Path]:
    """Finds the folder of each split that is there: one of its name that holds the folder of a class."""
    found: dict[str, Path] = {}
    classes = {name.casefold() for name in CLASS_NAMES}
    for name, folders, _ in os.walk(root, followlinks=True):
        folders[:] = visible(folders)
        need_walkable(name, ())
        folder = Path(name)
        split = SPLITS.get(re.sub("[-_]", "", folder.name).casefold())
        if split is None or classes.isdisjoint(inner.casefold() for inner in folders):
            continue
        if split in found:
            raise UserError(f"{root}: holds {split} twice, in {found[split]} and in {folder}; keep one of them")
        found[split] = folder
        folders.clear()
    return found


def _group(split: str, class_name: str, stem: str) -> str:
    """Names an image's group after its file: RaabinWBC's smear, or the field of LISC or BCCD."""
    field = re.sub(r"(?<=\d)_\d+$", "", stem)
    if split == "LISC":
        return f"LISC/{class_name}/{field}"  # the fields of each class are numbered from 1
    if split == "BCCD":
        return f"BCCD/{field}"
    return stem.partition("_")[0] or stem


COMPETITION = RaabinData()
