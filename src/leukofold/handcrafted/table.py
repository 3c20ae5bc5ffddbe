"""Handcrafted features of many images, measured once and kept on disk.

::

    cache/handcrafted/<key>/features.npy    n x D float32
                            checksums.npy   of each row
                            index.csv       the image id of each row
                            features.json   what they are made of, such as their names; and what tells that all is whole
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader
from tqdm import tqdm

from leukofold.files import alone
from leukofold.handcrafted.measures import NAMES, measure
from leukofold.images.cellimages import CellImages
from leukofold.loaders import SizedDataset, make_loader
from leukofold.rowmaps import RowMap, fault_of, remove_damaged, write_rows

VERSION = 1
"""Raised whenever the same image gives other features, so that what was measured before counts as outdated."""

FEATURES = "features"  # the array's name
AT_ONCE = 16  # images that a process measures between two marks of progress


class _Measured(SizedDataset):
    """Measures one image after the other, in the loader's processes."""

    def __init__(self, images: CellImages, frame: pd.DataFrame) -> None:
        self.images = images
        self.rows = images.rows(frame.image_id.tolist())

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Brings ``features`` (D float32) of an image."""
        return {"features": measure(self.images.of_cell(self.rows[row])[0])}


def handcrafted_features(
    images: CellImages, frame: pd.DataFrame, cache: Path, workers: int | None, progress: bool = True
) -> RowMap:
    """Opens the features of a frame's images, after measuring them where that was not done yet.

    Args:
        images: The prepared images, one of each cell.
        frame: n rows of a ``CellTable``.
        cache: Folder for what can be recomputed from the input.
        workers: Processes that measure; None: one per core.
        progress: Whether to show a progress bar.

    Returns:
        n x D float32, in the order of ``measures.NAMES``.
    """
    made_of = {"version": VERSION, "images": images.key, "names": list(NAMES)}
    ids = hashlib.sha256("\n".join(frame.image_id).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([made_of, ids], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "handcrafted" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.with_suffix(".lock")):
        fault = fault_of(folder, FEATURES)
        if fault is not None:
            remove_damaged(folder, fault)
            loader = make_loader(_Measured(images, frame), workers, AT_ONCE)
            write_rows(folder, FEATURES, frame.image_id, _parts(loader, len(frame), progress), made_of)
    return RowMap(folder, FEATURES)


def _parts(loader: DataLoader[Any], count: int, progress: bool) -> Iterator[np.ndarray]:
    """Brings the features as they are measured, m x D at a time."""
    with tqdm(total=count, desc="measuring cells", unit="image", disable=not progress, leave=False) as bar:
        for batch in loader:
            yield batch["features"].numpy()
            bar.update(len(batch["features"]))
