"""Acevedo-20, or PBC: 17,092 normal blood cells of the Hospital Clinic of Barcelona, 13 classes.

Source: Acevedo et al., Data in Brief 30 (2020) 105474; Mendeley Data ``snkd93bnjr``, CC BY 4.0. Layout::

    PBC_dataset_normal_DIB/{basophil,eosinophil,erythroblast,ig,lymphocyte,monocyte,neutrophil,platelet}/PREFIX_<id>.jpg

The folders are coarse, the file name's prefix tells the fine class (``ig/MMY_<id>.jpg`` is a metamyelocyte).
``IG`` and ``NEUTROPHIL`` are left at the coarse class, ``ERB`` (erythroblast) and ``PLATELET`` are no white
cells: none of the four has a counterpart. No patients are named.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pandas as pd

from leukofold.errors import UserError
from leukofold.external.base import ExternalSource


class Acevedo(ExternalSource):
    """The classes and the file names of Acevedo-20."""

    name = "acevedo"
    title = "Acevedo-20"
    labels: ClassVar[Mapping[str, str | None]] = {
        "BA": "BA",
        "BNE": "BNE",
        "EO": "EO",
        "ERB": None,
        "IG": None,
        "LY": "LY",
        "MMY": "MMY",
        "MO": "MO",
        "MY": "MY",
        "NEUTROPHIL": None,
        "PLATELET": None,
        "PMY": "PMY",
        "SNE": "SNE",
    }
    published_counts: ClassVar[Mapping[str, int]] = {
        "BA": 1218,
        "BNE": 1633,
        "EO": 3117,
        "ERB": 1551,
        "IG": 151,
        "LY": 1214,
        "MMY": 1015,
        "MO": 1420,
        "MY": 1137,
        "NEUTROPHIL": 50,
        "PLATELET": 2348,
        "PMY": 592,
        "SNE": 1646,
    }
    marker = "PBC_dataset_normal_DIB"
    licence = "CC BY 4.0"
    by_hand = "download https://data.mendeley.com/datasets/snkd93bnjr and unpack PBC_dataset_normal_DIB.zip there"

    def class_of(self, path: Path) -> str:
        """Returns what stands before the file name's first underscore."""
        return path.stem.partition("_")[0]

    def scan(self, root: Path) -> pd.DataFrame:
        """Finds the images; see the base class.

        Raises:
            UserError: Also where a file name is there twice: its ids are unique, so it was unpacked twice.
        """
        found = super().scan(root)
        names = found.path.str.rpartition("/")[2]
        twice = names[names.duplicated()]
        if len(twice):
            first, second = found.path[names == twice.iloc[0]].iloc[:2]
            raise UserError(f"{root}: the same file name twice, {first} and {second}; keep one copy")
        return found


SOURCE = Acevedo()
