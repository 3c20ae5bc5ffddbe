"""Acevedo-20 by itself: nine classes of normal white blood cells, to train on and score without a leaderboard.

The files are those of ``leukofold.external.acevedo``, of which the nine classes are taken that WBCBench has too;
the other four are left out. There is no test set. Any part of the files will do: ``scripts/prepare_input.py``
tells how many are missing.

No patients are named, so every image is a group of its own: any split is image-level, and scores are optimistic,
since cells of one smear lie on both sides of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from leukofold.cells import CellTable
from leukofold.competitions.base import Competition, Scan
from leukofold.external.acevedo import SOURCE
from leukofold.lineages import LINEAGES

CLASS_NAMES = ("BA", "BNE", "EO", "LY", "MMY", "MO", "MY", "PMY", "SNE")


class AcevedoData(Competition):
    """The files and the classes of Acevedo-20."""

    name = SOURCE.name
    title = SOURCE.title
    class_names = CLASS_NAMES
    lineages = LINEAGES
    metric = "macro_f1"
    has_patients = False
    by_hand = SOURCE.by_hand
    published_counts: ClassVar[Mapping[str, Mapping[str, int]]] = {
        SOURCE.name: {name: SOURCE.published_counts[name] for name in CLASS_NAMES}
    }

    def scan(self, root: Path) -> Scan:
        """Finds the images and reads their names; see the base class."""
        frame = SOURCE.read(root, CLASS_NAMES, take=None, partial=True)
        return Scan(CellTable(frame.assign(is_external=False), CLASS_NAMES))


COMPETITION = AcevedoData()
