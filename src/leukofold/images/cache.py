"""The image cache: every image decoded and prepared once, in a memory map that all folds and processes share.

::

    cache/images/<key>/pixels.npy       n x S x S x 3 uint8, RGB
                       checksums.npy    of each image
                       index.csv        the image id of each row
                       pixels.json      settings, and what tells that the other files are whole

The key is a digest of the settings and of every file's path, size and time of change, so a changed file
or setting makes a new cache; what is not needed any more can be deleted at any time. A cache is built as
``<key>.partial``, under a lock, and renamed at the end: an interrupted build goes on where it stopped,
and a second process waits for the first one's. One that has been damaged since is built again.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from leukofold.errors import UserError
from leukofold.files import alone, working_path
from leukofold.images.preparing import Preparation
from leukofold.images.reading import CorruptImageError, read_image
from leukofold.processes import available_cores
from leukofold.rowmaps import CHECKSUMS, RowMap, checksums, create_map, fault_of, remove_damaged, seal

CHUNK = 256  # images between two marks of progress
VERSION = 2
"""Raised whenever a cache is laid out otherwise, so that older ones are left alone."""

PIXELS = "pixels"  # the array's name
DONE = "done.npy"  # of an unfinished build: which chunks are there


class ImageCache(RowMap):
    """Prepared images on disk.

    Args:
        folder: A complete cache.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PIXELS)

    @property
    def pixels(self) -> np.ndarray:
        """The memory map, n x S x S x 3 uint8, read only, unchecked; see ``read``."""
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
    if fault_of(folder, PIXELS) is None:  # first without the lock: a cache that others made may be read only
        return ImageCache(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.with_suffix(".lock"), f"is building {working_path(folder)}" if progress else None):
        fault = fault_of(folder, PIXELS)
        if fault is not None:
            remove_damaged(folder, fault)
            _build(frame, preparation, settings, folder, progress)
    return ImageCache(folder)


def _key(frame: pd.DataFrame, settings: dict[str, Any]) -> str:
    """Digests the settings and the state of every file."""
    digest = hashlib.sha256(f"{VERSION} {json.dumps(settings, sort_keys=True)}".encode())
    if settings.get("crops"):  # else the split changes no pixel
        digest.update("\n".join(frame.split).encode())
    for image_id, path in zip(frame.image_id, frame.path, strict=True):
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise CorruptImageError(f"{path}: the file is gone") from None
        digest.update(f"{image_id}\0{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(
    frame: pd.DataFrame, preparation: Preparation, settings: dict[str, Any], folder: Path, progress: bool
) -> None:
    """Fills the memory map, goes on with an interrupted one, and renames it into place."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    pixels, sums, done = _open_partial(partial, len(frame), preparation.size, folder)
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
                prepared = preparation.many(images, splits[part], pool)
                pixels[start : start + len(images)] = prepared
                sums[start : start + len(images)] = checksums(prepared)
                pixels.flush()  # before the mark: a mark always means that its pixels are there
                sums.flush()
                done[start // CHUNK] = True
                done.flush()
                bar.update(len(images))
    finally:
        cv2.setNumThreads(threads)
    del pixels, sums, done
    seal(partial, PIXELS, frame.image_id, settings)
    partial.rename(folder)
    (folder / DONE).unlink()


def _open_partial(partial: Path, count: int, size: int, folder: Path) -> list[np.memmap]:
    """Opens an unfinished build's pixels, checksums and marks, or starts them."""
    maps = {  # the marks last: where they are, all are whole
        f"{PIXELS}.npy": (np.uint8, (count, size, size, 3)),
        CHECKSUMS: (np.uint64, (count,)),
        DONE: (np.bool_, (-(-count // CHUNK),)),
    }
    begun = [_begun(partial / name, *made_of) for name, made_of in maps.items()]
    opened = [array for array in begun if array is not None]
    if len(opened) == len(maps):
        return opened
    del begun, opened
    for name in maps:  # of a start that failed between them, or damaged since
        (partial / name).unlink(missing_ok=True)
    needed, free = count * size * size * 3, shutil.disk_usage(partial).free
    if needed > free:
        shutil.rmtree(partial)
        raise UserError(
            f"data.cache: {count} images at {size} pixels need {needed / 1e9:.1f} GB in {working_path(folder.parent)}, "
            f"{free / 1e9:.1f} GB are free; name a folder on a larger disk, or delete old caches there"
        )
    return [create_map(partial / name, *made_of) for name, made_of in maps.items()]


def _begun(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.memmap | None:
    """Opens a map that an interrupted build has left; None if there is none that is whole."""
    try:
        size = path.stat().st_size  # before: opening lengthens a file that is cut short
        array = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError, TokenError):  # the last one is what NumPy makes of some damaged headers
        return None
    if not isinstance(array, np.memmap) or array.dtype != kind or array.shape != shape:
        return None
    return array if size == array.offset + array.nbytes else None
