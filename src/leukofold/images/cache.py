"""The image cache: every image decoded and prepared once, in a memory map that all folds and processes share.

::

    cache/images/<key>/pixels.npy    n x S x S x 3 uint8, RGB
                       index.csv     the image id of each row
                       cache.json    settings and number of images

The key is a digest of the settings and of every file's path, size and time of change, so a changed file
or setting makes a new cache; what is not needed any more can be deleted at any time. A cache is built as
``<key>.partial``, under a lock, and renamed at the end: an interrupted build goes on where it stopped,
and a second process waits for the first one's.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from leukofold.errors import UserError
from leukofold.files import alone, working_path, write_json
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image
from leukofold.processes import available_cores
from leukofold.rowmaps import RowMap, create_map, write_index

CHUNK = 256  # images between two marks of progress


class ImageCache(RowMap):
    """Prepared images on disk.

    Args:
        folder: A complete cache.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "pixels")

    @property
    def pixels(self) -> np.ndarray:
        """The memory map, n x S x S x 3 uint8, read only."""
        return self.array


def open_cache(
    frame: pd.DataFrame, preparation: Preparation, competition: str, cache: Path, progress: bool = True
) -> ImageCache:
    """Opens the cache of a frame's images, after building it where it is not there yet.

    Args:
        frame: Rows of a ``CellTable``.
        preparation: What is done to each image.
        competition: Whose first step is part of ``preparation``.
        cache: Folder for what can be recomputed from the input.
        progress: Whether to show a progress bar.

    Returns:
        The cache.

    Raises:
        UserError: The disk has no room for it.
        CorruptImageError: An image cannot be decoded.
    """
    settings = {"competition": competition, **preparation.settings()}
    folder = cache / "images" / _key(frame, settings)
    if (folder / "cache.json").exists():
        return ImageCache(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.with_suffix(".lock"), f"is building {working_path(folder)}" if progress else None):
        if not (folder / "cache.json").exists():
            _build(frame, preparation, settings, folder, progress)
    return ImageCache(folder)


def _key(frame: pd.DataFrame, settings: dict[str, Any]) -> str:
    """Digests the settings and the state of every file."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if settings.get("crops"):  # else the split changes no pixel
        digest.update("\n".join(frame.split).encode())
    for image_id, path in zip(frame.image_id, frame.path, strict=True):
        stat = os.stat(path)
        digest.update(f"{image_id}\0{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(
    frame: pd.DataFrame, preparation: Preparation, settings: dict[str, Any], folder: Path, progress: bool
) -> None:
    """Fills the memory map, goes on with an interrupted one, and renames it into place."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    pixels, done = _open_partial(partial, len(frame), preparation.size, folder)
    starts = [start for start in range(0, len(frame), CHUNK) if not done[start // CHUNK]]
    paths, splits, threads = frame.path.tolist(), frame.split.tolist(), cv2.getNumThreads()
    bar = tqdm(total=len(frame), desc="preparing images", unit="image", disable=not progress)
    bar.update(len(frame) - sum(min(CHUNK, len(frame) - start) for start in starts))
    cv2.setNumThreads(1)  # one image per thread; OpenCV's own would only wait for each other
    try:
        with bar, ThreadPoolExecutor(available_cores()) as pool:
            for start in starts:
                part = slice(start, start + CHUNK)
                images = list(pool.map(read_image, paths[part]))
                pixels[start : start + len(images)] = preparation.many(images, splits[part], pool)
                pixels.flush()  # before the mark: a mark always means that its pixels are there
                done[start // CHUNK] = True
                done.flush()
                bar.update(len(images))
    finally:
        cv2.setNumThreads(threads)
    del pixels, done
    (partial / "done.npy").unlink()
    write_index(partial, frame.image_id)
    write_json(partial / "cache.json", {**settings, "images": len(frame)})
    partial.rename(folder)


def _open_partial(partial: Path, count: int, size: int, folder: Path) -> tuple[np.memmap, np.memmap]:
    """Opens an unfinished build's pixels and marks, or starts them."""
    names = [partial / "pixels.npy", partial / "done.npy"]
    if all(path.exists() for path in names):
        pixels, done = (np.lib.format.open_memmap(path, mode="r+") for path in names)
        return pixels, done
    for path in names:  # of a start that failed between the two
        path.unlink(missing_ok=True)
    needed, free = count * size * size * 3, shutil.disk_usage(partial).free
    if needed > free:
        shutil.rmtree(partial)
        raise UserError(
            f"data.cache: {count} images at {size} pixels need {needed / 1e9:.1f} GB in {working_path(folder.parent)}, "
            f"{free / 1e9:.1f} GB are free; name a folder on a larger disk, or delete old caches there"
        )
    return (
        create_map(names[0], np.uint8, (count, size, size, 3)),
        create_map(names[1], np.bool_, (-(-count // CHUNK),)),  # last: where it is, both are whole
    )
