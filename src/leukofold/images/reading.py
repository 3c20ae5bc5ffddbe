"""Decoding images, and the survey of a set before training: what cannot be decoded, and what looks alike."""

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
from leukofold.files import alone, beside_lock, replacing
from leukofold.images.hashing import HASH_BYTES, HASH_VERSION, perceptual_hash
from leukofold.processes import available_cores

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
"""Endings of the files that are taken for images, in lower case."""


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
    return _look_at_all(paths, workers, progress)[1]


def survey_images(frame: pd.DataFrame, cache: Path, progress: bool = True) -> np.ndarray:
    """Decodes every image once: refuses unreadable ones, and tells what each looks like.

    Args:
        frame: n rows of a ``CellTable``.
        cache: Folder that keeps the surveys of sets that passed, by ``files_digest``: they are not decoded again.
        progress: Whether to show a progress bar.

    Returns:
        n x 32 uint8, the perceptual hash of each image.

    Raises:
        UserError: Some images are unreadable; names the first few and counts all.
    """
    stored = cache / "surveys" / f"{files_digest(frame)}-{HASH_VERSION}.npy"
    hashes = _load_survey(stored, len(frame))
    if hashes is not None:
        return hashes
    with alone(beside_lock(stored), "is looking at all images" if progress else None):
        hashes = _load_survey(stored, len(frame))
        if hashes is None:
            hashes = _survey(frame, progress)
            with replacing(stored) as temporary, temporary.open("wb") as file:
                np.save(file, hashes)
    return hashes


def _survey(frame: pd.DataFrame, progress: bool) -> np.ndarray:
    """Decodes every image; refuses unreadable ones."""
    hashes, faults = _look_at_all(frame.path.tolist(), None, progress)
    if faults:
        listed = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{len(faults)} of {len(frame)} images are unreadable: {listed}")
    return hashes


def files_digest(frame: pd.DataFrame) -> str:
    """Returns 16 hex digits that change with any image's path, size or time of change, and with their order."""
    digest = hashlib.sha256()
    for path in frame.path:
        stat = os.stat(path)
        digest.update(f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _load_survey(stored: Path, count: int) -> np.ndarray | None:
    """Loads a stored survey; None where there is none, or a damaged one."""
    try:
        hashes = np.load(stored, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = isinstance(hashes, np.ndarray) and hashes.shape == (count, HASH_BYTES) and hashes.dtype == np.uint8
    return hashes if sound else None


def _look_at_all(paths: Sequence[str], workers: int | None, progress: bool) -> tuple[np.ndarray, list[str]]:
    """Decodes images in threads; returns their hashes (zeros for unreadable ones) and what is wrong with the others."""
    hashes, faults = np.zeros((len(paths), HASH_BYTES), np.uint8), []
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        looks = pool.map(_look_at, paths)
        bar = tqdm(looks, total=len(paths), desc="decoding images", unit="image", disable=not progress)
        for row, seen in enumerate(bar):
            if isinstance(seen, str):
                faults.append(seen)
            else:
                hashes[row] = seen
    return hashes, faults


def _look_at(path: str) -> np.ndarray | str:
    """Decodes one image; returns its hash, or what is wrong with it."""
    try:
        return perceptual_hash(read_image(path))
    except CorruptImageError as error:
        return str(error)
