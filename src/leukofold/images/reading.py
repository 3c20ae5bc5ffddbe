"""Decoding images, and the survey of a set before training: what cannot be decoded, and what looks alike."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from leukofold.errors import UserError
from leukofold.files import DAMAGED_ARRAYS, alone, beside_lock, replacing
from leukofold.images.hashing import HASH_BYTES, HASH_VERSION, perceptual_hash
from leukofold.images.headers import AGAIN, MOST_PIXELS, NO_IMAGE, BadHeaderError, read_header
from leukofold.processes import available_cores

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
"""Endings of the files that are taken for images, in lower case."""

_MOST_BYTES = 8 * MOST_PIXELS  # of a file: four channels of 16 bits
_DARK = 16  # of 255: what 12 of 16 bits do not reach

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is wrong with a file is told by name instead


class CorruptImageError(UserError):
    """An image file that cannot be decoded whole."""


def read_image(path: str | Path) -> np.ndarray:
    """Decodes one image file.

    Read are 8 and 16 bits, of which the upper 8 are taken; grey, palette, RGB, CMYK (as Pillow converts it, without a
    colour profile) and 1 bit; progressive and interlaced. Orientation is applied, as by every viewer: whoever labelled
    the image saw it that way. The transparency of a PNG or BMP is dropped and the colours below it stay, as in most
    loaders; a TIFF's has to be opaque, as its decoder would darken the colours. See ``images.headers`` for what is
    refused, and why.

    Args:
        path: A JPEG, PNG, BMP or TIFF file of at most ``MOST_PIXELS``, whatever its suffix.

    Returns:
        H x W x 3 uint8, RGB.

    Raises:
        CorruptImageError: The file is empty, cut short, too large, or no image that has one right reading; or it
            cannot be read, or is not there any more.
    """
    encoded = read_file(path)
    if not encoded:
        raise CorruptImageError(f"{path}: the file is empty; {AGAIN}")
    try:
        header = read_header(encoded)
    except BadHeaderError as error:
        raise CorruptImageError(f"{path}: {error}") from None
    image = _decode(encoded, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise CorruptImageError(f"{path}: {NO_IMAGE}")
    if header.bits == 16 and image.max() < _DARK:
        raise CorruptImageError(
            f"{path}: holds 16 bits, of which the upper 4 are not used: a camera's 12 bits; save it as 8 bits"
        )
    if header.alpha and _transparent(encoded):
        raise CorruptImageError(f"{path}: a TIFF with transparent pixels; save it without transparency")
    return image


def read_file(path: str | Path) -> bytes:
    """Reads a file of an image whole.

    Raises:
        CorruptImageError: It is gone, no file, cannot be read, or is larger than any image that is read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise CorruptImageError(f"{path}: not a file")
            if state.st_size > _MOST_BYTES:
                raise CorruptImageError(f"{path}: {state.st_size / 1e9:.1f} GB are too large for an image; cut it up")
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from None


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file, and a pipe without waiting for someone to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _unreadable(path: str | Path, error: OSError) -> CorruptImageError:
    """Tells why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return CorruptImageError(f"{path}: the file is gone")
    if isinstance(error, IsADirectoryError):
        return CorruptImageError(f"{path}: a folder, not a file")
    return CorruptImageError(f"{path}: cannot be read: {error.strerror}")


def _decode(encoded: bytes, how: int) -> np.ndarray | None:
    """Decodes a file; None where it is damaged."""
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), how)
    except cv2.error:
        return None


def _transparent(encoded: bytes) -> bool:
    """Tells whether any pixel of an image with a channel of transparency is."""
    whole = _decode(encoded, cv2.IMREAD_UNCHANGED)
    return whole is None or whole.ndim < 3 or int(whole[..., -1].min()) < np.iinfo(whole.dtype).max


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
    stored = cache / "surveys" / f"{files_digest(frame)}-{HASH_VERSION}.npz"  # with a checksum
    hashes = _load_survey(stored, len(frame))
    if hashes is not None:
        return hashes
    with alone(beside_lock(stored), "is looking at all images" if progress else None):
        hashes = _load_survey(stored, len(frame))
        if hashes is None:
            hashes = _survey(frame, progress)
            with replacing(stored) as temporary, temporary.open("wb") as file:
                np.savez(file, hashes=hashes)
    return hashes


def _survey(frame: pd.DataFrame, progress: bool) -> np.ndarray:
    """Decodes every image; refuses unreadable ones."""
    hashes, faults = _look_at_all(frame.path.tolist(), None, progress)
    if faults:
        listed = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{len(faults)} of {len(frame)} images are unreadable: {listed}")
    return hashes


def files_digest(frame: pd.DataFrame) -> str:
    """Returns 16 hex digits that change with any image's path, size or time of change, and with their order.

    Raises:
        CorruptImageError: A file is gone.
    """
    digest = hashlib.sha256()
    for path in frame.path:
        try:
            state = os.stat(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        digest.update(f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _load_survey(stored: Path, count: int) -> np.ndarray | None:
    """Loads a stored survey; None where there is none, or a damaged one."""
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            hashes = arrays["hashes"]
    except DAMAGED_ARRAYS:
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
