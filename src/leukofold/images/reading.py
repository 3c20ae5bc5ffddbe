"""Decoding images, and finding those that cannot be decoded before training starts."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from leukofold.errors import UserError
from leukofold.files import write_text
from leukofold.processes import available_cores


class CorruptImageError(UserError):
    """An image file that cannot be decoded whole."""


def read_image(path: str | Path) -> np.ndarray:
    """Decodes one image file.

    OpenCV fills the missing rest of a truncated JPEG with grey without a word, so the end of the
    file is looked at first.

    Args:
        path: A JPEG, PNG, BMP or TIFF file.

    Returns:
        H x W x 3 uint8, RGB.

    Raises:
        CorruptImageError: The file is empty, cut short, or no image; or it is not there any more.
    """
    try:
        encoded = Path(path).read_bytes()
    except FileNotFoundError:
        raise CorruptImageError(f"{path}: the file is gone") from None
    if not encoded:
        raise CorruptImageError(f"{path}: the file is empty; download it again")
    if _cut_short(encoded):
        raise CorruptImageError(f"{path}: the file is cut short; download it again")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # a damaged header that asks for more pixels than OpenCV takes
        image = None
    if image is None:
        raise CorruptImageError(f"{path}: not an image that can be decoded; download it again")
    return image


def _cut_short(encoded: bytes) -> bool:
    """Tells whether a JPEG, PNG or BMP file lacks its end."""
    if encoded[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in encoded[-1024:]
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in encoded[-1024:]
    if encoded[:2] == b"BM":
        return len(encoded) < int.from_bytes(encoded[2:6], "little")
    return False


def unreadable_images(paths: Sequence[str], workers: int | None = None, progress: bool = True) -> list[str]:
    """Decodes every image and tells what is wrong with those that fail.

    Args:
        paths: n image files.
        workers: Threads (OpenCV decodes without Python's lock); by default one per core.
        progress: Whether to show a progress bar.

    Returns:
        One line per unreadable image, in the order of ``paths``.
    """
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        bar = tqdm(
            pool.map(_fault, paths), total=len(paths), desc="decoding images", unit="image", disable=not progress
        )
        return [fault for fault in bar if fault is not None]


def _fault(path: str) -> str | None:
    """Decodes one image; returns what is wrong with it, if anything is."""
    try:
        read_image(path)
    except CorruptImageError as error:
        return str(error)
    return None


def check_images(frame: pd.DataFrame, cache: Path, progress: bool = True) -> None:
    """Refuses to go on with unreadable images; a set that passed is not decoded again.

    Args:
        frame: Rows of a ``CellTable``.
        cache: Folder that remembers which sets passed (paths, sizes and times of change).
        progress: Whether to show a progress bar.

    Raises:
        UserError: Some images are unreadable; names the first few and counts all.
    """
    digest = hashlib.sha256()
    for path in frame.path:
        stat = os.stat(path)
        digest.update(f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    passed = cache / "checked" / digest.hexdigest()[:16]
    if passed.exists():
        return
    faults = unreadable_images(frame.path.tolist(), progress=progress)
    if faults:
        listed = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{len(faults)} of {len(frame)} images are unreadable: {listed}")
    write_text(passed, f"{len(frame)} images decoded without a fault\n")
