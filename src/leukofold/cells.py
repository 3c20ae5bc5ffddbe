"""The table of cells: one row per cell, the same for every competition.

Everything after the competition's reader (folds, loaders, training, blending) sees only this table. Most data have one
image of a cell, so that "image" and "cell" mean the same. Where there are several (modalities: a fluorescence image,
bright-field images), the table has a further column for the files of each, ``path:<modality>``; ``path`` is the first.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from leukofold.errors import UserError

UNLABELLED = -1

COLUMNS = {
    "image_id": str,  # unique in the table, the competition's own name of the image
    "path": str,  # file that holds the image
    "bytes": np.int64,  # its size
    "label": np.int64,  # index into class_names, UNLABELLED in the test set
    "group": str,  # patient, subject or smear; rows of one group never cross folds; "" where unknown (test)
    "source": str,  # data set that the image comes from
    "is_external": bool,  # trained on, never scored in the headline metric
    "split": str,  # the competition's own name of the part it belongs to
}

FILES_OF = "path:"  # and a modality: the column of its files


@dataclass(frozen=True)
class CellTable:
    """Cells of one competition.

    Attributes:
        frame: One row per cell with the columns of ``COLUMNS``, and ``path:<modality>`` for each modality where there
            are several images of a cell; the test set in the order of the competition's own list.
        class_names: The K classes in the order of the label indices.
    """

    frame: pd.DataFrame
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the contract; a breach is a bug of the reader or a fault in the files.

        Raises:
            UserError: An image id stands twice.
            ValueError: Columns, labels or groups do not keep the contract.
        """
        frame = self.frame
        expected = [*COLUMNS, *(FILES_OF + name for name in modalities(frame))]
        if list(frame.columns) != expected:
            raise ValueError(f"columns {list(frame.columns)}, expected {expected}")
        twice = frame.image_id[frame.image_id.duplicated()]
        if len(twice):
            raise UserError(f"{len(twice)} image ids stand twice in the input, {twice.iloc[0]} first; keep one of each")
        if len(frame) and not frame.label.between(UNLABELLED, len(self.class_names) - 1).all():
            raise ValueError(f"labels outside 0..{len(self.class_names) - 1}")
        if (self.labelled.group == "").any():
            raise ValueError("a labelled image without a group")

    @classmethod
    def from_columns(cls, class_names: Sequence[str], **columns: Iterable[object]) -> "CellTable":
        """Builds a table from one sequence per column, in the types of ``COLUMNS``."""
        kinds = {**COLUMNS, **{name: str for name in columns if name.startswith(FILES_OF)}}
        frame = pd.DataFrame({name: pd.Series(list(columns[name]), dtype=kind) for name, kind in kinds.items()})
        return cls(frame, tuple(class_names))

    @property
    def knows_patients(self) -> bool:
        """Whether groups are more than the names of single cells."""
        return bool((self.labelled.group != self.labelled.image_id).any())

    @property
    def is_labelled(self) -> np.ndarray:
        """Which rows have a label, n booleans."""
        return (self.frame.label != UNLABELLED).to_numpy()

    @property
    def labelled(self) -> pd.DataFrame:
        """Rows with a label: what is trained on and scored out of fold, index 0..n-1."""
        return self.frame[self.is_labelled].reset_index(drop=True)

    @property
    def test(self) -> pd.DataFrame:
        """Rows without a label, in the order of the competition's list, index 0..n-1."""
        return self.frame[~self.is_labelled].reset_index(drop=True)

    def counts(self) -> pd.DataFrame:
        """Counts images.

        Returns:
            Splits x classes (unlabelled ones under ``unlabelled``), in order of first appearance.
        """
        names = [*self.class_names, "unlabelled"]
        table = pd.crosstab(self.frame.split, self.frame.label, dropna=False)
        table = table.reindex(index=self.frame.split.unique(), columns=[*range(len(self.class_names)), UNLABELLED])
        return table.fillna(0).astype(int).set_axis(names, axis=1).rename_axis(index="split", columns=None)

    def fingerprint(self) -> str:
        """Returns 16 hex digits that change with any id, label, group, source or file size, not with the folder.

        Where there are several images of a cell, they change with the modalities' names, order and files too.
        """
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for column in ("image_id", "bytes", "label", "group", "source", "is_external", "split"):
            digest.update("\n".join(self.frame[column].astype(str)).encode())
        for name in modalities(self.frame):  # which file shows what counts too
            sizes = (str(os.stat(path).st_size) for path in self.frame[FILES_OF + name])
            digest.update("\n".join([name, *sizes]).encode())
        return digest.hexdigest()[:16]


def modalities(frame: pd.DataFrame) -> tuple[str, ...]:
    """Returns the modalities of a table's cells; none where a cell has one image."""
    return tuple(name.removeprefix(FILES_OF) for name in frame.columns if name.startswith(FILES_OF))


def image_files(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per image file: the table itself, or all cells' files of the first modality, then of the next.

    Args:
        frame: n rows of a ``CellTable`` with M modalities.

    Returns:
        M n rows with the columns of ``COLUMNS``; ``bytes`` is the file's size. Row i is of cell i modulo n.
    """
    names = modalities(frame)
    if not names:
        return frame
    parts = [of_modality(frame, name) for name in names]
    return pd.concat(
        [part.assign(bytes=[os.stat(path).st_size for path in part.path]) for part in parts], ignore_index=True
    )


def of_modality(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns the cells with one modality's files alone, with the columns of ``COLUMNS``."""
    return frame[list(COLUMNS)].assign(path=frame[FILES_OF + name])
