"""CellWiki's prolymphocytes: 18 images of WBCBench's rarest class.

Source: the pictures of CellWiki's page on the prolymphocyte; no known licence. Layout: one flat folder of
images, of any name and size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pandas as pd

from leukofold.errors import UserError, name_some
from leukofold.external.base import ExternalSource

CLASS_NAME = "prolymphocyte"


class CellWiki(ExternalSource):
    """The one class of CellWiki's images."""

    name = "cellwiki"
    title = "CellWiki prolymphocytes"
    labels: ClassVar[Mapping[str, str | None]] = {CLASS_NAME: "PLY"}
    published_counts: ClassVar[Mapping[str, int]] = {CLASS_NAME: 18}
    licence = "none known"
    by_hand = "save the pictures of CellWiki's page on the prolymphocyte there, by hand"

    def class_of(self, path: Path) -> str:
        """Every image shows a prolymphocyte."""
        return CLASS_NAME

    def scan(self, root: Path) -> pd.DataFrame:
        """Finds the images; see the base class.

        Raises:
            UserError: Also where they lie in several folders: then this is another data set's folder, whose
                cells would all become prolymphocytes.
        """
        found = super().scan(root)
        folders = sorted({Path(path).parent.as_posix() for path in found.path})
        if len(folders) > 1:
            raise UserError(f"{root}: {self.title} are one flat folder, images lie in {name_some(folders)}; keep one")
        return found


SOURCE = CellWiki()
