"""Handcrafted features of many images, measured once and kept on disk.

::

    cache/handcrafted/<key>/features.npy    n x D float32
                            index.csv       the image id of each row
                            features.json   the names of the features
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from leukofold.files import write_json
from leukofold.handcrafted.measures import NAMES, measure
from leukofold.images.cache import ImageCache
from leukofold.loaders import SizedDataset, make_loader
from leukofold.rowmaps import RowMap, write_index

VERSION = 1
"""Raised whenever the same image gives other features, so that what was measured before counts as outdated."""

AT_ONCE = 16  # images that a process measures between two marks of progress


class _Measured(SizedDataset):
    """Measures one image after the other, in the loader's processes."""

    def __init__(self, images: ImageCache, frame: pd.DataFrame) -> None:
        self.images = images
        self.rows = images.rows(frame.image_id.tolist())

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Brings ``features`` (D float32) of an image."""
        return {"features": measure(np.asarray(self.images.pixels[self.rows[row]]))}


def handcrafted_features(
    images: ImageCache, frame: pd.DataFrame, cache: Path, workers: int | None, progress: bool = True
) -> RowMap:
    """Opens the features of a frame's images, after measuring them where that was not done yet.

    Args:
        images: The prepared images.
        frame: n rows of a ``CellTable``.
        cache: Folder for what can be recomputed from the input.
        workers: Processes that measure; None: one per core.
        progress: Whether to show a progress bar.

    Returns:
        n x D float32, in the order of ``measures.NAMES``.
    """
    made_of = {"version": VERSION, "images": images.folder.name, "names": list(NAMES)}
    ids = hashlib.sha256("\n".join(frame.image_id).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([made_of, ids], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "handcrafted" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "features.json").exists():
            _measure_all(images, frame, folder, made_of, workers, progress)
    return RowMap(folder, "features")


def _measure_all(
    images: ImageCache, frame: pd.DataFrame, folder: Path, made_of: dict[str, Any], workers: int | None, progress: bool
) -> None:
    """Measures every image, and renames the folder into place at the end."""
    loader = make_loader(_Measured(images, frame), workers, AT_ONCE)
    parts = []
    with tqdm(total=len(frame), desc="measuring cells", unit="image", disable=not progress, leave=False) as bar:
        for batch in loader:
            parts.append(batch["features"].numpy())
            bar.update(len(parts[-1]))
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
    partial.mkdir()
    np.save(partial / "features.npy", np.concatenate(parts))
    write_index(partial, frame.image_id)
    write_json(partial / "features.json", made_of)
    partial.rename(folder)
