"""Arrays on disk with a row per image, read through a memory map, each row checked as it is read.

::

    <folder>/<array>.npy     n x ...
             checksums.npy   of each row
             index.csv       the image id of each row
             <array>.json    what it is made of, and what tells whether the other files are whole; written last

A disk or a copy that has changed a byte is met where it matters: small files are checked when a folder is opened, and a
damaged folder is made again; a row is checked whenever it is read, and a damaged one is refused by its image's name.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from xxhash import xxh3_64_intdigest

from leukofold.errors import UserError, first_line
from leukofold.files import replacing, sha256, working_path, write_json, write_text

INDEX, CHECKSUMS = "index.csv", "checksums.npy"


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
        self._checksums: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the memory maps out: a loader's process opens its own instead of receiving copies."""
        return {**vars(self), "_array": None, "_checksums": None}

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

    def read(self, rows: int | np.ndarray) -> np.ndarray:
        """Reads rows, and checks that they are what was written.

        Args:
            rows: One row, or n of them.

        Returns:
            A copy of them, ... or n x ...

        Raises:
            UserError: A row is damaged; names its image.
        """
        found, written = np.array(self.array[rows]), np.atleast_1d(self.checksums[rows]).tolist()
        several = [found] if np.ndim(rows) == 0 else found
        if checksums(several) != written:
            self._refuse(np.atleast_1d(rows), checksums(several), written)
        return found

    def _refuse(self, rows: np.ndarray, found: Sequence[int], written: Sequence[int]) -> None:
        """Names the image of the first damaged row."""
        row = next(int(row) for row, a, b in zip(rows, found, written, strict=True) if a != b)
        image_id = next(name for name, place in self._rows.items() if place == row)
        raise UserError(
            f"{working_path(self._file)}: damaged in the row of {image_id}; delete {working_path(self.folder)}, which "
            "will be made again, and look after the disk"
        )

    @property
    def checksums(self) -> np.ndarray:
        """The checksum of each row as it was written, n uint64."""
        if self._checksums is None:
            self._checksums = np.load(self.folder / CHECKSUMS, mmap_mode="r")
        return self._checksums

    @property
    def array(self) -> np.ndarray:
        """The memory map, read only, unchecked; see ``read``."""
        if self._array is None:
            self._array = np.load(self._file, mmap_mode="r")
        return self._array


def checksums(rows: Iterable[np.ndarray]) -> list[int]:
    """Computes the checksum of each row: its bytes' XXH3, 64 bits. Against accidents, not against forgers."""
    return [xxh3_64_intdigest(np.ascontiguousarray(row).data) for row in rows]


def seal(folder: Path, name: str, image_ids: pd.Series, made_of: Mapping[str, Any]) -> None:
    """Finishes a folder whose array and checksums are written: adds the index, and what tells that all is whole.

    Args:
        folder: Of the array.
        name: The array's file name without suffix.
        image_ids: n ids, in the order of the rows.
        made_of: What tells how the array was made.
    """
    write_text(folder / INDEX, pd.DataFrame({"image_id": image_ids}).to_csv(index=False))
    whole = {
        "rows": len(image_ids),
        "bytes": (folder / f"{name}.npy").stat().st_size,
        "header": _header(folder / f"{name}.npy").hex(),
        "sha256": {file: sha256(folder / file) for file in (INDEX, CHECKSUMS)},
    }
    write_json(folder / f"{name}.json", {**made_of, **whole})


def fault_of(folder: Path, name: str) -> str | None:
    """Looks whether a finished folder is whole, but for single rows, which are checked as they are read.

    Args:
        folder: Of the array; it may be missing.
        name: The array's file name without suffix.

    Returns:
        None: it is. Else what is wrong with it.
    """
    if not folder.exists():
        return "is not there"
    try:
        description = json.loads((folder / f"{name}.json").read_bytes())
        for file, digest in description["sha256"].items():
            if sha256(folder / file) != digest:
                return f"{file} is damaged"
        if (folder / f"{name}.npy").stat().st_size != description["bytes"]:
            return f"{name}.npy is cut short"
        header = bytes.fromhex(description["header"])
        with (folder / f"{name}.npy").open("rb") as file:
            if file.read(len(header)) != header:
                return f"{name}.npy is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{name}.json is damaged ({first_line(error)})"
    return None


def _header(array: Path) -> bytes:
    """Reads what stands before an ``.npy`` file's numbers: their kind and shape."""
    with array.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        size = file.tell()
        file.seek(0)
        return file.read(size)


def remove_damaged(folder: Path, fault: str) -> None:
    """Removes a folder that is not whole, to be made again, and says so; nothing is to be done where there is none."""
    if folder.exists():
        print(f"{working_path(folder)}: {fault}; it is made again", flush=True)
        shutil.rmtree(folder)


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
        array = create_map(partial / f"{name}.npy", np.float32, (len(image_ids), *first.shape[1:]))
        sums: list[int] = []
        for part in itertools.chain([first], parts):
            array[len(sums) : len(sums) + len(part)] = part
            sums += checksums(np.asarray(part, np.float32))
        array.flush()
        write_checksums(partial, sums)
        seal(partial, name, image_ids, made_of)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)


def write_checksums(folder: Path, sums: Sequence[int]) -> None:
    """Writes the checksums of all rows in one step."""
    with replacing(folder / CHECKSUMS) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(sums, np.uint64))


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
