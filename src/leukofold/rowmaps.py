"""Arrays on disk with a row per image, read through a memory map.

::

    <folder>/<array>.npy    n x ...
             index.csv      the image id of each row
             <array>.json   what it is made of (the image cache has its own file)
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukofold.files import write_json, write_text


class RowMap:
    """Rows of an array on disk, found by image id; the file is opened where it is first used.

    Args:
        folder: A complete folder.
        name: The array's file name without suffix.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._file = folder / f"{name}.npy"
        index = pd.read_csv(folder / "index.csv", dtype=str, keep_default_na=False)
        self._rows = {image_id: row for row, image_id in enumerate(index.image_id)}
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the memory map out: a loader's process opens its own instead of receiving a copy."""
        return {**vars(self), "_array": None}

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._rows)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Finds images.

        Args:
            image_ids: n ids of the frame that the array was made for.

        Returns:
            n rows of ``array``.
        """
        return np.array([self._rows[image_id] for image_id in image_ids], dtype=np.int64)

    @property
    def array(self) -> np.ndarray:
        """The memory map, read only."""
        if self._array is None:
            self._array = np.load(self._file, mmap_mode="r")
        return self._array


def write_index(folder: Path, image_ids: pd.Series) -> None:
    """Notes the image id of each row."""
    write_text(folder / "index.csv", pd.DataFrame({"image_id": image_ids}).to_csv(index=False))


def write_rows(
    folder: Path, name: str, image_ids: pd.Series, parts: Iterator[np.ndarray], made_of: Mapping[str, Any]
) -> None:
    """Writes an array part by part, beside its folder, which is renamed into place at the end: where it is it is whole.

    Args:
        folder: Not there yet.
        name: The array's file name without suffix.
        image_ids: n ids.
        parts: Rows in the order of the ids, m x ... float32 at a time; n in all, at least one.
        made_of: What tells how the array was made.

    Raises:
        OSError: The disk has no room; nothing is left behind.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
    partial.mkdir(parents=True)
    try:
        first = next(parts)
        array, done = create_map(partial / f"{name}.npy", np.float32, (len(image_ids), *first.shape[1:])), 0
        for part in itertools.chain([first], parts):
            array[done : done + len(part)] = part
            done += len(part)
        array.flush()
        write_index(partial, image_ids)
        write_json(partial / f"{name}.json", {**made_of, "rows": done})
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)


def create_map(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Creates a memory map of zeros whose blocks are the disk's already, so that no later write can fail.

    Args:
        path: The file.
        kind: Type of the numbers.
        shape: Of the array.

    Returns:
        The map, to be written to.

    Raises:
        OSError: The disk has no room; nothing is left behind.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    return array
