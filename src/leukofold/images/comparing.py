"""Comparing look-alikes pixel by pixel, whatever their resolution, brightness and contrast."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import cv2
import numpy as np
from tqdm import tqdm

from leukofold.images.reading import read_image
from leukofold.processes import available_cores

_SIDE = 160  # pixels of the compared images
_MARGIN = 5  # pixels at the border that are not compared: they may have been moved out of sight
_FURTHEST = 2.5  # of these pixels that an image may be moved by: 5 at 368 x 368
_STEPS = 3  # of the alignment
_HOPELESS = (0.3, 0.65, 0.65, 0.65)  # copies correlate better than this before the first step and after each
_SCALE = 24.0  # of textures that are kept as int8
_ASPECT = 0.05  # by which the aspect ratios of copies may differ
_CHUNK = 512  # pairs per task


def compare_pixels(paths: Sequence[str], pairs: np.ndarray, progress: bool = False) -> np.ndarray:
    """Compares images pixel by pixel, whatever their resolution, brightness and contrast.

    Both are reduced to 160 x 160 grey pixels. What is compared is their texture: structures of one to three pixels,
    divided by their own local strength, so that the outline of a cell on black, or of any round cell, counts no more
    than what is inside. The second image is moved until it fits (least squares over shift and gain: B. D. Lucas and
    T. Kanade, IJCAI 1981), and the measure is the correlation.

    Args:
        paths: n image files.
        pairs: m x 2 rows of ``paths``.
        progress: Whether to show progress bars.

    Returns:
        m correlations; 0 where the aspect ratios differ by more than 5 %, or where an image is blank.

    Raises:
        CorruptImageError: An image cannot be decoded.
    """
    rows, where = np.unique(pairs, return_inverse=True)
    where = where.reshape(-1, 2)
    textures, aspects = np.empty((len(rows), _SIDE, _SIDE), np.int8), np.empty(len(rows))
    chunks = [where[start : start + _CHUNK] for start in range(0, len(where), _CHUNK)]
    similarity = [np.empty(0)]
    with ThreadPoolExecutor(available_cores()) as pool:
        looks = pool.map(_texture_of, (paths[row] for row in rows))
        seen = tqdm(looks, total=len(rows), desc="decoding look-alikes", unit="image", disable=not progress)
        for k, (texture, aspect) in enumerate(seen):
            textures[k], aspects[k] = texture, aspect
        with tqdm(total=len(where), desc="comparing pixels", unit="pair", disable=not progress) as bar:
            for values in pool.map(lambda chunk: _compare_chunk(textures, aspects, chunk), chunks):
                similarity.append(values)
                bar.update(len(values))
    return np.concatenate(similarity)


def _compare_chunk(textures: np.ndarray, aspects: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Compares some pairs, in the order of their first images."""
    values = np.zeros(len(pairs))
    fitted: tuple[int, _Template] | None = None
    for k, (a, b) in enumerate(pairs):
        if abs(np.log(aspects[a] / aspects[b])) > np.log1p(_ASPECT):
            continue
        if fitted is None or fitted[0] != a:
            fitted = int(a), _Template(textures[a].astype(np.float32))
        values[k] = fitted[1].correlation(textures[b].astype(np.float32))
    return values


def _texture_of(path: str) -> tuple[np.ndarray, float]:
    """Decodes one image; returns its texture, in units of 1 / 24, and its aspect ratio.

    What is kept are structures of one to three pixels, divided by their local strength and a noise floor of one
    grey level.
    """
    image = read_image(path)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    band = cv2.GaussianBlur(small, (0, 0), 1) - cv2.GaussianBlur(small, (0, 0), 3)
    texture = band * _SCALE / cv2.sqrt(cv2.GaussianBlur(band * band, (0, 0), 3) + 1)
    return np.clip(np.rint(texture), -127, 127).astype(np.int8), image.shape[1] / image.shape[0]


def _inner(texture: np.ndarray) -> np.ndarray:
    """Leaves the border out, and the mean."""
    values = texture[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].ravel()
    return np.asarray(values - values.mean())


class _Template:
    """A texture that others are moved onto."""

    def __init__(self, texture: np.ndarray) -> None:
        self._texture = texture
        self._values = _inner(texture)
        self._norm = float(np.linalg.norm(self._values))

    @cached_property
    def _basis(self) -> tuple[list[np.ndarray], np.ndarray]:
        """What a slightly moved copy is made of, the texture and its slopes, and their inverse normal matrix."""
        slopes = [_inner(cv2.Sobel(self._texture, cv2.CV_32F, dx, 1 - dx, scale=1 / 8)) for dx in (1, 0)]
        basis = [self._values, *slopes]
        return basis, np.linalg.inv([[float(a @ b) for b in basis] for a in basis] + np.eye(3))

    def correlation(self, texture: np.ndarray) -> float:
        """Moves a texture until it fits; returns the largest correlation on the way."""
        best, shift, moved = 0.0, np.zeros(2), texture
        for step in range(_STEPS + 1):
            values = _inner(moved)
            norm = self._norm * float(np.linalg.norm(values))
            best = max(best, float(self._values @ values) / norm) if norm > 0 else best
            if best < _HOPELESS[step]:
                break
            basis, inverse = self._basis
            gain, *move = inverse @ [float(part @ values) for part in basis]
            farther = np.clip(shift - np.clip(np.array(move) / max(gain, 0.2), -1, 1), -_FURTHEST, _FURTHEST)
            if np.abs(farther - shift).max() < 0.02:
                break
            shift = farther
            moved = cv2.warpAffine(
                texture,
                np.array([[1, 0, shift[0]], [0, 1, shift[1]]]),
                (_SIDE, _SIDE),
                flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        return best
