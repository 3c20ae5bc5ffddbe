"""Several registered images of each cell: fluorescence and bright field, five classes of white blood cells.

The data set of the paper (14,912 cells of healthy persons: one fluorescence image, stained with acridine orange, and
three bright-field images of the unstained cell under different light) is not public. This reads any data of its kind::

    <root>/<modality>/<class>/<cell_id>.png
    <root>/cells.csv            or a list: cell_id, label, a column of paths for each modality, patient, split

The list counts where it is there, and alone can tell patients: without the column ``patient`` every cell is a group of
its own, so that any split is image-level. A cell without a label there is one to predict. Classes may be abbreviated
as in the paper (NEU, LYM, EOS, MO, BAS), and case does not count.

The files that a list names lie below its own folder; a path or a link that leads out of it is refused. Folders that are
read without a list may hold links of yours to anywhere.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pandas as pd

from leukofold.cells import FILES_OF, UNLABELLED, CellTable
from leukofold.competitions.base import Competition, Scan, need_folder
from leukofold.containment import need_contained
from leukofold.errors import UserError, name_some
from leukofold.lists import need_one_spelling, read_list
from leukofold.registered import find_modalities, lacking_modalities, listed_files, registered_files

CLASS_NAMES = ("Neutrophil", "Lymphocyte", "Eosinophil", "Monocyte", "Basophil")

ABBREVIATIONS = ("NEU", "LYM", "EOS", "MO", "BAS")

MODALITIES = ("Fluorescent", "Color1", "Color2", "Color3")
"""The paper's, in its order; others come after them by name."""

LIST = "cells.csv"
SPLIT = "train"
TOLD = ("cell_id", "label", "patient", "split")  # columns of the list that are no modalities


class MultimodalData(Competition):
    """The files and the classes of multimodal cells."""

    name = "multimodal"
    title = "Multimodal cells"
    class_names = CLASS_NAMES
    metric = "weighted_f1"
    modalities = MODALITIES
    by_hand = "the paper's data are not public; put images of your own there, a folder for each modality"
    published_counts: ClassVar[Mapping[str, Mapping[str, int]]] = {
        SPLIT: dict(zip(CLASS_NAMES, (9616, 4448, 677, 124, 47), strict=True))
    }

    def scan(self, root: Path) -> Scan:
        """Reads the list, or finds the folders of modalities and classes; see the base class."""
        need_folder(root, self)
        cells, files = _from_list(root / LIST) if (root / LIST).is_file() else _from_folders(root)
        if len(files.columns) < 2:
            raise UserError(
                f"{root}: images of {len(files.columns)} modality ({', '.join(files.columns)}); put a folder for each "
                "modality there, with a folder for each class in it"
            )
        whole = (files != "").all(axis=1).to_numpy()
        missing = [f"{root}: {cell}" for cell in lacking_modalities(cells.cell_id.tolist(), files)]
        cells, files = cells[whole], files[whole]
        sizes = files.map(lambda path: Path(path).stat().st_size).sum(axis=1)
        table = CellTable.from_columns(
            CLASS_NAMES,
            image_id=cells.cell_id,
            path=files.iloc[:, 0],
            bytes=sizes,
            label=cells.label,
            group=cells.group.where(cells.label != UNLABELLED, ""),
            source=[self.name] * len(cells),
            is_external=[False] * len(cells),
            split=cells.split,
            **{f"{FILES_OF}{name}": files[name] for name in files},
        )
        return Scan(table, missing)


def _from_list(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads ``cells.csv``: cell_id, label, group and split of each cell, and its files."""
    table = read_list(path, ("cell_id", "label"), (*TOLD, *MODALITIES), others=True)
    names = _in_order([name for name in table.columns if name not in TOLD])
    if table.empty:
        raise UserError(f"{path}: lists no cell; fill it, or delete it where the folders tell the classes")
    if (table.cell_id == "").any():
        raise UserError(f"{path}: {(table.cell_id == '').sum()} cells without a cell_id; name each")
    _need_once(path, table.cell_id.tolist())
    need_one_spelling(path, "cells", table.cell_id)
    for name in names:
        given = table[table[name] != ""]
        need_contained(path, path.parent, given.cell_id.tolist(), given[name].tolist())
        if not any((path.parent / file).is_file() for file in given[name]):
            raise UserError(
                f"{path}: column '{name}' names no file that is there; columns beside {', '.join(TOLD)} are modalities"
            )
    files = listed_files(path, table, names)
    patients = table.patient if "patient" in table else table.cell_id
    need_one_spelling(path, "patients", patients)
    nameless = table.cell_id[(patients == "") & (table.label != "")]
    if len(nameless):
        raise UserError(
            f"{path}: {len(nameless)} labelled cells without a patient, {nameless.iloc[0]} first; name each"
        )
    cells = pd.DataFrame(
        {
            "cell_id": table.cell_id,
            "label": [_label(name, path) if name else UNLABELLED for name in table.label],
            "group": patients,
            "split": table.split if "split" in table else SPLIT,
        }
    )
    return cells, files


def _from_folders(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Finds the folders of modalities and classes: as ``_from_list``."""
    names = find_modalities(root)
    need_one_spelling(root, "modalities", names)
    files = registered_files(root, _in_order(names))
    folders, ids = zip(*((place.partition("/")[0], place.rpartition("/")[2]) for place in files.index), strict=True)
    loose = [place for place in files.index if "/" not in place]
    if loose:
        raise UserError(f"{root}: {loose[0]} lies in no folder of a class; put it into <modality>/<class>/")
    _need_once(root, ids)
    labels = {folder: _label(folder, root) for folder in dict.fromkeys(folders)}
    cells = pd.DataFrame({"cell_id": ids, "label": [labels[folder] for folder in folders], "group": ids})
    return cells.assign(split=SPLIT), files.reset_index(drop=True)


def _in_order(names: Sequence[str]) -> list[str]:
    """Sorts modalities: the paper's in its order, then others as they are."""
    return [*(name for name in MODALITIES if name in names), *(name for name in names if name not in MODALITIES)]


def _label(name: str, where: Path) -> int:
    """Finds a class by its name or abbreviation."""
    known = {each.casefold(): k for names in (CLASS_NAMES, ABBREVIATIONS) for k, each in enumerate(names)}
    if name.casefold() not in known:
        raise UserError(f"{where}: '{name}' is no class; known ones are {', '.join(CLASS_NAMES)}")
    return known[name.casefold()]


def _need_once(where: Path, ids: Sequence[str]) -> None:
    """Refuses ids that two cells share, such as those of one number in two folders of classes."""
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise UserError(
            f"{where}: {len(twice)} cells stand there twice: {name_some(twice)}; a cell lies in the folder of one "
            "class, the same for every modality, and no other has its name"
        )


COMPETITION = MultimodalData()
