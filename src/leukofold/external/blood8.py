"""Blood 8 classes: a collection of other data sets' images that holds 2,895 "plasma cells".

Source: Hugging Face ``ehottl/blood_dataset`` (46,232 images), after the Kaggle set "Blood_8 classes_dataset".
Layout: one folder per class, any spelling (``plasma cell``, ``Plasma_Cell``).

Beware: most likely no plasma cells are in it. Its class names are Acevedo-20's with ``ig`` (immature
granulocytes) renamed to plasma cell, and Acevedo-20 has exactly 2,895 such images, 2,744 of which it calls
promyelocytes, myelocytes and metamyelocytes. The label map follows the collection's own words, so that results
obtained with it can be repeated; a search for duplicates between it and Acevedo-20 exposes it.

``neutrophil`` has no counterpart: band and segmented neutrophils lie in it together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from leukofold.external.base import ExternalSource


class Blood8(ExternalSource):
    """The classes and the folders of Blood 8 classes."""

    name = "blood8"
    title = "Blood 8 classes"
    labels: ClassVar[Mapping[str, str | None]] = {
        "basophil": "BA",
        "eosinophil": "EO",
        "erythroblast": None,
        "lymphocyte": "LY",
        "monocyte": "MO",
        "neutrophil": None,
        "plasma cell": "PC",
        "platelet": None,
    }
    published_counts: ClassVar[Mapping[str, int]] = {"plasma cell": 2895}
    published_total = 46232
    licence = "none known"
    by_hand = (
        "download https://huggingface.co/datasets/ehottl/blood_dataset and put each image, its bytes unchanged, "
        "into the folder of its class there"
    )

    def class_of(self, path: Path) -> str:
        """Returns the name of the folder that the image lies in."""
        return path.absolute().parent.name


SOURCE = Blood8()
