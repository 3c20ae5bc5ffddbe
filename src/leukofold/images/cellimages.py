"""The prepared images of cells: one of each, or one of each modality, side by side."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd

from leukofold.cells import modalities, of_modality
from leukofold.config import DataConfig
from leukofold.images.cache import ImageCache, open_cache
from leukofold.images.preparing import Preparation

GAP = 3  # pixels between images that are shown together


class CellImages:
    """Prepared images of cells, from a cache for each modality: runs that share modalities share their caches.

    Args:
        caches: M caches of the same cells in the same order.
        names: The M modalities; none where a cell has one image.
    """

    def __init__(self, caches: Sequence[ImageCache], names: Sequence[str] = ()) -> None:
        self.caches = tuple(caches)
        self.modalities = tuple(names)

    @property
    def count(self) -> int:
        """M, images of a cell."""
        return len(self.caches)

    @property
    def key(self) -> str:
        """Names the files, their state and what was done to them."""
        return "-".join(cache.folder.name for cache in self.caches)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Finds cells.

        Args:
            image_ids: n ids of the table that the images were prepared for.

        Returns:
            n rows for the other methods.
        """
        return self.caches[0].rows(image_ids)

    def content(self, rows: np.ndarray) -> np.ndarray:
        """Returns n numbers that tell apart what cells' first images show, whatever their names and places."""
        return np.asarray(self.caches[0].checksums[rows])

    def of_cell(self, row: int) -> np.ndarray:
        """Reads a cell's images, M x S x S x 3 uint8, RGB."""
        return np.stack([cache.read(row) for cache in self.caches])

    def of_modality(self, row: int, modality: int) -> np.ndarray:
        """Reads one of a cell's images, 1 x S x S x 3 uint8, RGB."""
        return self.caches[modality].read(np.array([row]))

    def channels(self, rows: np.ndarray) -> np.ndarray:
        """Reads cells, n x S x S x 3M uint8: the modalities' colours one after another, as networks see them."""
        return np.concatenate([cache.read(rows) for cache in self.caches], axis=3)


def tiled(images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Puts the images of a cell together for people, in reading order.

    Args:
        images: M square images, RGB uint8.
        side: Of the whole, pixels.

    Returns:
        side x side x 3; white between them and where a place is left.
    """
    across = math.ceil(math.sqrt(len(images)))
    gap = GAP if across > 1 else 0
    part = (side - gap * (across - 1)) // across
    whole = np.full((side, side, 3), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = ((part + gap) * place for place in divmod(k, across))
        whole[top : top + part, left : left + part] = cv2.resize(image, (part, part), interpolation=cv2.INTER_AREA)
    return whole


def open_images(
    frame: pd.DataFrame, preparation: Preparation, competition: str, data: DataConfig, progress: bool = True
) -> CellImages:
    """Opens the prepared images of a table's cells; see ``images.cache.open_cache``.

    Args:
        frame: Rows of a ``CellTable``.
        preparation: What is done to each image.
        competition: Whose first step is part of ``preparation``.
        data: The cache's folder, and the modalities to be seen.
        progress: Whether to show a progress bar.

    Returns:
        The images.
    """
    names = data.modalities or modalities(frame)
    frames = [of_modality(frame, name) for name in names] or [frame]
    return CellImages([open_cache(part, preparation, competition, data.cache, progress) for part in frames], names)
